// Which handler answers which path, for which methods and for whom. Filled before the server starts,
// only read after that.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "userspace/http/message.h"

namespace meltemi::http {

using Handler = std::function<Response(const Request&)>;

// Who may ask.
enum class Access : uint8_t {
  kAnyone,
  // Only over the loopback interface: who is on this machine, in this network namespace, or was let
  // in by `kubectl exec` or port-forward. What names workloads, accounts or nodes belongs here.
  kLoopback,
};

class Router {
 public:
  // An exact path, or a prefix if it ends in '/' (but "/" alone is exact). `methods`: "GET", "POST"
  // or both ("GET,POST"); others get 405. HEAD goes where GET goes.
  void route(std::string path, std::string methods, Handler handler,
             Access access = Access::kAnyone);
  // The handler's answer, or 403, 404, 405.
  Response dispatch(const Request& request) const;
  // The paths, in the order in which they were added.
  std::vector<std::string> paths() const;

 private:
  struct Route {
    std::string path, methods;
    Handler handler;
    Access access;
  };
  const Route* find(std::string_view path) const;
  std::vector<Route> routes_;
};

}  // namespace meltemi::http
