#include "ztunnel/certificates.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include "userspace/base/log.h"
#include "userspace/pki/authority.h"
#include "userspace/xds/ca_client.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("certificates");

pki::CertificateManagerOptions manager_options(const Settings& s) {
  pki::CertificateManagerOptions o;
  o.ttl = std::chrono::duration_cast<std::chrono::seconds>(s.discovery.secret_ttl);
  o.impersonate = s.shared();
  return o;
}

Result<std::vector<std::string>> sign_locally(pki::CertificateAuthority& authority,
                                              const pki::SigningRequest& request) {
  const auto csr = MELTEMI_TRY(pki::CertificateRequest::parse(request.csr_pem));
  if (csr.uris().empty()) {
    return fail(Reason::kBadRequest, Fault::kInternal, "a request without a SPIFFE ID");
  }
  const auto identity = MELTEMI_TRY(model::Identity::parse(csr.uris().front()));
  return authority.issue(csr, identity, request.ttl, std::chrono::system_clock::now());
}

// Two processes that share the directory must not both create what is missing.
Result<UniqueFd> lock_directory(const std::string& directory) {
  UniqueFd lock(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock) return fail_errno(errno, fmt::format("open {}", directory));
  if (::flock(lock.get(), LOCK_EX) != 0) return fail_errno(errno, fmt::format("lock {}", directory));
  return lock;
}

Result<pki::Signer> local_signer(const Settings& s) {
  pki::AuthorityOptions options;
  options.directory = s.local_ca_dir;
  options.trust_domain = s.discovery.trust_domain;
  const UniqueFd lock = MELTEMI_TRY(lock_directory(s.local_ca_dir));
  std::shared_ptr<pki::CertificateAuthority> authority =
      MELTEMI_TRY(pki::CertificateAuthority::open(options, std::chrono::system_clock::now()));
  scope.warn("signing certificates with the local authority in {}", s.local_ca_dir);
  return pki::Signer([authority](pki::SigningRequest request, pki::SigningDone done) {
    done(sign_locally(*authority, request));
  });
}

}  // namespace

Result<pki::Signer> make_signer(const Settings& s) {
  if (!s.local_ca_dir.empty()) return local_signer(s);
  xds::ChannelOptions channel = s.discovery.certificate_authority();
  MELTEMI_TRY(xds::check_address(channel.address));
  auto client = std::make_shared<xds::CaClient>(std::move(channel));
  return pki::Signer([client](pki::SigningRequest request, pki::SigningDone done) {
    client->sign(std::move(request.csr_pem), request.ttl, std::move(request.impersonate),
                 std::move(done));
  });
}

Certificates::Certificates(const Settings& settings, pki::Signer signer, Shared& shared)
    : shared_(shared),
      node_(settings.discovery.node_name),
      manager_(std::make_unique<pki::CertificateManager>(
          manager_options(settings), std::move(signer),
          [this](const model::Identity& identity, const pki::WorkloadCertificatePtr& certificate) {
            publish(identity, certificate);
          })) {
  if (const std::string path = settings.key_socket(); !path.empty()) {
    keys_ = std::make_unique<KeyClient>(
        path, [this](const pki::WorkloadCertificatePtr& certificate) { restored(certificate); });
  }
}

Certificates::~Certificates() { stop(); }

void Certificates::start() {
  if (keys_) keys_->start();
}

void Certificates::stop() {
  if (keys_) keys_->stop();
  manager_->stop();
}

void Certificates::restored(const pki::WorkloadCertificatePtr& certificate) {
  {
    const std::lock_guard lock(mutex_);
    if (!wanted_.contains(certificate->identity)) return unclaimed_.add(certificate);
  }
  manager_->restore(certificate);
}

void Certificates::claim(const model::Identity& identity) {
  pki::WorkloadCertificatePtr kept;
  {
    const std::lock_guard lock(mutex_);
    if (!wanted_.insert(identity).second) return;
    kept = unclaimed_.claim(identity);
  }
  if (kept) manager_->restore(kept);
}

void Certificates::want(const model::Identity& identity, bool urgent) {
  claim(identity);
  manager_->want(identity, urgent);
}

void Certificates::follow(const model::Snapshot& mesh) {
  if (node_.empty()) return;
  std::set<model::Identity> needed;
  mesh.each_workload([&](const model::Workload& w) {
    // What tunnels by itself (a waypoint) has its own certificate; the CA gives it to nobody else.
    if (w.node == node_ && w.protocol == model::TunnelProtocol::kHbone && !w.native_tunnel) {
      needed.insert(w.identity);
    }
  });
  for (const model::Identity& id : needed) {
    if (!followed_.contains(id)) want(id, false);
  }
  for (const model::Identity& id : followed_) {
    if (!needed.contains(id)) forget(id);
  }
  followed_ = std::move(needed);
}

// The last pod with that identity is gone, and the key goes with it: a worker that kept the context would
// show it again when the identity comes back, expired or not.
void Certificates::forget(const model::Identity& identity) {
  manager_->forget(identity);
  hand_out(identity, nullptr);
  if (keys_) keys_->forget(std::string(identity.uri()));
  const std::lock_guard lock(mutex_);
  wanted_.erase(identity);
}

void Certificates::drop_unclaimed(MonoTime now) {
  if (!keys_ || node_.empty()) return;  // without a node's name nobody knows who is here
  std::vector<model::Identity> left;
  {
    const std::lock_guard lock(mutex_);
    left = unclaimed_.expire(now);
  }
  for (const model::Identity& identity : left) {
    scope.info("no pod of this node has identity {} any more: its kept key is dropped", identity.uri());
    keys_->forget(std::string(identity.uri()));
  }
}

void Certificates::publish(const model::Identity& identity,
                           const pki::WorkloadCertificatePtr& certificate) {
  TlsContextPtr context;
  if (certificate) {
    auto made = net::TlsContext::create(*certificate);
    if (!made) {
      scope.error("certificate of {} cannot be used: {}", identity.uri(), made.error().to_string());
      return;
    }
    context = *std::move(made);
    scope.info("certificate of {} is valid until {}", identity.uri(),
               format_rfc3339(certificate->not_after));
    if (keys_) keys_->keep(certificate);
  } else {
    if (keys_) keys_->forget(std::string(identity.uri()));
    scope.error("certificate of {} has expired and could not be renewed", identity.uri());
  }
  hand_out(identity, context);
}

void Certificates::hand_out(const model::Identity& identity, const TlsContextPtr& context) {
  for (size_t i = 0; i < shared_.pool->size(); ++i) {
    ProxyWorker* worker = shared_.workers[i].get();
    shared_.pool->worker(i).post(
        [worker, identity, context] { worker->set_tls(identity, context); });
  }
}

std::vector<pki::CertificateEntry> Certificates::entries() const { return manager_->entries(); }

}  // namespace meltemi::ztunnel
