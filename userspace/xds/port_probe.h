// Proves that a port of this process answers: connects to it like any client, says something, and waits
// for gRPC to react. What it says is no TLS, so on a TLS port the reaction is that the connection is
// closed; on a plaintext port it is gRPC's SETTINGS. Runs on the acceptor's loop. Private to xds.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/fd.h"
#include "userspace/rt/loop.h"

namespace meltemi::xds {

// When a port answered last. Any thread; outlives its probe.
class PortAnswers {
 public:
  // An answer takes a millisecond; this is for a machine that is short of everything.
  static constexpr Duration kPatience = std::chrono::seconds(4);

  // The first answer is owed from `now` on.
  PortAnswers(const SocketAddress& port, MonoTime now) : port_(port) { answered(now); }
  const SocketAddress& port() const { return port_; }
  void answered(MonoTime now) { last_ = now.time_since_epoch().count(); }
  // "" if it answered within the last kPatience, else what is wrong.
  std::string trouble(MonoTime now) const;

 private:
  const SocketAddress port_;
  std::atomic<int64_t> last_{0};  // MonoTime, ns
};

class PortProbe final : private rt::Completion {
 public:
  static constexpr Duration kEvery = std::chrono::seconds(1);

  // A wildcard port is asked on loopback.
  PortProbe(rt::Loop& loop, PortAnswers& answers);
  ~PortProbe();

  // The acceptor has ended the connection of `client` itself. If that is this probe's, it was no answer.
  void refused(const SocketAddress& client);

 private:
  void begin();
  void end();
  void on_complete(int32_t res, bool more) override;
  void say_hello();

  rt::Loop& loop_;
  PortAnswers& answers_;
  const SocketAddress port_;
  rt::FnTimer next_, patience_;
  UniqueFd fd_;
  rt::OpId op_;
  bool connected_ = false;
  std::optional<SocketAddress> self_;
};

}  // namespace meltemi::xds
