#include "userspace/telemetry/http_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/base/fd.h"
#include "userspace/base/log.h"
#include "userspace/telemetry/exposition.h"

namespace meltemi::telemetry {
namespace {

log::Scope scope("http");

std::string_view status_text(int status) {
  switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 505: return "HTTP Version Not Supported";
    default: return "Status";
  }
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// nullopt: a broken escape or a NUL.
std::optional<std::string> percent_decode(std::string_view in, bool plus_is_space) {
  std::string out;
  out.reserve(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    char c = in[i];
    if (c == '%') {
      if (i + 2 >= in.size() || hex_digit(in[i + 1]) < 0 || hex_digit(in[i + 2]) < 0) {
        return std::nullopt;
      }
      c = static_cast<char>(hex_digit(in[i + 1]) * 16 + hex_digit(in[i + 2]));
      i += 2;
    } else if (c == '+' && plus_is_space) {
      c = ' ';
    }
    if (c == '\0') return std::nullopt;
    out += c;
  }
  return out;
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

bool iequals(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) {
           return std::tolower(static_cast<unsigned char>(x)) ==
                  std::tolower(static_cast<unsigned char>(y));
         });
}

std::unexpected<Error> refuse(int* http_status, int status, std::string_view why) {
  *http_status = status;
  return fail(status == 413 || status == 431 ? Reason::kLimitExceeded : Reason::kBadRequest,
              Fault::kDownstream, std::string(why));
}

Status parse_target(std::string_view target, HttpRequest& out, int* http_status) {
  const size_t question = target.find('?');
  auto path = percent_decode(target.substr(0, question), false);
  if (!path || path->empty() || path->front() != '/') return refuse(http_status, 400, "bad path");
  out.path = *std::move(path);
  if (question == std::string_view::npos) return {};
  std::string_view rest = target.substr(question + 1);
  while (!rest.empty()) {
    const size_t end = rest.find('&');
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (pair.empty()) continue;
    const size_t equals = pair.find('=');
    auto key = percent_decode(pair.substr(0, equals), true);
    auto value = percent_decode(
        equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1), true);
    if (!key || !value) return refuse(http_status, 400, "bad query");
    out.query.emplace_back(*std::move(key), *std::move(value));
  }
  return {};
}

Status parse_request_line(std::string_view line, HttpRequest& out, int* http_status) {
  const size_t a = line.find(' ');
  const size_t b = a == std::string_view::npos ? a : line.find(' ', a + 1);
  if (b == std::string_view::npos) return refuse(http_status, 400, "bad request line");
  const std::string_view method = line.substr(0, a), version = line.substr(b + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return refuse(http_status, 505, "not HTTP/1.x");
  }
  if (method != "GET" && method != "POST" && method != "HEAD") {
    return refuse(http_status, 405, "method is not GET, HEAD or POST");
  }
  out.method = method;
  return parse_target(line.substr(a + 1, b - a - 1), out, http_status);
}

Result<size_t> parse_length(std::string_view value, int* http_status) {
  size_t n = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  if (value.empty() || error != std::errc() || end != value.data() + value.size()) {
    return refuse(http_status, 400, "bad content-length");
  }
  if (n > kMaxRequestBody) return refuse(http_status, 413, "body too large");
  return n;
}

}  // namespace

const std::string* HttpRequest::param(std::string_view name) const {
  for (auto it = query.rbegin(); it != query.rend(); ++it) {
    if (it->first == name) return &it->second;
  }
  return nullptr;
}

Result<HttpRequest> parse_http_request(std::string_view bytes, int* http_status) {
  const auto incomplete = [] { return fail(Reason::kNotFound, Fault::kDownstream, "incomplete"); };
  const size_t end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (bytes.size() > kMaxRequestHead) return refuse(http_status, 431, "head too large");
    return incomplete();
  }
  if (end > kMaxRequestHead) return refuse(http_status, 431, "head too large");
  std::string_view head = bytes.substr(0, end);
  HttpRequest out;
  const size_t first = head.find("\r\n");
  MELTEMI_TRY(parse_request_line(head.substr(0, first), out, http_status));
  head.remove_prefix(first == std::string_view::npos ? head.size() : first + 2);
  std::optional<size_t> length;
  while (!head.empty()) {
    const size_t eol = head.find("\r\n");
    const std::string_view line = head.substr(0, eol);
    head.remove_prefix(eol == std::string_view::npos ? head.size() : eol + 2);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0 || line.front() == ' ' ||
        line.front() == '\t' || line.find('\n') != std::string_view::npos) {
      return refuse(http_status, 400, "bad header");
    }
    const std::string_view name = line.substr(0, colon), value = trim(line.substr(colon + 1));
    if (iequals(name, "transfer-encoding")) {
      return refuse(http_status, 501, "transfer-encoding is not served here");
    }
    if (iequals(name, "accept")) out.accept = value;
    if (iequals(name, "content-length")) {
      const size_t n = MELTEMI_TRY(parse_length(value, http_status));
      if (length && *length != n) return refuse(http_status, 400, "two content-lengths");
      length = n;
    }
  }
  if (bytes.size() < end + 4 + length.value_or(0)) return incomplete();
  out.body = bytes.substr(end + 4, length.value_or(0));
  return out;
}

