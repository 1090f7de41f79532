#include "userspace/sandbox/probes.h"

#include <errno.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>

#include "userspace/base/fd.h"

namespace meltemi::sandbox {
namespace {

namespace kube = meltemi::kube::v1;

constexpr int kDefaultPeriodSeconds = 10;
constexpr int kDefaultFailureThreshold = 3;

int milliseconds_until(MonoTime deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - MonoClock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3600'000));
}

std::unexpected<Error> failed(std::string detail) {
  return fail(Reason::kConnectRefused, Fault::kUpstream, std::move(detail));
}

Status wait_for(int fd, short events, MonoTime deadline, std::string_view what) {
  pollfd p{fd, events, 0};
  while (true) {
    const int n = ::poll(&p, 1, milliseconds_until(deadline));
    if (n > 0) return {};
    if (n == 0) return failed(fmt::format("{}: no answer in time", what));
    if (errno != EINTR) return fail_errno(errno, what);
  }
}

Result<UniqueFd> connect_to(const SocketAddress& to, MonoTime deadline) {
  UniqueFd fd(
      ::socket(to.ip.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno(errno, "socket");
  sockaddr_storage address;
  const socklen_t length = to.to_sockaddr(address);
  const std::string what = fmt::format("dial tcp {}", to.to_string());
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length) < 0) {
    if (errno != EINPROGRESS) return fail_errno(errno, what);
    MELTEMI_TRY(wait_for(fd.get(), POLLOUT, deadline, what));
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return fail_errno(error, what);
  }
  return fd;
}

std::string request_text(const SocketAddress& to, const kube::HttpGetAction& action) {
  std::string path = action.path().empty() ? "/" : action.path();
  if (path[0] != '/') path = "/" + path;
  std::string host = to.to_string();
  std::string headers = "User-Agent: kube-probe/1.36\r\nAccept: */*\r\n";
  for (const kube::HttpHeader& header : action.http_headers()) {
    if (header.name() == "Host")
      host = header.value();
    else
      headers += fmt::format("{}: {}\r\n", header.name(), header.value());
  }
  return fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\n{}Connection: close\r\n\r\n", path, host,
                     headers);
}

// The status code of "HTTP/1.x NNN ..."; 0 if it is none.
int status_of(std::string_view answer) {
  if (!answer.starts_with("HTTP/1.") || answer.size() < 12) return 0;
  int code = 0;
  std::from_chars(answer.data() + 9, answer.data() + 12, code);
  return code;
}

}  // namespace

Status tcp_probe(const SocketAddress& to, Duration timeout) {
  MELTEMI_TRY(connect_to(to, MonoClock::now() + timeout));
  return {};
}

Status http_probe(const SocketAddress& to, const kube::HttpGetAction& action, Duration timeout) {
  const MonoTime deadline = MonoClock::now() + timeout;
  const UniqueFd fd = MELTEMI_TRY(connect_to(to, deadline));
  const std::string request = request_text(to, action);
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size()))
    return failed("the request could not be sent");
  std::string answer;
  while (answer.size() < 12) {
    MELTEMI_TRY(wait_for(fd.get(), POLLIN, deadline, "GET"));
    char buffer[1024];
    const ssize_t n = ::recv(fd.get(), buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) return failed("the connection was closed before an answer");
    answer.append(buffer, static_cast<size_t>(n));
  }
  // To the end, or the app would see its answer cut off by a reset.
  for (size_t left = kMaxProbeAnswerBytes; left > 0;) {
    if (!wait_for(fd.get(), POLLIN, deadline, "GET")) break;
    char buffer[1024];
    const ssize_t n = ::recv(fd.get(), buffer, std::min(left, sizeof buffer), 0);
    if (n <= 0) break;
    left -= static_cast<size_t>(n);
  }
  const int code = status_of(answer);
  if (code >= 200 && code < 400) return {};
  return failed(code == 0 ? std::string("the answer is not HTTP")
                          : fmt::format("HTTP probe failed with statuscode: {}", code));
}

ProbeState::ProbeState(const kube::Probe* probe, bool initially)
    : probe_(probe), initially_(initially), result_(probe == nullptr || initially) {}

void ProbeState::restart(MonoTime started) {
  if (probe_ == nullptr) return;
  result_ = initially_;
  streak_ = 0;
  next_ = started + std::chrono::seconds(probe_->initial_delay_seconds());
}

Duration ProbeState::timeout() const {
  return std::chrono::seconds(std::max(1, probe_->timeout_seconds()));
}

int ProbeState::failure_threshold() const {
  return probe_->failure_threshold() > 0 ? probe_->failure_threshold() : kDefaultFailureThreshold;
}

bool ProbeState::take(bool success, MonoTime now) {
  const int period =
      probe_->period_seconds() > 0 ? probe_->period_seconds() : kDefaultPeriodSeconds;
  next_ = now + std::chrono::seconds(period);
  streak_ = success == last_ ? streak_ + 1 : 1;
  last_ = success;
  const int needed = success ? std::max(1, probe_->success_threshold()) : failure_threshold();
  if (streak_ < needed || result_ == success) return false;
  result_ = success;
  return true;
}

}  // namespace meltemi::sandbox
