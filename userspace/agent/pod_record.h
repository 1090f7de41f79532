// What the agent knows of one pod beyond the kernel, and the file that keeps it over a restart, so
// that an agent that comes up without a control plane changes nothing (run-dir/enrolments.json).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "meltemi/node/v1/node.pb.h"
#include "userspace/agent/capture.h"
#include "userspace/base/error.h"

namespace meltemi::agent {

struct PodRecord {
  std::string uid;  // may be empty until the decision names it
  std::string name;
  std::string namespace_name;
  std::optional<meltemi::node::v1::PodEnrolment> decision;
  // From CNI ADD, or found in /proc.
  std::string netns_path;
  std::vector<IpAddress> cni_addresses;
  // Of the kernel state, to find it again and undo it.
  uint64_t cookie = 0;
  SavedSysctls saved_sysctls;
  std::vector<IpAddress> probed_addresses;
  std::vector<uint16_t> probed_ports;

  bool wanted() const { return decision && decision->enrol(); }
  std::string label() const { return namespace_name + "/" + name; }  // for messages
};

// Everything that the decision and CNI say, for the kernel. Malformed CIDRs and ports are an error
// that names them: the control plane validates, but it may be another version.
Result<CaptureSpec> spec_of(const PodRecord& record);

// With a checksum over all of them.
std::string records_to_json(const std::vector<PodRecord>& records);
// Unknown fields are ignored (a newer agent wrote them); what is malformed, or does not fit its checksum,
// is an error (kBadConfig) that names it.
Result<std::vector<PodRecord>> records_from_json(std::string_view text);

struct KeptRecords {
  std::vector<PodRecord> records;
  std::string problem;  // for people: the file was damaged, and where it lies now; "" otherwise
};
// The file of the last agent. None: no records. Damaged, or writable by others: no records, and it is kept
// aside under another name. Error kSystem: it is there and cannot be read now, or not be kept aside: it must
// not be written over.
Result<KeptRecords> read_records(const std::string& path);

}  // namespace meltemi::agent
