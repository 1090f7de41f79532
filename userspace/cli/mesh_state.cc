// See mesh_state.h.
#include "userspace/cli/mesh_state.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/fd.h"
#include "userspace/cli/table.h"
#include "userspace/sys/netns.h"

namespace meltemi::cli {
namespace {

using config::Value;

constexpr Duration kPageTimeout = std::chrono::seconds(2);
constexpr size_t kMaxPageBytes = 1 << 20;

Status wait_for(int fd, short events, MonoTime deadline) {
  pollfd p{fd, events, 0};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - MonoClock::now());
  if (left.count() > 0 && ::poll(&p, 1, static_cast<int>(left.count())) == 1) return {};
  return fail(Reason::kConnectTimeout, Fault::kUpstream, "it does not answer");
}

Result<std::string> answer_of(uint16_t port) {
  const MonoTime deadline = MonoClock::now() + kPageTimeout;
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno(errno, "socket");
  sockaddr_storage address;
  const socklen_t length = SocketAddress{*IpAddress::parse("127.0.0.1"), port}.to_sockaddr(address);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) {
    if (errno != EINPROGRESS) return fail_errno(errno, fmt::format("connect to port {}", port));
    MELTEMI_TRY(wait_for(fd.get(), POLLOUT, deadline));
  }
  constexpr std::string_view kRequest = "GET /status HTTP/1.0\r\n\r\n";
  if (::send(fd.get(), kRequest.data(), kRequest.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(kRequest.size()))
    return fail_errno(errno, fmt::format("connect to port {}", port));
  std::string out;
  for (char buffer[16384];;) {
    MELTEMI_TRY(wait_for(fd.get(), POLLIN, deadline));
    const ssize_t n = ::recv(fd.get(), buffer, sizeof buffer, 0);
    if (n == 0) return out;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n < 0) return fail_errno(errno, fmt::format("port {}", port));
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > kMaxPageBytes)
      return fail(Reason::kLimitExceeded, Fault::kUpstream, "its page is larger than 1 MiB");
  }
}

Result<std::string> fetch(const std::string& netns_name, uint16_t port) {
  const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(sys::Netns::named_path(netns_name)));
  const std::string answer = MELTEMI_TRY(netns.run([&] { return answer_of(port); }));
  const size_t body = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.") || answer.size() < 12 || answer.substr(9, 3) != "200" ||
      body == std::string::npos)
    return fail(Reason::kBadRequest, Fault::kUpstream,
                fmt::format("it answers \"{}\"", answer.substr(0, answer.find('\r')).substr(0, 80)));
  return answer.substr(body + 4);
}

std::string text_of(const Value* map, std::string_view key) {
  const Value* value = map == nullptr ? nullptr : map->find(key);
  return value == nullptr ? std::string() : value->text;
}

bool is_true(const Value* map, std::string_view key) {
  const Value* value = map == nullptr ? nullptr : map->find(key);
  return value != nullptr && value->kind == Value::Kind::kBool && value->boolean;
}

void read_control_plane(const Value* of, MeshState* out) {
  if (of == nullptr) return;
  out->sync = text_of(of, "state");
  if (out->sync == "STALE") {
    out->sync += " " + age_of(text_of(of, "lastWord"));
    std::string finding = fmt::format("has heard nothing of the control plane since {}",
                                      text_of(of, "lastWord"));
    if (is_true(of, "servingSavedState")) finding += " and acts on the last good state on disk";
    for (const std::string_view key : {"savedStateRefused", "lastError"})
      if (const std::string why = text_of(of, key); !why.empty()) finding += "; " + why;
    out->findings.push_back(std::move(finding));
  }
  const Value* types = of->find("types");
  for (const Value& type : types == nullptr ? std::vector<Value>() : types->items)
    if (const std::string refused = text_of(&type, "refused"); !refused.empty())
      out->findings.push_back(fmt::format("refused a part of {}: {}", text_of(&type, "type"), refused));
}

void read_certificates(const Value* of, MeshState* out) {
  if (of == nullptr) return;
  const std::string end = text_of(of, "firstEnd"), missing = text_of(of, "missing");
  out->certificates = text_of(of, "available");
  if (!end.empty()) out->certificates += " for " + time_until(end);
  if (missing.empty() || missing == "0") return;
  out->certificates += fmt::format(", {} missing", missing);
  out->findings.push_back(fmt::format("has no certificate for {} of its identities", missing));
}

}  // namespace

Result<MeshState> read_state(std::string_view page) {
  auto parsed = config::parse_documents(page, "status");
  if (parsed.documents.size() != 1 || parsed.documents[0].find("component") == nullptr)
    return fail(Reason::kBadRequest, Fault::kUpstream, "it answers with something else than a status");
  MeshState out;
  out.told = true;
  out.page = std::move(parsed.documents[0]);
  out.ready = is_true(&out.page, "ready");
  out.version = text_of(&out.page, "version");
  out.configuration = text_of(&out.page, "configuration");
  if (std::string trouble = text_of(&out.page, "trouble"); !out.ready) {
    std::replace(trouble.begin(), trouble.end(), '\n', ' ');
    out.findings.push_back("is not ready: " + trouble);
  }
  read_control_plane(out.page.find("controlPlane"), &out);
  read_certificates(out.page.find("certificates"), &out);
  if (const Value* counts = out.page.find("counts"))
    for (size_t i = 0; i < counts->keys.size(); ++i)
      out.counts += fmt::format("{}{}={}", i == 0 ? "" : " ", counts->keys[i].text, counts->items[i].text);
  if (const Value* problems = out.page.find("problems"))
    for (const Value& problem : problems->items) out.findings.push_back(problem.text);
  return out;
}

MeshState state_in(const std::string& netns, uint16_t port) {
  const auto page = fetch(netns, port);
  auto state = page ? read_state(*page) : Result<MeshState>(fail(page.error()));
  if (state) return std::move(*state);
  MeshState out;
  out.why_not = state.error().detail;
  return out;
}

}  // namespace meltemi::cli
