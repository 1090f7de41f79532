// A waypoint's certificate and key over its restarts: one file, mode 0600, in a directory that lies in
// memory (an emptyDir of medium Memory, which lives as long as the pod). Must never write a key to a
// disk unless the operator has said so.
#pragma once

#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/certificate.h"

namespace meltemi::waypoint {

class IdentityFile {
 public:
  // Error kBadConfig: the directory is not in memory, and `on_disk` does not allow another; it cannot be
  // looked at.
  static Result<IdentityFile> open(const std::string& directory, bool on_disk);

  // Of this identity and valid at `now`. Errors: kNotFound; else why the file is not used.
  Result<pki::WorkloadCertificatePtr> load(const model::Identity& identity, WallTime now) const;
  Status save(const pki::WorkloadCertificate& certificate) const;
  const std::string& path() const { return path_; }

 private:
  explicit IdentityFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace meltemi::waypoint
