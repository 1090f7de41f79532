// A waypoint's data path with the configuration that our own translation makes of a mesh, as a client
// and an application see it: among others every limit in time of the table "What a waypoint is told"
// of ARCHITECTURE.md. The clock jumps, nothing sleeps; both ends are plain sockets that speak bytes
// written down here.
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/support/jumping_clock.h"
#include "tests/unit/config/fixture.h"
#include "userspace/rt/socket_options.h"
#include "waypoint/proxy/acceptor.h"
#include "waypoint/proxy/upstream.h"
#include "waypoint/xds/store.h"

namespace meltemi::config {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

constexpr char kShop[] = R"(
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/use-waypoint: waypoint}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: shop, labels: {{istio.io/waypoint-for: all}}}}
spec: {{gatewayClassName: meltemi-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec:
  clusterIP: 10.96.0.10
  selector: {{app: catalog}}
  ports:
  - {{name: http, port: 80, targetPort: {0}}}
  - {{name: grpc, port: 81, targetPort: {0}}}
  - {{name: tcp, port: 85, targetPort: {0}}}
)";

// One end of a connection that the test holds.
struct Socket {
  UniqueFd fd;
  std::string in;
  bool ended = false;

  void say(std::string_view bytes) const {
    ASSERT_EQ(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Takes what is there.
  void hear() {
    char buffer[4096];
    ssize_t n;
    while ((n = recv(fd.get(), buffer, sizeof buffer, MSG_DONTWAIT)) > 0) in.append(buffer, n);
    ended = ended || n == 0 || (n < 0 && errno != EAGAIN);
  }
  bool heard(std::string_view text) {
    hear();
    return in.find(text) != std::string::npos;
  }
  bool gone() {
    hear();
    return ended;
  }
};

std::string frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  const auto n = static_cast<uint32_t>(payload.size());
  std::string out;
  for (const uint32_t byte : {n >> 16, n >> 8, n, uint32_t{type}, uint32_t{flags}, stream >> 24,
                              stream >> 16, stream >> 8, stream}) {
    out += static_cast<char>(byte);
  }
  return out.append(payload);
}
std::string field(std::string_view name, std::string_view value) {
  return fmt::format("{}{}{}{}{}", '\0', static_cast<char>(name.size()), name,
                     static_cast<char>(value.size()), value);
}
constexpr std::string_view kH2Begin = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const std::string kSettings = frame(4, 0, 0, "");
const std::string kSettingsAck = frame(4, 1, 0, "");
std::string call_with(const std::string& more) {
  return frame(1, 4, 1, "\x83\x86" + field(":path", "/shop.Catalog/Watch") +
                            field(":authority", "catalog") +
                            field("content-type", "application/grpc") + field("te", "trailers") +
                            more);
}
const std::string kCall = call_with("");
const std::string kCallAnswer = frame(1, 4, 1, "\x88" + field("content-type", "application/grpc"));

class DataPath : public testing::Test {
 protected:
  DataPath() {
    loop_ = std::move(*rt::Loop::create({.backend = rt::Backend::kEpoll}));
    app_ = std::move(*rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {}));
    EXPECT_EQ(fcntl(app_.get(), F_SETFL, O_NONBLOCK), 0);
    take(mesh_.put("shop.yaml", fmt::format(kShop, rt::local_address(app_.get())->port) +
                                    pod_yaml("shop", "catalog-1", "app: catalog", "127.0.0.1")));
    worker_ = std::make_unique<waypoint::ProxyWorker>(*loop_, 0, shared_);
    publish();
    acceptor_ = std::make_unique<waypoint::Acceptor>(*worker_);
    tick_ = std::make_unique<rt::FnTimer>(
        [this] { loop_->start(*tick_, loop_->now() + milliseconds(1)); });
    loop_->start(*tick_, loop_->now());
  }
  ~DataPath() override {
    acceptor_->close(Reason::kShutdown);
    turns();
    acceptor_.reset();
    worker_.reset();
    tick_.reset();
    loop_->run_once(MonoTime{});
  }

  void put(std::string_view path, std::string_view yaml) {
    take(mesh_.put(path, yaml));
    publish();
  }
  // A client's connection to a port of the Service.
  Socket dial(int port) {
    const auto door = std::move(*rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {}));
    Socket client;
    client.fd = std::move(*rt::make_tcp_socket(*rt::local_address(door.get())));
    sockaddr_storage storage;
    const socklen_t length = rt::local_address(door.get())->to_sockaddr(storage);
    EXPECT_EQ(connect(client.fd.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    pollfd ready{door.get(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, 5000), 1);
    acceptor_->serve_plain(UniqueFd(accept4(door.get(), nullptr, nullptr, SOCK_CLOEXEC)), name(port),
                           rt::Lease());
    turns();
    return client;
  }
  static std::string name(int port) {
    return fmt::format("inbound-vip|{}|{}|catalog.shop.svc.cluster.local", port,
                       port == 85 ? "tcp" : "http");
  }
  // The waypoint's connection to the application.
  Socket answer() {
    Socket app;
    EXPECT_TRUE(until([&] {
      app.fd = UniqueFd(accept4(app_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      return bool(app.fd);
    }));
    return app;
  }
  bool until(const std::function<bool()>& done) {
    return loop_->run_until(done, MonoClock::now() + seconds(20));
  }
  void turns() {
    for (int i = 0; i < 8; ++i) loop_->run_once(MonoTime{});
  }
  // Time goes by in steps that are shorter than any limit.
  void pass(Duration time) {
    for (; time > Duration::zero(); time -= seconds(20)) {
      test::jump(std::min<Duration>(time, seconds(20)));
      turns();
    }
  }
  // A request and its answer on a connection that the application has.
  void call(Socket& client, Socket& app) {
    client.in.clear();
    app.in.clear();
    client.say("GET /a HTTP/1.1\r\nHost: catalog\r\n\r\n");
    if (!app.fd) app = answer();
    ASSERT_TRUE(until([&] { return app.heard("\r\n\r\n"); }));
    app.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    ASSERT_TRUE(until([&] { return client.heard("hello"); }));
  }
  waypoint::ProxyWorker& worker() { return *worker_; }
  const waypoint::Snapshot& snapshot() { return *worker_->snapshot(); }

 private:
  void take(const TranslationResult& result) {
    for (const ResourceChange& change : result.resources) {
      const auto type = waypoint::xds_type(type_url(change.type));
      if (!type || change.scope != "waypoint/shop/waypoint") continue;
      if (!change.resource) {
        store_.remove(*type, change.name);
      } else {
        const Status ok = store_.put(*type, change.name, change.resource->body);
        EXPECT_TRUE(ok) << (ok ? "" : ok.error().to_string());
      }
    }
  }
  // The translated listeners are virtual: each also as one that takes connections of its own.
  void publish() {
    auto snapshot = std::make_shared<waypoint::Snapshot>(*store_.build());
    for (const auto& [address, listener] : snapshot->virtual_listeners) {
      snapshot->bound_listeners.push_back(listener);
    }
    worker_->set_snapshot(std::move(snapshot));
  }

  Mesh mesh_;
  waypoint::ConfigStore store_;
  waypoint::ProxyShared shared_;
  std::unique_ptr<rt::Loop> loop_;
  UniqueFd app_;
  std::unique_ptr<waypoint::ProxyWorker> worker_;
  std::unique_ptr<waypoint::Acceptor> acceptor_;
  std::unique_ptr<rt::FnTimer> tick_;
};
using TimeLimits = DataPath;

TEST_F(TimeLimits, AnAnswerMayTakeLongerThanFiveMinutes) {
  Socket client = dial(80);
  client.say("GET /report HTTP/1.1\r\nHost: catalog\r\n\r\n");
  Socket app = answer();
  ASSERT_TRUE(until([&] { return app.heard("\r\n\r\n"); }));
  pass(seconds(330));
  EXPECT_FALSE(client.gone()) << client.in;
  app.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
  pass(seconds(330));
  app.say("done");
  EXPECT_TRUE(until([&] { return client.heard("200 OK") && client.heard("done"); })) << client.in;
}

TEST_F(TimeLimits, AnIdleGrpcStreamLivesBeyondFiveMinutes) {
  Socket client = dial(81);
  client.say(std::string(kH2Begin) + kSettings + kSettingsAck + kCall);
  Socket app = answer();
  ASSERT_TRUE(until([&] { return app.heard("/shop.Catalog/Watch"); }));
  app.say(kSettings + kSettingsAck + kCallAnswer);
  ASSERT_TRUE(until([&] { return client.heard("application/grpc"); }));
  pass(seconds(330));
  app.say(frame(0, 0, 1, "a message at last"));
  EXPECT_TRUE(until([&] { return client.heard("a message at last"); }));
  pass(hours(2));
  client.say(frame(0, 0, 1, "and back"));
  EXPECT_TRUE(until([&] { return app.heard("and back"); })) << "an open stream is never idle";
  EXPECT_FALSE(client.gone());
}

TEST_F(TimeLimits, AWebSocketMayBeSilentForHours) {
  Socket client = dial(80);
  client.say("GET /ws HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
  Socket app = answer();
  ASSERT_TRUE(until([&] { return app.heard("\r\n\r\n"); }));
  app.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
          "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
  ASSERT_TRUE(until([&] { return client.heard("\r\n\r\n"); }));
  pass(hours(3));
  client.say("ping");
  EXPECT_TRUE(until([&] { return app.heard("ping"); }));
}

TEST_F(TimeLimits, AnIdleClientConnectionIsKeptForAnHour) {
  Socket fresh = dial(80), used = dial(80), h2 = dial(81);
  h2.say(std::string(kH2Begin) + kSettings + kSettingsAck);
  Socket app;
  call(used, app);
  pass(minutes(59));
  for (Socket* s : {&fresh, &used, &h2}) EXPECT_FALSE(s->gone());
  call(used, app);
  call(fresh, app);
  pass(minutes(59));
  EXPECT_TRUE(h2.gone());
  EXPECT_FALSE(used.gone()) << "the hour begins with the last answer";
  EXPECT_FALSE(fresh.gone());
  pass(minutes(2));
  EXPECT_TRUE(until([&] { return used.gone() && fresh.gone(); }));
}

TEST_F(TimeLimits, AConnectionThatNeverSaysAnythingEndsAfterAnHour) {
  Socket client = dial(80);
  pass(minutes(61));
  EXPECT_TRUE(until([&] { return client.gone(); }));
  EXPECT_EQ(client.in, "");
}

TEST_F(TimeLimits, AHeadMayTakeAMinute) {
  Socket client = dial(80), h2 = dial(81), second = dial(80);
  Socket app;
  call(second, app);
  client.say("GET /a HTTP/1.1\r\nHo");
  h2.say(kH2Begin.substr(0, 8));
  second.say("GET /b");
  turns();
  pass(seconds(59));
  for (Socket* s : {&client, &h2, &second}) EXPECT_FALSE(s->gone());
  pass(seconds(2));
  EXPECT_TRUE(until([&] { return client.heard("HTTP/1.1 408") && second.heard("HTTP/1.1 408"); }));
  EXPECT_TRUE(until([&] { return h2.gone(); }));
}

TEST_F(TimeLimits, AnUnusedConnectionToAPodEndsAfterAnHour) {
  Socket client = dial(80), app;
  call(client, app);
  pass(minutes(59));
  EXPECT_FALSE(app.gone());
  pass(minutes(2));
  EXPECT_TRUE(until([&] { return app.gone(); }));
  // The same for one whose client left while it was made, and so never carried a request.
  for (const int port : {80, 81}) {
    waypoint::Host* host = *worker().upstreams().find(model::Symbol(name(port)))->pick({}, {}, {});
    waypoint::AttemptPlan plan;
    plan.h2 = port == 81;
    ASSERT_EQ(*host->start(plan), nullptr) << "it waits for a connection";
    host->cancel(plan);
    Socket unused = answer();
    pass(minutes(59));
    EXPECT_FALSE(unused.gone()) << port;
    pass(minutes(2));
    EXPECT_TRUE(until([&] { return unused.gone(); })) << port;
  }
}

TEST_F(TimeLimits, BytesMayBeSilentForAnHour) {
  Socket client = dial(85);
  client.say("hello");
  Socket app = answer();
  ASSERT_TRUE(until([&] { return app.heard("hello"); }));
  pass(minutes(59));
  app.say("still here");
  EXPECT_TRUE(until([&] { return client.heard("still here"); }));
  pass(minutes(59));
  EXPECT_FALSE(client.gone()) << "the hour begins with the last byte";
  pass(minutes(62));
  EXPECT_TRUE(until([&] { return client.gone() && app.gone(); }));
}

// What no request shows quickly, as it stands in the table.
TEST_F(TimeLimits, AreWhatTheTableSays) {
  const waypoint::Snapshot& now = snapshot();
  const auto vip = [&now](int port) {
    return *now.find_virtual(*SocketAddress::parse(fmt::format("10.96.0.10:{}", port)));
  };
  const waypoint::HttpOptions& http =
      vip(80)->chain_for(waypoint::Detected::kHttp1)->http()->options;
  EXPECT_EQ(http.stream_idle, Duration::zero());
  EXPECT_EQ(http.connection_idle, hours(1));
  EXPECT_EQ(http.request_timeout, Duration::zero());
  EXPECT_EQ(http.headers_timeout, seconds(60));
  const waypoint::TcpChain& tcp = *vip(85)->chain_for(waypoint::Detected::kOther)->tcp();
  EXPECT_EQ(tcp.idle_timeout, hours(1));
  const waypoint::Cluster& cluster = *now.find_cluster(model::Symbol(name(80)))->cluster;
  EXPECT_EQ(cluster.connect_timeout, seconds(10));
  EXPECT_EQ(cluster.idle_timeout, hours(1));
  const waypoint::ProxyLimits limits;
  EXPECT_EQ(limits.detect_timeout, seconds(1));
  EXPECT_EQ(limits.queue_timeout, seconds(60));
  EXPECT_EQ(limits.drain_timeout, seconds(30));
  const net::HboneOptions tunnel;
  EXPECT_EQ(tunnel.h2.ping_interval, seconds(10));
  EXPECT_EQ(tunnel.h2.ping_timeout, seconds(20));
  EXPECT_EQ(tunnel.handshake_timeout, seconds(10));
  EXPECT_EQ(tunnel.connect_timeout, seconds(10));
  EXPECT_EQ(tunnel.response_timeout, seconds(20));
  EXPECT_EQ(tunnel.idle_release, minutes(5));
  EXPECT_EQ(codec::H2Options().settings_timeout, seconds(30));
  EXPECT_EQ(rt::AdmissionOptions().first_byte, seconds(2));
}

TEST_F(DataPath, AGrpcCallEndsAtItsOwnDeadline) {
  Socket client = dial(81);
  client.say(std::string(kH2Begin) + kSettings + kSettingsAck +
             call_with(field("grpc-timeout", "30S")));
  Socket app = answer();
  ASSERT_TRUE(until([&] { return app.heard("/shop.Catalog/Watch"); }));
  app.say(kSettings + kSettingsAck);
  pass(seconds(29));
  EXPECT_FALSE(client.heard("grpc-status"));
  pass(seconds(2));
  EXPECT_TRUE(until([&] { return client.heard("grpc-status\x01""4"); })) << "DEADLINE_EXCEEDED";
  EXPECT_TRUE(until([&] { return app.heard(frame(3, 0, 1, {"\0\0\0\x08", 4})); })) << "CANCEL";
}

TEST_F(DataPath, MaxForwardsSaysWhereOptionsAndTraceEnd) {
  Socket client = dial(80), app;
  client.say("OPTIONS /a HTTP/1.1\r\nHost: catalog\r\nMax-Forwards: 0\r\n\r\n");
  EXPECT_TRUE(until([&] { return client.heard("content-length: 0\r\n"); })) << client.in;
  client.say("TRACE /b HTTP/1.1\r\nHost: catalog\r\nMax-Forwards: 0\r\nX-A: b\r\nCookie: secret\r\n"
             "Authorization: secret\r\n\r\n");
  EXPECT_TRUE(until([&] { return client.heard("message/http"); })) << client.in;
  EXPECT_TRUE(client.heard("\r\n\r\nTRACE /b HTTP/1.1\r\nHost: catalog\r\nMax-Forwards: 0\r\n"
                           "X-A: b\r\n\r\n"));
  EXPECT_FALSE(client.heard("secret"));
  client.say("TRACE /c HTTP/1.1\r\nHost: catalog\r\nMax-Forwards: 10\r\n\r\n");
  app = answer();
  ASSERT_TRUE(until([&] { return app.heard("\r\n\r\n"); }));
  EXPECT_TRUE(app.heard("max-forwards: 9\r\n")) << app.in;
  EXPECT_FALSE(app.heard("Max-Forwards: 10"));
  app.say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
  ASSERT_TRUE(until([&] { return client.heard("\r\n\r\nx"); }));
  client.say("GET /d HTTP/1.1\r\nHost: catalog\r\nMax-Forwards: 0\r\n\r\n");
  EXPECT_TRUE(until([&] { return app.heard("Max-Forwards: 0\r\n"); })) << "of other methods: ignored";
}

TEST_F(DataPath, EveryAnswerHasADateAndA405SaysWhatIsAllowed) {
  Socket client = dial(80), app;
  call(client, app);
  EXPECT_TRUE(client.heard("\r\ndate: ")) << "the application gave none: " << client.in;
  client.in.clear();
  app.in.clear();
  client.say("GET /a HTTP/1.1\r\nHost: catalog\r\n\r\n");
  ASSERT_TRUE(until([&] { return app.heard("\r\n\r\n"); }));
  app.say("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 2\r\n\r\nok");
  ASSERT_TRUE(until([&] { return client.heard("\r\n\r\nok"); }));
  EXPECT_TRUE(client.heard("Date: Sun, 06 Nov 1994 08:49:37 GMT"));
  EXPECT_FALSE(client.heard("\r\ndate: ")) << "the application's stays";
  EXPECT_FALSE(client.heard("ia: ")) << "no Via: see ARCHITECTURE.md";
  client.say("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
  EXPECT_TRUE(until([&] { return client.heard("HTTP/1.1 405"); }));
  EXPECT_TRUE(client.heard("allow: GET, HEAD, POST,")) << client.in;
  EXPECT_TRUE(client.heard("\r\ndate: "));
}

TEST_F(DataPath, AnInvalidPrefaceEndsTheConnectionAtOnce) {
  for (const int port : {80, 81}) {
    for (const char* bytes : {"INVALID CONNECTION PREFACE\r\n\r\n",
                              "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"}) {
      Socket client = dial(port);
      client.say(bytes);
      EXPECT_TRUE(until([&] { return client.gone(); })) << port << " " << bytes;
      EXPECT_TRUE(client.in.starts_with("HTTP/1.1 ")) << "it is not HTTP/2: " << client.in;
    }
  }
}

TEST_F(DataPath, MaxConcurrentStreamsOfARuleIsOfEachConnectionToAPod) {
  put("rule.yaml", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: c, "
                   "namespace: shop}\nspec: {host: catalog, trafficPolicy: {connectionPool: {http: "
                   "{maxConcurrentStreams: 1}}}}\n");
  const std::string call = std::string(kH2Begin) + kSettings + kSettingsAck + kCall;
  Socket first = dial(81), second = dial(81);
  first.say(call);
  Socket one = answer();
  ASSERT_TRUE(until([&] { return one.heard("/shop.Catalog/Watch"); }));
  one.say(kSettings + kSettingsAck);
  turns();
  second.say(call);
  Socket two = answer();
  EXPECT_TRUE(until([&] { return two.heard("/shop.Catalog/Watch"); }));
}

}  // namespace
}  // namespace meltemi::config
