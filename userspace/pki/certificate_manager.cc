// See certificate_manager.h. One thread owns all decisions; the lock protects the entries for readers
// and the inbox for answers of the CA. Due times of certificates are wall clock and looked at again at
// least every kTick, so that neither a suspended machine nor a jumping clock lets one expire unseen.
#include "userspace/pki/certificate_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "userspace/base/log.h"
#include "userspace/pki/csr.h"
#include "userspace/pki/rotation.h"

namespace meltemi::pki {
namespace {

log::Scope scope("certificates");

constexpr Duration kTick = std::chrono::seconds(5);

using GetDone = std::function<void(Result<WorkloadCertificatePtr>)>;

struct Waiter {
  MonoTime deadline;
  GetDone done;
};

struct Entry {
  CertificateEntry shown;
  double random = 0.5;       // of this certificate's renewal time
  bool came_old = false;     // past its renewal time already when it came
  WallTime since{};          // its lifetime counts from here, if that is later than it says itself
  MonoTime retry_at{};       // not before, after a failure
  bool refused = false;      // by the CA, the last time
  bool urgent = false, in_flight = false, renew_now = true;
  uint64_t generation = 0;   // of the identity's registration: answers for older ones are dropped
  std::vector<Waiter> waiters;
};

struct Answer {
  model::Identity identity;
  uint64_t generation;
  PrivateKey key;
  Result<std::vector<std::string>> chain;
};

}  // namespace

struct CertificateManager::Impl : std::enable_shared_from_this<Impl> {
  CertificateManagerOptions options;
  Signer signer;
  Listener listener;

  mutable std::mutex mutex;
  std::condition_variable wake;
  std::map<model::Identity, Entry> entries;
  std::vector<Answer> answers;
  size_t in_flight = 0;
  uint64_t generations = 0;
  bool stopping = false, kicked = false;
  std::mt19937_64 rng{std::random_device{}()};
  std::thread thread;

  // What to do without the lock, collected under it.
  struct Work {
    std::vector<std::pair<model::Identity, uint64_t>> fetch;
    std::vector<std::function<void()>> calls;
  };
  Work restored;  // for the thread; under the lock

