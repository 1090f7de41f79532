// Relays between two TCP connections (passthrough), the budget of held bytes, flows on several
// workers, rotation of credentials under live flows.
#include <sys/socket.h>

#include <latch>
#include <thread>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "tests/unit/rt/backends.h"
#include "userspace/rt/worker.h"

namespace meltemi::net::test {
namespace {

using std::chrono::milliseconds;

constexpr char kClient[] = "spiffe://cluster.local/ns/shop/sa/webapp";
constexpr char kServer[] = "spiffe://cluster.local/ns/shop/sa/catalog";

struct Pair {
  UniqueFd app, proxy;
};
Pair tcp_pair() {
  auto listener = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto address = *rt::local_address(listener->get());
  auto app = rt::make_tcp_socket(address);
  sockaddr_storage storage;
  const socklen_t length = address.to_sockaddr(storage);
  EXPECT_EQ(connect(app->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  return {std::move(*app), UniqueFd(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC))};
}

UniqueFd dial(const SocketAddress& to) {
  auto fd = std::move(*rt::make_tcp_socket(to));
  sockaddr_storage storage;
  const socklen_t length = to.to_sockaddr(storage);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  return fd;
}

// Upstream on the loop: echoes, or swallows nothing at all.
class Upstream {
 public:
  Upstream(rt::Loop& loop, bool reads) : loop_(loop), reads_(reads) {
    auto fd = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
    address = *rt::local_address(fd->get());
    listener_ = std::make_unique<rt::Listener>(loop, std::move(*fd), [this](UniqueFd c) {
      echoes_.push_back(std::make_unique<Echo>(make_tcp_stream(loop_, std::move(c)), reads_));
    });
  }
  SocketAddress address;

 private:
  struct Echo final : StreamEvents {
    Echo(StreamPtr s, bool reads) : stream(std::move(s)) {
      stream->set_events(this);
      if (reads) stream->resume_read();
    }
    void on_data(const Slices& d) override {
      if (!stream->write(d)) stream->pause_read();
    }
    void on_read_end() override { stream->shutdown_write(); }
    void on_writable() override { stream->resume_read(); }
    void on_closed(const StreamEnd&) override {}
    StreamPtr stream;
  };
  rt::Loop& loop_;
  bool reads_;
  std::unique_ptr<rt::Listener> listener_;
  std::vector<std::unique_ptr<Echo>> echoes_;
};

class RelayTest : public rt::BackendTest {
 protected:
  void SetUp() override {
    rt::BackendTest::SetUp();
    if (!loop_) return;
    flows = std::make_unique<Flows>(loop());
    client = tcp_pair();
    server = tcp_pair();
  }
  Relay& join(Duration idle = {}) {
    auto r = std::make_unique<Relay>(make_tcp_stream(loop(), std::move(client.proxy)),
                                     make_tcp_stream(loop(), std::move(server.proxy)), *owner(), idle);
    relay = std::move(r);
    relay->start();
    return *relay;
  }
  struct Owner final : RelayOwner {
    void on_relay_end(Relay&, const RelayReport& r) override {
      report = r;
      ++ended;
    }
    RelayReport report;
    int ended = 0;
  };
  Owner* owner() { return &owner_; }
  void TearDown() override {
    relay.reset();
    flows.reset();
    if (loop_) loop_->run_once(MonoTime{});
  }
  Owner owner_;
  Pair client, server;
  std::unique_ptr<Relay> relay;
  std::unique_ptr<Flows> flows;
};
MELTEMI_ALL_BACKENDS(RelayTest);

TEST_P(RelayTest, HalfCloseThenTheOtherHalf) {
  join();
  ASSERT_EQ(send(client.app.get(), "up", 2, 0), 2);
  shutdown(client.app.get(), SHUT_WR);
  char b[8];
  EXPECT_TRUE(run_until([&] { return recv(server.app.get(), b, 8, MSG_DONTWAIT) == 2; }));
  EXPECT_TRUE(run_until([&] { return recv(server.app.get(), b, 8, MSG_DONTWAIT) == 0; }));
  EXPECT_EQ(owner_.ended, 0);
  ASSERT_EQ(send(server.app.get(), "down", 4, 0), 4);
  EXPECT_TRUE(run_until([&] { return recv(client.app.get(), b, 8, MSG_DONTWAIT) == 4; }));
  server.app.reset();
  EXPECT_TRUE(run_until([&] { return owner_.ended == 1; }));
  EXPECT_EQ(owner_.report.reason, Reason::kOk);
  EXPECT_EQ(owner_.report.closed_by, RelaySide::kClient);
  EXPECT_EQ(owner_.report.bytes_up, 2u);
  EXPECT_EQ(owner_.report.bytes_down, 4u);
}

TEST_P(RelayTest, ResetGoesThrough) {
  join();
  ASSERT_EQ(send(server.app.get(), "x", 1, 0), 1);
  char b[8];
  EXPECT_TRUE(run_until([&] { return recv(client.app.get(), b, 8, MSG_DONTWAIT) == 1; }));
  rt::set_reset_on_close(server.app.get());
  server.app.reset();
  EXPECT_TRUE(run_until([&] { return owner_.ended == 1; }));
  for (int i = 0; i < 3; ++i) loop().run_once(MonoTime{});
  EXPECT_EQ(recv(client.app.get(), b, 8, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(owner_.report.reason, Reason::kConnectReset);
  EXPECT_EQ(owner_.report.closed_by, RelaySide::kServer);
}

TEST_P(RelayTest, IdleFlowIsEnded) {
  join(milliseconds(30));
  EXPECT_TRUE(run_until([&] { return owner_.ended == 1; }));
  EXPECT_EQ(owner_.report.reason, Reason::kIdleTimeout);
  EXPECT_EQ(owner_.report.closed_by, RelaySide::kNone);
}

TEST_P(RelayTest, ClosedStreamSaysItsLastWordsToASenderThatGoesOn) {
  struct Events final : StreamEvents {
    void on_data(const Slices&) override { ++data; }
    void on_read_end() override {}
    void on_writable() override {}
    void on_closed(const StreamEnd& e) override {
      end = e;
      ++closed;
    }
    int data = 0, closed = 0;
    StreamEnd end;
  } events;
  StreamPtr stream = make_tcp_stream(loop(), std::move(client.proxy));
  stream->set_events(&events);
  const std::vector<char> upload(200'000, 'u');
  ASSERT_GT(send(client.app.get(), upload.data(), upload.size(), MSG_DONTWAIT), 0);
  stream->write(as_bytes("413 too large"));
  stream->close();
  loop().run_once(MonoTime{});
  std::string got;
  EXPECT_TRUE(run_until([&] {
    char b[64];
    send(client.app.get(), "more", 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    const ssize_t n = recv(client.app.get(), b, sizeof b, MSG_DONTWAIT);
    if (n > 0) got.append(b, static_cast<size_t>(n));
    return n == 0;
  }));
  EXPECT_EQ(got, "413 too large");
  EXPECT_EQ(events.closed, 0);
  client.app.reset();
  EXPECT_TRUE(run_until([&] { return events.closed == 1; }));
  EXPECT_EQ(events.end.reason, Reason::kOk);
  EXPECT_EQ(events.data, 0);
}

TEST_P(RelayTest, DestroyedRelayResetsBothSides) {
  join();
  loop().run_once(MonoTime{});
  relay.reset();
  for (int i = 0; i < 4; ++i) loop().run_once(MonoTime{});
  char b;
  EXPECT_EQ(recv(client.app.get(), &b, 1, 0), -1);
  EXPECT_EQ(recv(server.app.get(), &b, 1, 0), -1);
  EXPECT_EQ(owner_.ended, 0);
}

TEST_P(RelayTest, HeldBytesStayWithinTheBudget) {
  rt::Budget held("held_bytes", 2 << 20);
  HboneOptions options;
  options.held = &held;
  TestCa ca;
  Upstream upstream(loop(), false);
  Far far(loop(), ca.context(kServer), upstream.address, options);
  Near near(loop(), ca.context(kClient), far.address, {id(kServer)}, options);
  std::vector<UniqueFd> clients;
  std::vector<char> data(1 << 20, 'x');
  for (int i = 0; i < 60; ++i) clients.push_back(dial(near.address));
  uint64_t peak = 0;
  for (int idle = 0; idle < 40;) {
    bool moved = false;
    for (auto& c : clients)
      moved |= c && send(c.get(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
    loop().run_once(MonoClock::now() + milliseconds(2));
    idle = moved ? 0 : idle + 1;
    peak = std::max(peak, held.used());
  }
  EXPECT_LE(peak, held.limit());
  EXPECT_GT(peak, held.limit() / 2);
  size_t cut = 0;
  for (Flows* f : {&near.flows, &far.flows})
    for (const RelayReport& r : f->reports) cut += r.reason == Reason::kLimitExceeded;
  EXPECT_GT(cut, 0u);
  EXPECT_GT(near.flows.running(), 0u);  // the others live
}

TEST_P(RelayTest, NewCredentialsServeNewTunnelsOnly) {
  TestCa ca;
  Upstream upstream(loop(), true);
  Far far(loop(), ca.context(kServer), upstream.address);
  Near near(loop(), ca.context(kClient), far.address, {id(kServer)});
  UniqueFd old = dial(near.address);
  ASSERT_EQ(send(old.get(), "1", 1, 0), 1);
  char b[4];
  EXPECT_TRUE(run_until([&] { return recv(old.get(), b, 1, MSG_DONTWAIT) == 1; }));
  // Both sides rotate; the client's new certificate names another workload, so that it shows.
  far.tls = ca.context(kServer);
  near.dial.tls = ca.context("spiffe://cluster.local/ns/shop/sa/renewed");
  near.pool.drain("test");
  UniqueFd fresh = dial(near.address);
  ASSERT_EQ(send(fresh.get(), "2", 1, 0), 1);
  EXPECT_TRUE(run_until([&] { return recv(fresh.get(), b, 1, MSG_DONTWAIT) == 1; }));
  EXPECT_EQ(far.last_peer.uri(), "spiffe://cluster.local/ns/shop/sa/renewed");
  ASSERT_EQ(send(old.get(), "3", 1, 0), 1);
  EXPECT_TRUE(run_until([&] { return recv(old.get(), b, 1, MSG_DONTWAIT) == 1; }));
  EXPECT_EQ(near.pool.tunnels(), 2u);
  old.reset();
  EXPECT_TRUE(run_until([&] { return near.pool.tunnels() == 1; }));
  EXPECT_EQ(near.flows.reports[0].reason, Reason::kOk);
}

TEST_P(RelayTest, FlowsAreHandedToOtherWorkers) {
  constexpr int kFlows = 60;
  TestCa ca;
  auto pool = rt::WorkerPool::start(3, "flows", GetParam().options);
  ASSERT_TRUE(pool);
  std::unique_ptr<Upstream> upstream;
  std::unique_ptr<Far> far;
  std::vector<std::unique_ptr<Near>> nears(2);
  std::unique_ptr<rt::Listener> home;
  SocketAddress entry;
  // Worker 0 accepts and runs the far end, workers 1 and 2 run flows.
  (*pool)->run_on_all([&](rt::Worker& w) {
    if (w.index() != 0) return;
    upstream = std::make_unique<Upstream>(w.loop(), true);
    far = std::make_unique<Far>(w.loop(), ca.context(kServer), upstream->address);
  });
  (*pool)->run_on_all([&](rt::Worker& w) {
    if (w.index() == 0) return w.add_load(1'000'000);
    nears[w.index() - 1] = std::make_unique<Near>(w.loop(), ca.context(kClient), far->address,
                                                  std::vector{id(kServer)});
  });
  (*pool)->run_on_all([&](rt::Worker& w) {
    if (w.index() != 0) return;
    auto fd = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
    entry = *rt::local_address(fd->get());
    home = std::make_unique<rt::Listener>(w.loop(), std::move(*fd), [&](UniqueFd c) {
      rt::Worker& to = (*pool)->least_loaded();
      to.add_load(1);
      to.post([&nears, &to, c = std::move(c)]() mutable { nears[to.index() - 1]->accept(std::move(c)); });
    });
  });
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int t = 0; t < 3; ++t)
    clients.emplace_back([&, t] {
      for (int i = t; i < kFlows; i += 3) {
        UniqueFd c = dial(entry);
        char b[8] = "";
        good += send(c.get(), "hello", 5, 0) == 5 && recv(c.get(), b, 5, MSG_WAITALL) == 5 &&
                std::string(b) == "hello";
      }
    });
  for (auto& c : clients) c.join();
  EXPECT_EQ(good, kFlows);
  EXPECT_EQ((*pool)->worker(1).load() + (*pool)->worker(2).load(), kFlows);
  EXPECT_GT((*pool)->worker(1).load(), 0);
  EXPECT_GT((*pool)->worker(2).load(), 0);
  (*pool)->run_on_all([&](rt::Worker& w) {
    if (w.index() == 0) home.reset();
    else nears[w.index() - 1].reset();
  });
  (*pool)->run_on_all([&](rt::Worker& w) {
    if (w.index() != 0) return;
    far.reset();
    upstream.reset();
  });
  (*pool)->stop();
}

}  // namespace
}  // namespace meltemi::net::test
