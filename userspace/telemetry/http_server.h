// A small HTTP/1.1 server for operators: admin, metrics, readiness. One thread of its own, so that a
// scrape costs the data path nothing. GET, HEAD and POST; one request a connection; everything has a limit
// and a timeout. Must never serve users' traffic.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/telemetry/readiness.h"

namespace meltemi::telemetry {

class Registry;

inline constexpr size_t kMaxRequestHead = 8 * 1024;   // bytes, request line and headers
inline constexpr size_t kMaxRequestBody = 64 * 1024;  // bytes
inline constexpr size_t kMaxConnections = 64;         // at once; more wait in the backlog
inline constexpr std::chrono::seconds kRequestTimeout{5};    // from accept to the whole request
inline constexpr std::chrono::seconds kResponseTimeout{30};  // to send the response

struct HttpRequest {
  std::string method;  // "GET", "HEAD", "POST"
  std::string path;    // before '?', percent-decoded
  std::vector<std::pair<std::string, std::string>> query;  // percent-decoded, in order
  std::string body;
  std::string accept;
  const std::string* param(std::string_view name) const;  // the last of that name, or null
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "text/plain; charset=utf-8";
};

class HttpServer {
 public:
  using Handler = std::function<HttpResponse(const HttpRequest&)>;

  HttpServer();
  ~HttpServer();  // stops
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Exact path, or a prefix if it ends in '/'. Add before start(). `methods`: "GET", "POST" or both
  // ("GET,POST"); others get 405. HEAD goes where GET goes.
  void route(std::string path, std::string methods, Handler handler);
  // Binds and starts the thread. "[::]:15020" listens on both families. Error: port in use, named.
  Status start(const std::vector<SocketAddress>& listen);
  void stop();  // idempotent; joins the thread
  // Where it listens (port 0 resolved).
  std::vector<SocketAddress> addresses() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Parses one request; sans-io, for the server and its fuzz target. kNotFound: incomplete, feed more.
// kBadRequest, kLimitExceeded: answer `http_status` of it and close.
Result<HttpRequest> parse_http_request(std::string_view bytes, int* http_status);

// The routes that ztunnel, waypoint and meltemid share.
// /metrics and /stats/prometheus
void add_metrics_routes(HttpServer& server, const Registry& registry);
// /healthz/ready: 200, or 500 with the reasons.
void add_readiness_route(HttpServer& server, const Readiness& readiness);
// POST /logging?level=...|?reset, POST /quitquitquit (calls `quit` once, answers "shutdown now").
void add_admin_routes(HttpServer& server, std::string default_levels, std::function<void()> quit);

}  // namespace meltemi::telemetry
