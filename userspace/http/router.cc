// See router.h.
#include "userspace/http/router.h"

#include <fmt/format.h>

namespace meltemi::http {

void Router::route(std::string path, std::string methods, Handler handler, Access access) {
  routes_.push_back({std::move(path), std::move(methods), std::move(handler), access});
}

std::vector<std::string> Router::paths() const {
  std::vector<std::string> out;
  for (const Route& r : routes_) out.push_back(r.path);
  return out;
}

const Router::Route* Router::find(std::string_view path) const {
  const Route* best = nullptr;
  for (const Route& r : routes_) {
    const bool prefix = r.path.size() > 1 && r.path.ends_with('/');
    const bool matches = prefix ? path.starts_with(r.path) : path == r.path;
    if (matches && (!best || r.path.size() > best->path.size())) best = &r;
  }
  return best;
}

Response Router::dispatch(const Request& request) const {
  const Route* route = find(request.path);
  if (!route) return {404, "not found\n"};
  if (route->access == Access::kLoopback && !request.peer.ip.is_loopback()) {
    return {403, "only for clients on the loopback interface; use exec or port-forward\n"};
  }
  const std::string_view method =
      request.method == "HEAD" ? std::string_view("GET") : std::string_view(request.method);
  // Whole words: "GE" is no method of "GET,POST".
  const std::string list = "," + route->methods + ",";
  if (list.find(fmt::format(",{},", method)) == std::string::npos) {
    Response refused{405, fmt::format("use {}\n", route->methods)};
    refused.headers.emplace_back("allow", route->methods);
    return refused;
  }
  return route->handler(request);
}

}  // namespace meltemi::http
