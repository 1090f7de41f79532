// See key_client.h. The lock guards the store; sockets are touched by the client's thread alone.
#include "ztunnel/key_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/codec/key_packet.h"
#include "userspace/pki/kept_certificate.h"
#include "userspace/sys/packet.h"
#include "userspace/sys/sealed_file.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("keys");
namespace wire = codec::keys;

constexpr Duration kIoTimeout = std::chrono::seconds(5);
constexpr Duration kBackoffFirst = std::chrono::milliseconds(20);
// Of the same machine, and while nobody keeps the keys our own end would lose them.
constexpr Duration kBackoffMax = std::chrono::milliseconds(250);

Status send(int socket, const wire::Packet& packet, std::span<const int> fds = {}) {
  return sys::send_packet(socket, as_bytes(wire::encode(packet)), fds, kIoTimeout);
}

}  // namespace

KeyClient::KeyClient(std::string path, Restored restored)
    : path_(std::move(path)),
      restored_(std::move(restored)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

KeyClient::~KeyClient() { stop(); }

void KeyClient::start() {
  thread_ = std::thread([this] { run(); });
  std::unique_lock lock(mutex_);
  first_answer_.wait_for(lock, kKeptKeysPatience, [&] { return answered_ || stopping_; });
}

void KeyClient::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    first_answer_.notify_all();
  }
  wake();
  if (thread_.joinable()) thread_.join();
}

void KeyClient::wake() const {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

void KeyClient::answered() {
  const std::lock_guard lock(mutex_);
  answered_ = true;
  first_answer_.notify_all();
}

void KeyClient::keep(const pki::WorkloadCertificatePtr& certificate) {
  const std::string identity(certificate->identity.uri());
  {
    const std::lock_guard lock(mutex_);
    const auto it = keys_.find(identity);
    if (it != keys_.end() && it->second.not_after == certificate->not_after) return;  // came from there
  }
  auto file = sys::seal("meltemi-key", pki::keep_text(*certificate).view());
  if (!file) {
    return scope.warn("{} will not outlive this process: {}", identity, file.error().to_string());
  }
  {
    const std::lock_guard lock(mutex_);
    keys_[identity] = {std::make_shared<UniqueFd>(*std::move(file)), certificate->not_after, 0};
    forgotten_.erase(identity);
  }
  wake();
}

void KeyClient::forget(const std::string& identity) {
  {
    const std::lock_guard lock(mutex_);
    keys_.erase(identity);
    forgotten_.insert(identity);
  }
  wake();
}

bool KeyClient::sleep(Duration duration) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(duration).count();
  pollfd p{wake_.get(), POLLIN, 0};
  const MonoTime until = MonoClock::now() + duration;
  while (MonoClock::now() < until && ::poll(&p, 1, static_cast<int>(ms)) > 0) {
    uint64_t count;
    (void)!::read(wake_.get(), &count, sizeof count);
    const std::lock_guard lock(mutex_);
    if (stopping_) return false;
  }
  const std::lock_guard lock(mutex_);
  return !stopping_;
}

void KeyClient::run() {
  Duration backoff = kBackoffFirst;
  std::string last_error;
  do {
    auto socket = sys::connect_packets(path_);
    Status ended = socket ? session(socket->get()) : fail(socket.error());
    answered();
    if (ended) return;  // told to stop
    if (ended.error().detail != last_error) {
      last_error = ended.error().detail;
      scope.info("no agent keeps the keys at {}: {}", path_, last_error);
    }
    backoff = socket ? kBackoffFirst : std::min(backoff * 2, kBackoffMax);
  } while (sleep(backoff));
}

// Success: told to stop.
Status KeyClient::session(int socket) {
  {
    const std::lock_guard lock(mutex_);
    ++session_;
  }
  MELTEMI_TRY(send(socket, wire::Hello{}));
  MELTEMI_TRY(receive(socket));
  answered();
  for (;;) {
    MELTEMI_TRY(send_news(socket));
    pollfd p[] = {{wake_.get(), POLLIN, 0}, {socket, POLLIN, 0}};
    ::poll(p, 2, -1);
    uint64_t count;
    (void)!::read(wake_.get(), &count, sizeof count);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return {};
    }
    if (p[1].revents == 0) continue;
    auto packet = sys::receive_packet(socket, Duration::zero(), wire::kMaxPacket);
    if (packet) return fail(Reason::kBadRequest, Fault::kUpstream, "the agent spoke unasked");
    if (packet.error().reason != Reason::kNotFound) return fail(packet.error());
  }
}

// What the agent kept, up to its Complete.
Status KeyClient::receive(int socket) {
  for (;;) {
    auto packet = MELTEMI_TRY(sys::receive_packet(socket, kIoTimeout, wire::kMaxPacket));
    const auto message = MELTEMI_TRY(wire::decode(as_bytes(packet.bytes), packet.fds.size()));
    if (std::holds_alternative<wire::Complete>(message)) return {};
    const auto* kept = std::get_if<wire::Kept>(&message);
    if (kept == nullptr) return fail(Reason::kBadRequest, Fault::kUpstream, "no kept key");
    restore(kept->identity, kept->not_after, std::move(packet.fds[0]));
  }
}

void KeyClient::restore(const std::string& identity, WallTime not_after, UniqueFd file) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = keys_.find(identity);
    if (it != keys_.end() && it->second.not_after >= not_after) {
      // Ours is as good, and the agent is told of it only if it is better.
      if (it->second.not_after == not_after) it->second.sent_in = session_;
      return;
    }
    if (forgotten_.contains(identity)) return;
  }
  auto text = sys::read_sealed(file.get(), pki::kMaxKeptBytes);
  auto certificate = text ? pki::from_kept_text(*text, std::chrono::system_clock::now())
                          : Result<pki::WorkloadCertificatePtr>(fail(text.error()));
  if (text) pki::wipe(*text);
  if (!certificate || (*certificate)->identity.uri() != identity) {
    scope.warn("the kept certificate of {} is not used: {}", log::escape(identity),
               certificate ? "it names another identity" : certificate.error().to_string());
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    keys_[identity] = {std::make_shared<UniqueFd>(std::move(file)), (*certificate)->not_after,
                       session_};
  }
  scope.info("the agent kept the certificate of {}, valid until {}", identity,
             format_rfc3339((*certificate)->not_after));
  restored_(*certificate);
}

Status KeyClient::send_news(int socket) {
  std::vector<std::pair<wire::Kept, std::shared_ptr<UniqueFd>>> news;
  std::set<std::string> forgotten;
  {
    const std::lock_guard lock(mutex_);
    forgotten = std::exchange(forgotten_, {});
    for (auto& [identity, key] : keys_) {
      if (std::exchange(key.sent_in, session_) == session_) continue;
      news.push_back({wire::Kept{identity, key.not_after}, key.file});
    }
  }
  for (const std::string& identity : forgotten) MELTEMI_TRY(send(socket, wire::Forgotten{identity}));
  for (const auto& [kept, file] : news) {
    const int fd = file->get();
    MELTEMI_TRY(send(socket, kept, {&fd, 1}));
  }
  return {};
}

}  // namespace meltemi::ztunnel
