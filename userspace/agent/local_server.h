// The agent's own socket (run-dir/agent.sock): the CNI plugin, the CLI and the sandbox call it.
// Root only, by SO_PEERCRED. A request may be answered later; a connection carries one at a time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "meltemi/local/v1/agent.pb.h"
#include "userspace/agent/loop.h"
#include "userspace/agent/packet_listener.h"
#include "userspace/base/error.h"

namespace meltemi::agent {

inline constexpr size_t kMaxLocalConnections = 256;

class LocalServer {
 public:
  // May be called once, now or later, on the loop's thread; after the client left it does nothing.
  using Reply = std::function<void(meltemi::local::v1::Response)>;
  using Handler = std::function<void(meltemi::local::v1::Request, Reply)>;

  LocalServer(Loop& loop, Handler handler);
  ~LocalServer();
  Status listen(const std::string& path);

 private:
  struct Connection;
  void accept(UniqueFd fd);
  void on_readable(Connection& c);
  void answer(uint64_t serial, const meltemi::local::v1::Response& response);
  void close(uint64_t serial);

  Loop& loop_;
  Handler handler_;
  PacketListener listener_{loop_, [this](UniqueFd fd) { accept(std::move(fd)); }};
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;
  uint64_t next_serial_ = 1;
};

}  // namespace meltemi::agent