// --- server ---------------------------------------------------------------------------------

struct HttpServer::Impl {
  struct Route {
    std::string path, methods;
    Handler handler;
  };
  struct Connection {
    UniqueFd fd;
    std::string in, out;
    size_t sent = 0;
    MonoTime deadline;
    bool writing = false;
  };

  std::vector<Route> routes;
  std::vector<UniqueFd> listeners;
  UniqueFd wake;
  std::thread thread;
  std::list<Connection> connections;
  std::atomic<bool> stopping{false};

  HttpResponse dispatch(const HttpRequest& request) const;
  void loop();
  void accept_from(int listener);
  bool step(Connection& c, short events);  // false: close it
  bool read(Connection& c);
  void answer(Connection& c, const HttpResponse& response, bool head_only);
  bool flush(Connection& c);
};

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}
HttpServer::~HttpServer() { stop(); }

void HttpServer::route(std::string path, std::string methods, Handler handler) {
  impl_->routes.push_back({std::move(path), std::move(methods), std::move(handler)});
}

namespace {

Result<UniqueFd> open_listener(const SocketAddress& address) {
  const bool v6 = !address.ip.is_v4();
  UniqueFd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno(errno, "socket");
  const int one = 1, zero = 0;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (v6) {
    const bool any = address.ip.is_unspecified();
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, any ? &zero : &one, sizeof one);
  }
  sockaddr_storage storage;
  const socklen_t length = address.to_sockaddr(storage);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&storage), length) != 0 ||
      ::listen(fd.get(), 128) != 0) {
    return fail_errno(errno, fmt::format("listen on {}", address.to_string()));
  }
  return fd;
}

}  // namespace

Status HttpServer::start(const std::vector<SocketAddress>& listen) {
  impl_->stopping = false;
  for (const SocketAddress& address : listen) {
    auto fd = open_listener(address);
    if (!fd) {
      impl_->listeners.clear();
      return fail(fd.error());
    }
    impl_->listeners.push_back(*std::move(fd));
  }
  impl_->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl_->wake) return fail_errno(errno, "eventfd");
  impl_->thread = std::thread([impl = impl_.get()] { impl->loop(); });
  return {};
}

void HttpServer::stop() {
  if (!impl_->thread.joinable()) return;
  impl_->stopping = true;
  const uint64_t one = 1;
  if (::write(impl_->wake.get(), &one, sizeof one) < 0) {
    // The loop looks at `stopping` once a second anyway.
  }
  impl_->thread.join();
  impl_->connections.clear();
  impl_->listeners.clear();
}

std::vector<SocketAddress> HttpServer::addresses() const {
  std::vector<SocketAddress> out;
  for (const UniqueFd& fd : impl_->listeners) {
    sockaddr_storage storage;
    socklen_t length = sizeof storage;
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&storage), &length);
    if (auto a = SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length)) {
      out.push_back(*a);
    }
  }
  return out;
}

HttpResponse HttpServer::Impl::dispatch(const HttpRequest& request) const {
  const Route* best = nullptr;
  for (const Route& r : routes) {
    const bool prefix = r.path.size() > 1 && r.path.ends_with('/');
    if (prefix ? request.path.starts_with(r.path) : request.path == r.path) {
      if (!best || r.path.size() > best->path.size()) best = &r;
    }
  }
  if (!best) return {404, "not found\n"};
  const std::string_view method =
      request.method == "HEAD" ? std::string_view("GET") : std::string_view(request.method);
  if (best->methods.find(method) == std::string::npos) {
    return {405, fmt::format("use {}\n", best->methods)};
  }
  return best->handler(request);
}

