#include "waypoint/app/identity_file.h"

#include <fmt/format.h>

#include "userspace/pki/kept_certificate.h"
#include "userspace/sys/files.h"
#include "userspace/sys/own_file.h"

namespace meltemi::waypoint {

Result<IdentityFile> IdentityFile::open(const std::string& directory, bool on_disk) {
  const bool in_memory = MELTEMI_TRY(sys::is_in_memory(directory));
  if (!in_memory && !on_disk) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("state-dir {} is on a disk, where a key must not be: mount a tmpfs there "
                            "(emptyDir with medium Memory), or set keys-on-disk",
                            directory));
  }
  return IdentityFile(directory + "/identity");
}

Result<pki::WorkloadCertificatePtr> IdentityFile::load(const model::Identity& identity,
                                                       WallTime now) const {
  auto file = MELTEMI_TRY(sys::read_own_file(path_, pki::kMaxKeptBytes));
  auto read = pki::from_kept_text(file.content, now);
  pki::wipe(file.content);
  auto certificate = MELTEMI_TRY(std::move(read));
  if (certificate->identity != identity) {
    return fail(Reason::kIdentityUnavailable, Fault::kInternal,
                fmt::format("it is of {}, this waypoint is {}", certificate->identity.uri(),
                            identity.uri()));
  }
  return certificate;
}

Status IdentityFile::save(const pki::WorkloadCertificate& certificate) const {
  return sys::write_file_atomically(path_, pki::keep_text(certificate).view(), 0600);
}

}  // namespace meltemi::waypoint
