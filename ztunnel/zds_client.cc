#include "ztunnel/zds_client.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/log.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("zds");

namespace zds = codec::zds;

constexpr const char* kReadyTask = "workload proxy manager";
constexpr Duration kSendTimeout = std::chrono::seconds(5);
constexpr Duration kPoll = std::chrono::milliseconds(250);  // how fast a stop is noticed
constexpr Duration kRetryFailed = std::chrono::seconds(1);
constexpr Duration kBackoffFirst = std::chrono::milliseconds(20);
// The socket of an agent on the same machine: whatever kept us from it is over, and we are back, within 5 s.
constexpr Duration kBackoffMax = std::chrono::seconds(4);

// Keeps the caller's descriptors for a second try.
Result<std::vector<UniqueFd>> copies(const std::vector<UniqueFd>& fds) {
  std::vector<UniqueFd> out;
  for (const UniqueFd& fd : fds) {
    UniqueFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy) return fail_errno(errno, "dup");
    out.push_back(std::move(copy));
  }
  return out;
}

zds::FdKind wire_kind(ListenerKind kind) {
  return kind == ListenerKind::kOutbound  ? zds::FdKind::kOutbound
         : kind == ListenerKind::kInbound ? zds::FdKind::kInbound
                                          : zds::FdKind::kHbone;
}

}  // namespace

ZdsClient::ZdsClient(std::string path, bool listener_fds, PodManager& pods,
                     telemetry::Readiness& readiness)
    : path_(std::move(path)), listener_fds_(listener_fds), pods_(pods), readiness_(readiness) {
  readiness_.pending(kReadyTask);
}

ZdsClient::~ZdsClient() { stop(); }

void ZdsClient::start() { thread_ = std::thread([this] { run(); }); }

void ZdsClient::stop() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

bool ZdsClient::sleep(Duration duration) {
  const MonoTime until = MonoClock::now() + duration;
  while (!stop_ && MonoClock::now() < until) {
    std::this_thread::sleep_for(std::min<Duration>(kPoll, until - MonoClock::now()));
  }
  return !stop_;
}

void ZdsClient::run() {
  Duration backoff = kBackoffFirst;
  std::string last_error;
  while (!stop_) {
    auto socket = sys::connect_packets(path_);
    if (!socket) {
      if (socket.error().detail != last_error) {
        last_error = socket.error().detail;
        scope.warn("no agent at {}: {}", path_, last_error);
      }
      if (!sleep(backoff)) return;
      backoff = std::min(backoff * 2, kBackoffMax);
      continue;
    }
    last_error.clear();
    const MonoTime began = MonoClock::now();
    connected_ = true;
    scope.info("connected to the agent at {}", path_);
    const Status ended = session(socket->get());
    connected_ = false;
    if (stop_) return;
    readiness_.pending(kReadyTask);
    scope.warn("the agent's connection ended: {}", ended ? "closed" : ended.error().to_string());
    // A session that lasted is no reason to wait; one that broke at once is.
    if (MonoClock::now() - began > std::chrono::seconds(1)) backoff = kBackoffFirst;
    if (!sleep(backoff)) return;
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

Status ZdsClient::session(int socket) {
  snapshot_done_ = false;
  named_.clear();
  failed_.clear();
  const std::string hello = zds::encode(zds::Hello{listener_fds_ ? zds::kListenerFds : 0});
  MELTEMI_TRY(sys::send_packet(socket, as_bytes(hello), {}, kSendTimeout));
  while (!stop_) {
    auto packet = sys::receive_packet(socket, kPoll, zds::kMaxPacket);
    if (!packet) {
      if (packet.error().reason != Reason::kRequestTimeout) return fail(packet.error());
      retry_failed();
      continue;
    }
    Answer answer;
    auto request = zds::decode_request(as_bytes(packet->bytes), packet->fds.size());
    if (request) {
      answer = handle(*std::move(request), std::move(packet->fds));
    } else {
      answer.ack.error = fmt::format("failure to read message : {}", request.error().detail);
      scope.warn("{}", answer.ack.error);
    }
    std::vector<int> fds;
    for (const UniqueFd& fd : answer.fds) fds.push_back(fd.get());
    const std::string bytes = MELTEMI_TRY(zds::encode(answer.ack));
    MELTEMI_TRY(sys::send_packet(socket, as_bytes(bytes), fds, kSendTimeout));
  }
  return {};
}

ZdsClient::Answer ZdsClient::handle(zds::Request request, std::vector<UniqueFd> fds) {
  if (auto* a = std::get_if<zds::Add>(&request)) return add(*a, std::move(fds));
  if (auto* k = std::get_if<zds::Keep>(&request)) {
    Answer answer;
    if (snapshot_done_) {
      answer.ack.error = "keep after the snapshot";
    } else {
      named_.insert(k->uid);
    }
    return answer;
  }
  if (auto* d = std::get_if<zds::Del>(&request)) {
    named_.erase(d->uid);
    failed_.erase(d->uid);
    // Before the snapshot is complete it is only left out of it (the peer's rule).
    if (snapshot_done_) pods_.remove(d->uid);
    return {};
  }
  if (auto* g = std::get_if<zds::GetListeners>(&request)) {
    Answer answer;
    for (auto& [kind, fd] : pods_.listeners(g->uid)) {
      answer.ack.fds.push_back(wire_kind(kind));
      answer.fds.push_back(std::move(fd));
    }
    return answer;
  }
  return snapshot_sent();
}

ZdsClient::Answer ZdsClient::add(const zds::Add& add, std::vector<UniqueFd> fds) {
  Answer answer;
  named_.insert(add.uid);
  failed_.erase(add.uid);
  // Out of descriptors, the ones that came are worth more than a try that would fail, too.
  auto spare = copies(fds);
  const Status started = spare ? pods_.add(add, std::move(fds)) : fail(spare.error());
  if (started) return answer;
  answer.ack.error = fmt::format("failure to start proxy : {}", started.error().to_string());
  scope.warn("pod {}/{}: {}", add.info.namespace_name, add.info.name, answer.ack.error);
  failed_[add.uid] = Failed{add, spare ? *std::move(spare) : std::move(fds)};
  next_retry_ = MonoClock::now() + kRetryFailed;
  return answer;
}

ZdsClient::Answer ZdsClient::snapshot_sent() {
  Answer answer;
  if (std::exchange(snapshot_done_, true)) {
    answer.ack.error = "second snapshot on one connection";
    return answer;
  }
  pods_.keep_only(named_);
  if (failed_.empty()) readiness_.done(kReadyTask);
  return answer;
}

void ZdsClient::retry_failed() {
  if (failed_.empty() || MonoClock::now() < next_retry_) return;
  next_retry_ = MonoClock::now() + kRetryFailed;
  for (auto it = failed_.begin(); it != failed_.end();) {
    auto again = copies(it->second.fds);
    const bool ok = again && pods_.add(it->second.add, *std::move(again));
    it = ok ? failed_.erase(it) : std::next(it);
  }
  if (failed_.empty() && snapshot_done_) readiness_.done(kReadyTask);
}

}  // namespace meltemi::ztunnel
