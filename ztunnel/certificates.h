// Certificates for the data path: keeps what the certificate manager fetches in the form that workers
// use, and knows which identities this node is to have. Must never hand a key to anything but a TLS
// context.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "userspace/model/store.h"
#include "userspace/pki/certificate_manager.h"
#include "ztunnel/key_client.h"
#include "ztunnel/proxy_worker.h"
#include "ztunnel/settings.h"
#include "ztunnel/unclaimed.h"

namespace meltemi::ztunnel {

class Certificates {
 public:
  Certificates(const Settings& settings, pki::Signer signer, Shared& shared);
  ~Certificates();
  // Takes back what the agent kept of an earlier life; returns when that is known.
  void start();
  void want(const model::Identity& identity, bool urgent);
  // Fetches ahead what the workloads of this node need and forgets what none needs any more.
  void follow(const model::Snapshot& mesh);
  // From when on the mesh is known: ends the keys that the agent kept and nobody asks for.
  void drop_unclaimed(MonoTime now);
  std::vector<pki::CertificateEntry> entries() const;
  void stop();

 private:
  void publish(const model::Identity& identity, const pki::WorkloadCertificatePtr& certificate);
  void forget(const model::Identity& identity);
  void hand_out(const model::Identity& identity, const TlsContextPtr& context);  // to all workers
  void restored(const pki::WorkloadCertificatePtr& certificate);
  // Hands over a certificate that the agent kept, now that its identity is wanted.
  void claim(const model::Identity& identity);

  Shared& shared_;
  model::Symbol node_;
  std::set<model::Identity> followed_;  // of follow(), one thread
  std::mutex mutex_;                   // guards the next two
  std::set<model::Identity> wanted_;
  Unclaimed unclaimed_;  // kept, not wanted so far
  std::unique_ptr<pki::CertificateManager> manager_;
  std::unique_ptr<KeyClient> keys_;  // null: nobody keeps them
};

// A signer that asks the CA of the settings: the local directory's, or the control plane's.
Result<pki::Signer> make_signer(const Settings& settings);

}  // namespace meltemi::ztunnel
