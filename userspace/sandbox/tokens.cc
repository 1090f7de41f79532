#include "userspace/sandbox/tokens.h"

#include "userspace/pki/token.h"
#include "userspace/sys/files.h"

namespace meltemi::sandbox {

Result<TokenIssuer> TokenIssuer::create(const Layout& layout) {
  pki::PrivateKey key = MELTEMI_TRY(pki::PrivateKey::generate());
  MELTEMI_TRY(sys::make_directories(layout.token_dir(), 0700));
  MELTEMI_TRY(sys::write_file_atomically(layout.token_key(), key.to_pem().view(), 0600));
  MELTEMI_TRY(sys::write_file_atomically(layout.token_public_key(), key.public_key_pem(), 0644));
  return TokenIssuer(std::move(key));
}

Result<TokenIssuer> TokenIssuer::load(const Layout& layout) {
  std::string pem = MELTEMI_TRY(sys::read_file(layout.token_key()));
  auto key = pki::PrivateKey::from_pem(pem);
  pki::wipe(pem);
  return TokenIssuer(MELTEMI_TRY(std::move(key)));
}

Result<std::string> TokenIssuer::sign(const Subject& subject, std::string_view audience) const {
  pki::TokenClaims claims;
  claims.ns = subject.ns;
  claims.service_account = subject.service_account;
  claims.pod_name = subject.pod_name;
  claims.pod_uid = subject.pod_uid;
  claims.node_name = subject.node;
  claims.account_uid = subject.account_uid;
  if (!audience.empty()) claims.audience = audience;
  claims.issued_at = std::chrono::system_clock::now();
  claims.expires_at =
      claims.issued_at + std::chrono::duration_cast<WallTime::duration>(kTokenLifetime);
  return pki::sign_token(key_, claims);
}

Status TokenIssuer::write(const Subject& subject, const std::string& path) const {
  const std::string token = MELTEMI_TRY(sign(subject));
  return sys::write_file_atomically(path, token, 0600);
}

}  // namespace meltemi::sandbox
