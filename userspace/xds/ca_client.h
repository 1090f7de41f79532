// Client of istio.v1.auth.IstioCertificateService (facts: ztunnel §4). Fits pki::Signer but knows
// nothing of keys: CSR in, chain out. Never retries by itself.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/xds/channel.h"

namespace meltemi::xds {

inline constexpr std::chrono::seconds kSignDeadline{10};

class CaClient {
 public:
  using Done = std::function<void(Result<std::vector<std::string>>)>;

  explicit CaClient(ChannelOptions channel);
  ~CaClient();  // cancels what is in flight and waits for the callbacks
  CaClient(const CaClient&) = delete;
  CaClient& operator=(const CaClient&) = delete;

  // `impersonate`: the SPIFFE ID when asking for another's identity, else "". `ttl` 0: server's
  // default. `done` is called once on a gRPC thread; it must not block. Errors: kPermission (the CA
  // refused), kConnectRefused/kConnectTimeout (away; Retry::kSafe), kIdentityUnavailable (bad
  // answer), kBadConfig.
  void sign(std::string csr_pem, std::chrono::seconds ttl, std::string impersonate, Done done);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::xds