  double unit() { return std::uniform_real_distribution<double>(0, 1)(rng); }
  void kick() {
    kicked = true;
    wake.notify_one();
  }
  Entry& entry_of(const model::Identity& identity, bool urgent);
  void run();
  void settle(Answer answer, Work& work);
  void succeed(Entry& entry, WorkloadCertificatePtr certificate, Work& work);
  void fail_entry(Entry& entry, const Error& error, Work& work);
  void expire(Entry& entry, WallTime now, MonoTime mono, Work& work);
  void schedule(WallTime now, MonoTime mono, Work& work);
  void fetch(const model::Identity& identity, uint64_t generation);
  void deliver(Answer answer);
};

namespace {

// REQUIRES: there is a certificate.
WallTime rotation_of(const Entry& entry) {
  const WorkloadCertificate& cert = *entry.shown.certificate;
  return rotation_due(std::max(cert.not_before, entry.since), cert.not_after, entry.random);
}

bool due(const Entry& entry, WallTime now, MonoTime mono) {
  if (entry.in_flight || mono < entry.retry_at) return false;
  const auto& cert = entry.shown.certificate;
  return entry.renew_now || cert == nullptr ||
         now >= rotation_of(entry);
}

}  // namespace

Entry& CertificateManager::Impl::entry_of(const model::Identity& identity, bool urgent) {
  auto [it, added] = entries.try_emplace(identity);
  if (added) {
    it->second.shown.identity = identity;
    it->second.generation = ++generations;
  }
  if (urgent) it->second.urgent = true;
  return it->second;
}

void CertificateManager::Impl::succeed(Entry& entry, WorkloadCertificatePtr certificate,
                                       Work& work) {
  entry.shown.state = CertificateState::kAvailable;
  entry.shown.certificate = certificate;
  entry.shown.last_error.clear();
  entry.shown.failures = 0;
  entry.random = unit();
  // An old answer is asked for again at once. If that one is old too, the CA dates certificates back
  // by more than they live, and asking on would never end.
  const WallTime now = std::chrono::system_clock::now();
  const bool old = now >= rotation_due(certificate->not_before, certificate->not_after, entry.random);
  entry.since = old && entry.came_old ? now : WallTime{};
  entry.came_old = old;
  entry.retry_at = {};
  entry.renew_now = entry.urgent = false;
  // The CA is there: who has none yet need not wait to find out.
  for (auto& [identity, other] : entries) {
    if (!other.shown.certificate && !other.refused) other.retry_at = {};
  }
  for (Waiter& waiter : std::exchange(entry.waiters, {})) {
    work.calls.push_back([done = std::move(waiter.done), certificate] { done(certificate); });
  }
  if (listener) {
    work.calls.push_back([this, identity = entry.shown.identity, certificate] {
      listener(identity, certificate);
    });
  }
  scope.debug("{}: certificate {} valid until {}", entry.shown.identity.uri(),
              certificate->chain.front().serial(), format_rfc3339(certificate->not_after));
}

void CertificateManager::Impl::fail_entry(Entry& entry, const Error& error, Work& work) {
  ++entry.shown.failures;
  entry.shown.last_error = error.to_string();
  entry.refused = error.reason == Reason::kPermission;
  const bool missing = !entry.shown.certificate && !entry.refused;
  entry.retry_at = MonoClock::now() + retry_delay(entry.shown.failures, unit(),
                                                  missing ? kRetryMissing : kRetryMax);
  if (entry.shown.certificate == nullptr) entry.shown.state = CertificateState::kUnavailable;
  scope.warn("{}: no new certificate: {}{}", entry.shown.identity.uri(), entry.shown.last_error,
             entry.shown.certificate ? "; the old one stays" : "");
  if (!entry.refused || entry.shown.certificate) return;
  // The CA said no: waiting for the next try would only make the caller wait for the same answer.
  for (Waiter& waiter : std::exchange(entry.waiters, {})) {
    work.calls.push_back([done = std::move(waiter.done), text = entry.shown.last_error] {
      done(fail(Reason::kIdentityUnavailable, Fault::kConfig, text));
    });
  }
}

void CertificateManager::Impl::settle(Answer answer, Work& work) {
  --in_flight;
  const auto it = entries.find(answer.identity);
  if (it == entries.end() || it->second.generation != answer.generation) return;
  Entry& entry = it->second;
  entry.in_flight = false;
  if (!answer.chain) return fail_entry(entry, answer.chain.error(), work);
  auto certificate = assemble(answer.key, answer.identity, *answer.chain,
                              std::chrono::system_clock::now());
  if (!certificate) return fail_entry(entry, certificate.error(), work);
  succeed(entry, std::move(*certificate), work);
}

void CertificateManager::Impl::expire(Entry& entry, WallTime now, MonoTime mono, Work& work) {
  const auto& cert = entry.shown.certificate;
  if (cert && cert->not_after <= now) {
    scope.error("{}: the certificate expired at {} and could not be renewed: {}",
                entry.shown.identity.uri(), format_rfc3339(cert->not_after),
                entry.shown.last_error);
    entry.shown.certificate = nullptr;
    entry.shown.state = CertificateState::kUnavailable;
    if (listener) {
      work.calls.push_back(
          [this, identity = entry.shown.identity] { listener(identity, nullptr); });
    }
  }
  std::erase_if(entry.waiters, [&](Waiter& waiter) {
    if (waiter.deadline > mono) return false;
    const std::string& why = entry.shown.last_error;
    work.calls.push_back([done = std::move(waiter.done),
                          text = why.empty() ? std::string("no answer of the CA in time") : why] {
      done(fail(Reason::kIdentityUnavailable, Fault::kConfig, text));
    });
    return true;
  });
}

void CertificateManager::Impl::schedule(WallTime now, MonoTime mono, Work& work) {
  for (const bool urgent : {true, false}) {
    for (auto& [identity, entry] : entries) {
      if (in_flight >= options.max_concurrent) return;
      if (entry.urgent != urgent || !due(entry, now, mono)) continue;
      entry.in_flight = true;
      ++in_flight;
      work.fetch.emplace_back(identity, entry.generation);
    }
  }
}

void CertificateManager::Impl::deliver(Answer answer) {
  const std::lock_guard lock(mutex);
  answers.push_back(std::move(answer));
  kick();
}

void CertificateManager::Impl::fetch(const model::Identity& identity, uint64_t generation) {
  auto key = PrivateKey::generate();
  auto csr = key ? make_csr(*key, identity) : Result<std::string>(fail(key.error()));
  if (!csr) {
    scope.error("{}: {}", identity.uri(), csr.error().to_string());
    const std::lock_guard lock(mutex);
    --in_flight;
    if (const auto it = entries.find(identity); it != entries.end()) {
      it->second.in_flight = false;
      it->second.retry_at = MonoClock::now() + kRetryFirst;
    }
    return;
  }
  SigningRequest request{.csr_pem = std::move(*csr), .ttl = options.ttl, .impersonate = {}};
  if (options.impersonate) request.impersonate = identity.uri();
  signer(std::move(request), [weak = weak_from_this(), identity, generation,
                              key = *key](Result<std::vector<std::string>> chain) {
    if (auto self = weak.lock()) self->deliver({identity, generation, key, std::move(chain)});
  });
}

void CertificateManager::Impl::run() {
  std::unique_lock lock(mutex);
  while (!stopping) {
    Work work = std::exchange(restored, {});
    const WallTime now = std::chrono::system_clock::now();
    const MonoTime mono = MonoClock::now();
    for (Answer& answer : std::exchange(answers, {})) settle(std::move(answer), work);
    for (auto& [identity, entry] : entries) expire(entry, now, mono, work);
    schedule(now, mono, work);
    Duration wait = kTick;
    for (const auto& [identity, entry] : entries) {
      for (const Waiter& waiter : entry.waiters) wait = std::min(wait, waiter.deadline - mono);
      if (entry.retry_at > mono) wait = std::min(wait, entry.retry_at - mono);
      if (const auto& cert = entry.shown.certificate; cert && !entry.in_flight) {
        const auto at = rotation_of(entry);
        if (at > now) wait = std::min<Duration>(wait, at - now);
        wait = std::min<Duration>(wait, std::max<Duration>(cert->not_after - now, Duration(0)));
      }
    }
    kicked = false;
    lock.unlock();
    for (const auto& call : work.calls) call();
    for (const auto& [identity, generation] : work.fetch) fetch(identity, generation);
    lock.lock();
    // A renewal that waits for a free slot is woken by the answer that frees it.
    const auto until = std::max<Duration>(wait, std::chrono::milliseconds(1));
    wake.wait_for(lock, until, [&] { return kicked || stopping; });
  }
}

CertificateManager::CertificateManager(CertificateManagerOptions options, Signer signer,
                                       Listener listener)
    : impl_(std::make_shared<Impl>()) {
  impl_->options = options;
  impl_->signer = std::move(signer);
  impl_->listener = std::move(listener);
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

CertificateManager::~CertificateManager() { stop(); }

void CertificateManager::stop() {
  std::vector<Waiter> waiters;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    for (auto& [identity, entry] : impl_->entries) {
      std::ranges::move(std::exchange(entry.waiters, {}), std::back_inserter(waiters));
    }
    impl_->wake.notify_one();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
  for (const Waiter& waiter : waiters) {
    waiter.done(fail(Reason::kShutdown, Fault::kInternal, "the certificate manager stops"));
  }
}

void CertificateManager::want(const model::Identity& identity, bool urgent) {
  const std::lock_guard lock(impl_->mutex);
  impl_->entry_of(identity, urgent);
  impl_->kick();
}

void CertificateManager::forget(const model::Identity& identity) {
  std::vector<Waiter> waiters;
  {
    const std::lock_guard lock(impl_->mutex);
    const auto it = impl_->entries.find(identity);
    if (it == impl_->entries.end()) return;
    waiters = std::move(it->second.waiters);
    impl_->entries.erase(it);
  }
  for (const Waiter& waiter : waiters) {
    waiter.done(fail(Reason::kIdentityUnavailable, Fault::kConfig, "no workload has it any more"));
  }
}

void CertificateManager::restore(const WorkloadCertificatePtr& certificate) {
  const std::lock_guard lock(impl_->mutex);
  Entry& entry = impl_->entry_of(certificate->identity, false);
  const auto& mine = entry.shown.certificate;
  if (impl_->stopping || (mine && mine->not_after >= certificate->not_after)) return;
  impl_->succeed(entry, certificate, impl_->restored);
  impl_->kick();
}

WorkloadCertificatePtr CertificateManager::current(const model::Identity& identity) const {
  const std::lock_guard lock(impl_->mutex);
  const auto it = impl_->entries.find(identity);
  if (it == impl_->entries.end()) return nullptr;
  const auto& cert = it->second.shown.certificate;
  return cert && cert->not_after > std::chrono::system_clock::now() ? cert : nullptr;
}

void CertificateManager::get(const model::Identity& identity, Duration deadline, GetDone done) {
  if (auto certificate = current(identity)) return done(std::move(certificate));
  {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->stopping) {
      Entry& entry = impl_->entry_of(identity, true);
      entry.waiters.push_back({MonoClock::now() + deadline, std::move(done)});
      impl_->kick();
      return;
    }
  }
  done(fail(Reason::kShutdown, Fault::kInternal, "the certificate manager stops"));
}

std::vector<CertificateEntry> CertificateManager::entries() const {
  std::vector<CertificateEntry> out;
  const std::lock_guard lock(impl_->mutex);
  for (const auto& [identity, entry] : impl_->entries) out.push_back(entry.shown);
  return out;
}

void CertificateManager::refresh_all() {
  const std::lock_guard lock(impl_->mutex);
  for (auto& [identity, entry] : impl_->entries) entry.renew_now = true;
  impl_->kick();
}

}  // namespace meltemi::pki
