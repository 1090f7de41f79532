// A workload's certificate, chain, roots and key as one text, for keeping it over a restart: in a sealed
// memory file that the agent holds, or in a file of a tmpfs. Must never be written where it reaches a
// disk.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/certificate.h"
#include "userspace/pki/secret.h"

namespace meltemi::pki {

inline constexpr size_t kMaxKeptBytes = 256 * 1024;  // a chain and a bundle of roots take 3 to 20 KiB

Secret keep_text(const WorkloadCertificate& certificate);
// Believes nothing: everything is verified as if the CA had just sent it. Errors: kBadRequest (no such
// text, above kMaxKeptBytes), kIdentityUnavailable (the parts do not fit, or expired at `now`). Who read
// `text` into a string overwrites it: see wipe().
Result<WorkloadCertificatePtr> from_kept_text(std::string_view text, WallTime now);

}  // namespace meltemi::pki
