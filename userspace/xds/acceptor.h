// Accepts the control plane's connections itself and hands each to gRPC as a descriptor, since gRPC 1.51
// neither limits them nor ever accepts again after EMFILE. A connection stands in the common admission
// (rt/admission.h) all its life: silent until its first byte, which gRPC does not see before; unfinished
// until a caller with a good token has called on it; active while such a call is open; then idle. gRPC
// tells nobody when a connection ends, so a duplicate of its descriptor is watched: two descriptors each.
//
// One thread of its own. It must never block, and never reads a byte of a connection. Private to xds.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/rt/admission.h"
#include "userspace/rt/listener.h"
#include "userspace/rt/worker.h"
#include "userspace/xds/port_probe.h"

namespace meltemi::xds {

class Acceptor {
 public:
  // Takes over a connected, non-blocking socket.
  using Give = std::function<void(UniqueFd)>;

  // `door` is swept by this object's thread while it runs.
  explicit Acceptor(rt::Admission& door);
  ~Acceptor();

  // Opens a port; nothing is accepted yet. Error kSystem, naming the address.
  Status listen(const SocketAddress& address);
  // As bound, in the order of listen().
  const std::vector<SocketAddress>& addresses() const { return addresses_; }
  // Begins to accept; `give` in the order of listen(). `every_tick` is called some times a second.
  Status start(std::vector<Give> give, std::function<void()> every_tick);
  // Accepts no more and forgets what it watches. Idempotent.
  void stop();

  // Calls with a good token on the connection of `peer`, as gRPC names it ("ipv4:10.0.0.1:4711"), and
  // the bytes that their messages had. Any thread.
  void call_began(std::string_view peer);
  void call_ended(std::string_view peer);
  void took(std::string_view peer, size_t bytes);

  // "" while every port answers, else which does not and since when. Any thread.
  std::string trouble(MonoTime now) const;
  uint64_t accept_errors() const { return accept_errors_; }  // EMFILE and the like
  uint64_t overdrawn() const { return overdrawn_; }  // ended for bytes that no call has taken

 private:
  class Connection;
  struct Port {
    std::unique_ptr<rt::Listener> listener;
    std::unique_ptr<PortProbe> probe;
    Give give;
  };

  void accepted(Port& port, UniqueFd fd);
  void forget(Connection& connection);
  void tick();
  void end_overdrawn();
  void on_loop(std::string_view peer, std::move_only_function<void(Connection&)> fn);

  rt::Admission& door_;
  const rt::Admission::ClassId class_;
  std::vector<UniqueFd> listening_;
  std::vector<SocketAddress> addresses_;
  std::vector<std::unique_ptr<PortAnswers>> answers_;
  std::unique_ptr<rt::WorkerPool> thread_;
  bool stopped_ = false;
  std::atomic<uint64_t> accept_errors_{0}, overdrawn_{0};
  // The thread's alone.
  std::vector<std::unique_ptr<Port>> ports_;
  std::unordered_map<SocketAddress, std::unique_ptr<Connection>> connections_;
  std::unique_ptr<rt::FnTimer> ticker_;
  std::function<void()> every_tick_;
};

// The address in a peer name of gRPC's. nullopt: not one of ours ("unix:...").
std::optional<SocketAddress> parse_peer(std::string_view peer);

}  // namespace meltemi::xds
