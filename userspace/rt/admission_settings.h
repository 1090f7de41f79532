// The rows by which an operator changes admission's limits, the same in every daemon. Must never
// know what a connection is used for.
#pragma once

#include "userspace/base/config.h"
#include "userspace/rt/admission.h"

namespace meltemi::rt {

struct AdmissionSettings {
  int64_t max_connections = 0;  // 0: what the limit of descriptors allows
  int64_t max_pending = 0;      // 0: a quarter of the descriptors, at most 4096
  Duration first_byte_timeout = AdmissionOptions().first_byte;
  Duration handshake_timeout = AdmissionOptions().handshake;
  int64_t handshake_rate = static_cast<int64_t>(AdmissionOptions().handshake_rate);

  void describe(ConfigTable& table);  // `this` must outlive the table
  // For a process that may open `limit` descriptors, `each` of them for one connection at most. A
  // larger max-connections than that is cut.
  AdmissionOptions options(uint64_t limit, uint32_t each) const;
};

}  // namespace meltemi::rt
