// The certificate that meltemid itself shows on its TLS port: issued by its own CA for its names and for
// every address of the machine, kept in files that the server watches, renewed in time.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/pki/authority.h"

namespace meltemi::control {

class ServerIdentity {
 public:
  // Makes a key and a first certificate in `directory` (server-key.pem, server-cert.pem).
  static Result<ServerIdentity> create(pki::CertificateAuthority* ca, std::string directory,
                                       std::vector<std::string> names, WallTime now);

  // Renews past half-life, when the issuer changed, or when the machine has new addresses.
  Status refresh(WallTime now, bool issuer_changed);
  std::string certificate_file() const { return directory_ + "/server-cert.pem"; }
  std::string key_file() const { return directory_ + "/server-key.pem"; }

 private:
  ServerIdentity(pki::CertificateAuthority* ca, std::string directory,
                 std::vector<std::string> names, pki::PrivateKey key)
      : ca_(ca), directory_(std::move(directory)), names_(std::move(names)), key_(std::move(key)) {}
  Status issue(WallTime now);

  pki::CertificateAuthority* ca_;
  std::string directory_;
  std::vector<std::string> names_;
  // One key for the life of the process: a reader between two writes never sees halves that differ.
  pki::PrivateKey key_;
  std::vector<IpAddress> addresses_;
  WallTime due_{};
  bool issuer_changed_ = false;  // since the certificate was issued
};

// The addresses of this network namespace, loopback included, link-local left out. Sorted.
Result<std::vector<IpAddress>> local_addresses();
// The names under which peers know a control plane: meltemid and istiod in `root_namespace`.
std::vector<std::string> control_plane_names(const std::string& root_namespace);

}  // namespace meltemi::control
