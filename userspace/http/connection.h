// One client's connection: a byte stream on one side, a session on the other, a lease that says
// whether it may stay, and deadlines for whoever is slow. It must never keep a connection open that
// does nothing for long, nor hold more of a response than the client reads.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "userspace/http/session.h"
#include "userspace/net/tls_server_stream.h"
#include "userspace/rt/admission.h"

namespace meltemi::http {

struct Deadlines {
  // From the first byte of a request to its last. A request is a line and some fields: seconds are
  // many round trips.
  Duration request = std::chrono::seconds(5);
  // A client that took nothing of its response for this long has gone away.
  Duration stall = std::chrono::seconds(10);
  // A response as a whole: a client that takes a byte every nine seconds is no better.
  Duration response = std::chrono::minutes(2);
  // Between requests; Prometheus scrapes every 15 s to 60 s, probes come every few seconds.
  Duration idle = std::chrono::seconds(90);
};

class Connection final : public rt::Retirable, private net::StreamEvents {
 public:
  struct Shared {  // of all connections of one listener; outlives them
    Limits limits;
    Deadlines deadlines;
    Session::Answer answer;
    // Set: TLS, with what is to be served at the time.
    std::function<std::shared_ptr<const net::ServerTls>(MonoTime now)> tls;
    // Why a connection ended before its time, for a counter.
    std::function<void(std::string_view why)> cut;
  };
  // `ended` is called once, on the loop, when the connection has nothing left to do: destroy it.
  Connection(const Shared& shared, net::StreamPtr stream, const SocketAddress& peer,
             rt::Lease lease, std::function<void(Connection*)> ended);
  ~Connection() override;

  void start();

 private:
  void on_data(const net::Slices& data) override;
  void on_read_end() override;
  void on_writable() override;
  void on_closed(const net::StreamEnd& end) override;

  bool choose_version();
  void pump();    // writes what the client has room for
  void settle();  // reads or not, which deadline runs, what the lease says
  void arm(MonoTime deadline, std::string_view why);
  void give_way(rt::GiveWay why);
  void cut(std::string_view why);
  void end();

  const Shared& shared_;
  net::StreamPtr stream_;
  SocketAddress peer_;
  rt::Lease lease_;
  std::function<void(Connection*)> ended_;
  std::unique_ptr<Session> session_;
  std::string first_;  // until the version is known
  std::string_view why_;  // what the running deadline means
  // When the request or response that is under way began.
  std::optional<MonoTime> request_since_, response_since_;
  bool blocked_ = false;   // the client takes nothing at the moment
  bool closing_ = false;
  bool read_end_ = false;
  rt::FnTimer deadline_, again_;
};

}  // namespace meltemi::http
