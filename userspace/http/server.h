// The one HTTP server of a process: operators' pages now, webhooks and consoles behind the same
// face. HTTP/1.1 and HTTP/2 on one thread and loop of its own, so that a scrape costs the data path
// nothing; every connection passes the admission first. It must never serve users' traffic.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/http/certificate_files.h"
#include "userspace/http/connection.h"
#include "userspace/http/router.h"
#include "userspace/rt/admission.h"

namespace meltemi::http {

struct ServerOptions {
  Limits limits;
  Deadlines deadlines;
  // Connections of all ports together, when the server has an admission of its own. The readers of
  // a node are a kubelet, one or two Prometheus and people; the rest is room for the hostile.
  uint32_t connections = 512;
};

class Server {
 public:
  // `admission`: of the process, swept by its owner; null: one of the server's own.
  explicit Server(rt::Admission* admission = nullptr, const ServerOptions& options = {});
  ~Server();  // stops
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Binds; connections wait in the kernel until start(). Returns where it listens (port 0
  // resolved). `router` must outlive the server. "[::]:15020" listens on both families. Error:
  // kSystem or the errno's reason, naming the address. `certificate`: TLS 1.3, HTTP/2 or HTTP/1.1
  // by ALPN; null: in the clear. Clients need no certificate unless its files name roots for them.
  Result<SocketAddress> listen(const Router& router, const SocketAddress& address,
                               std::unique_ptr<CertificateFiles> certificate = nullptr);
  Status start();
  void stop();  // idempotent; joins the thread

  const rt::Admission& admission() const;
  // Connections that were ended early: "slow_reader", "request_deadline", "room", "tls_handshake",
  // ...
  struct Cut {
    std::string why;
    uint64_t count = 0;
  };
  std::vector<Cut> cuts() const;  // any thread
  // Renewed certificates that could not be used; what was served before is served on. Any thread,
  // but not while stop() runs.
  uint64_t certificate_failures() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::http