void HttpServer::Impl::loop() {
  while (!stopping) {
    std::vector<pollfd> polls{{wake.get(), POLLIN, 0}};
    const bool room = connections.size() < kMaxConnections;
    for (const UniqueFd& l : listeners) {
      polls.push_back({room ? l.get() : -1, POLLIN, 0});
    }
    for (const Connection& c : connections) {
      polls.push_back({c.fd.get(), static_cast<short>(c.writing ? POLLOUT : POLLIN), 0});
    }
    if (::poll(polls.data(), polls.size(), 1000) < 0 && errno != EINTR) {
      scope.error("poll: errno {}", errno);
      return;
    }
    size_t i = 1 + listeners.size();
    const MonoTime now = MonoClock::now();
    for (auto c = connections.begin(); c != connections.end(); ++i) {
      const bool keep = c->deadline > now && (polls[i].revents == 0 || step(*c, polls[i].revents));
      c = keep ? std::next(c) : connections.erase(c);
    }
    for (size_t l = 0; l < listeners.size(); ++l) {
      if (polls[1 + l].revents & POLLIN) accept_from(listeners[l].get());
    }
  }
}

void HttpServer::Impl::accept_from(int listener) {
  while (connections.size() < kMaxConnections) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE) ::usleep(10'000);  // do not spin without descriptors
      return;
    }
    Connection c;
    c.fd = std::move(fd);
    c.deadline = MonoClock::now() + kRequestTimeout;
    connections.push_back(std::move(c));
  }
}

bool HttpServer::Impl::step(Connection& c, short events) {
  if (c.writing) return flush(c);
  if (!(events & (POLLIN | POLLHUP))) return false;
  return read(c);
}

bool HttpServer::Impl::read(Connection& c) {
  char buffer[8192];
  const ssize_t n = ::recv(c.fd.get(), buffer, sizeof buffer, 0);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  c.in.append(buffer, static_cast<size_t>(n));
  int status = 400;
  auto request = parse_http_request(c.in, &status);
  if (!request && request.error().reason == Reason::kNotFound) return true;
  if (!request) {
    answer(c, {status, request.error().detail + "\n"}, false);
  } else {
    answer(c, dispatch(*request), request->method == "HEAD");
  }
  return flush(c);
}

void HttpServer::Impl::answer(Connection& c, const HttpResponse& response, bool head_only) {
  c.out = fmt::format(
      "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
      response.status, status_text(response.status), response.content_type, response.body.size());
  if (!head_only) c.out += response.body;
  c.writing = true;
  c.deadline = MonoClock::now() + kResponseTimeout;
}

bool HttpServer::Impl::flush(Connection& c) {
  while (c.sent < c.out.size()) {
    const ssize_t n =
        ::send(c.fd.get(), c.out.data() + c.sent, c.out.size() - c.sent, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    c.sent += static_cast<size_t>(n);
  }
  ::shutdown(c.fd.get(), SHUT_WR);
  return false;
}

// --- shared routes --------------------------------------------------------------------------

void add_metrics_routes(HttpServer& server, const Registry& registry) {
  const auto handler = [&registry](const HttpRequest& request) {
    const bool open = request.accept.find("application/openmetrics-text") != std::string::npos;
    return HttpResponse{200, registry.text(),
                        open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                             : "text/plain; version=0.0.4; charset=utf-8"};
  };
  server.route("/metrics", "GET", handler);
  server.route("/stats/prometheus", "GET", handler);
}

void add_readiness_route(HttpServer& server, const Readiness& readiness) {
  server.route("/healthz/ready", "GET",
               [&readiness](const HttpRequest&) {
                 const Readiness::Verdict verdict = readiness.verdict();
                 return HttpResponse{verdict.ready ? 200 : 500, verdict.text};
               });
}

namespace {

HttpResponse handle_logging(const HttpRequest& request, const std::string& defaults) {
  if (request.param("reset")) {
    if (Status s = log::set_levels(defaults); !s) return {500, s.error().detail + "\n"};
    return {200, fmt::format("log levels reset to {}\n", defaults)};
  }
  const std::string* level = request.param("level");
  if (!level) return {200, "POST /logging?level=info or ?level=info,scope=debug, ?reset\n"};
  if (Status s = log::set_levels(*level); !s) return {400, s.error().detail + "\n"};
  return {200, fmt::format("log levels set to {}\n", *level)};
}

}  // namespace

void add_admin_routes(HttpServer& server, std::string default_levels, std::function<void()> quit) {
  server.route("/logging", "POST",
               [defaults = std::move(default_levels)](const HttpRequest& request) {
                 return handle_logging(request, defaults);
               });
  auto once = std::make_shared<std::once_flag>();
  server.route("/quitquitquit", "POST", [once, quit = std::move(quit)](const HttpRequest&) {
    std::call_once(*once, quit);
    return HttpResponse{200, "shutdown now\n"};
  });
}

}  // namespace meltemi::telemetry
