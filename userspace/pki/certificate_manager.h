// Keeps a fresh certificate for every identity that a proxy needs: key, CSR, request to the CA,
// renewal at half-life with jitter, retry with backoff; a valid certificate is kept through any
// failure until it expires. Knows the CA only as a function "CSR in, chain out". One thread of its
// own; every public method is thread safe. Must never block a reader on the network.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/certificate.h"

namespace meltemi::pki {

struct SigningRequest {
  std::string csr_pem;
  std::chrono::seconds ttl{0};  // 0: the CA's default
  std::string impersonate;      // SPIFFE ID, when asking for another's; "" otherwise
};
// Chain as the CA returns it: leaf first, root bundle last.
using SigningDone = std::function<void(Result<std::vector<std::string>>)>;
// Must call `done` exactly once, on any thread, also after a shutdown (with an error).
using Signer = std::function<void(SigningRequest, SigningDone done)>;

struct CertificateManagerOptions {
  std::chrono::seconds ttl = std::chrono::hours(24);
  // True for a node proxy that asks on behalf of its pods.
  bool impersonate = true;
  size_t max_concurrent = 8;  // requests to the CA at once
};

enum class CertificateState : uint8_t { kInitializing, kAvailable, kUnavailable };

struct CertificateEntry {  // for config dumps and metrics
  model::Identity identity;
  CertificateState state = CertificateState::kInitializing;
  WorkloadCertificatePtr certificate;  // null until the first success, and after expiry
  std::string last_error;
  unsigned failures = 0;  // since the last success
};

class CertificateManager {
 public:
  // Called on the manager's thread after each renewal and when a certificate expired (null).
  using Listener = std::function<void(const model::Identity&, const WorkloadCertificatePtr&)>;

  CertificateManager(CertificateManagerOptions options, Signer signer, Listener listener = {});
  ~CertificateManager();  // stops; answers of requests in flight are dropped
  CertificateManager(const CertificateManager&) = delete;
  CertificateManager& operator=(const CertificateManager&) = delete;

  // Starts to fetch and keep `identity`. Urgent requests (a connection waits) go before prefetches.
  void want(const model::Identity& identity, bool urgent = false);
  void forget(const model::Identity& identity);
  // Wants the identity and takes a certificate of an earlier life for it, unless a longer one is there.
  // It is renewed when it is due. The listener is told, as of a renewal.
  void restore(const WorkloadCertificatePtr& certificate);
  // The valid certificate, or null. Takes a short lock; workers keep what the listener gave them.
  WorkloadCertificatePtr current(const model::Identity& identity) const;
  // current(), else want(urgent) and `done` once, on the manager's thread, when there is one, when
  // the first try failed, or after `deadline`. Error kIdentityUnavailable with the CA's words.
  void get(const model::Identity& identity, Duration deadline,
           std::function<void(Result<WorkloadCertificatePtr>)> done);
  std::vector<CertificateEntry> entries() const;  // sorted by identity
  // Renews everything now (roots changed).
  void refresh_all();
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace meltemi::pki
