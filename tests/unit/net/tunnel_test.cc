// The whole path on loopback: client socket, Near, HBONE, Far, upstream socket. The two applications
// are plain blocking sockets on threads.
#include <sys/socket.h>

#include <random>
#include <thread>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "tests/unit/rt/backends.h"

namespace meltemi::net::test {
namespace {

using std::chrono::milliseconds;

constexpr char kClient[] = "spiffe://cluster.local/ns/shop/sa/webapp";
constexpr char kServer[] = "spiffe://cluster.local/ns/shop/sa/catalog";

uint64_t mix(uint64_t hash, const uint8_t* p, size_t n) {
  // Eight bytes a step: the test must not be slower than what it tests.
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t v;
    std::memcpy(&v, p, 8);
    hash = (hash ^ v) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  }
  for (; n; ++p, --n) hash = (hash ^ *p) * 0x100000001B3ull;
  return hash;
}

// Upstream application: accepts, and runs `serve` on a thread per connection.
class App {
 public:
  explicit App(std::function<void(int)> serve) {
    fd_ = std::move(*rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {}));
    address = *rt::local_address(fd_.get());
    acceptor_ = std::thread([this, serve = std::move(serve)] {
      for (;;) {
        const int c = accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
        if (c < 0 || stop_) {
          if (c >= 0) ::close(c);
          return;
        }
        std::lock_guard lock(mutex_);
        threads_.emplace_back([serve, c] {
          UniqueFd fd(c);
          serve(c);
        });
      }
    });
  }
  ~App() {
    stop_ = true;
    shutdown(fd_.get(), SHUT_RDWR);
    acceptor_.join();
    for (auto& t : threads_) t.join();
  }
  SocketAddress address;

 private:
  UniqueFd fd_;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::thread acceptor_;
  std::vector<std::thread> threads_;
};

void echo(int fd) {
  std::vector<char> b(1 << 16);
  for (ssize_t n; (n = recv(fd, b.data(), b.size(), 0)) > 0;)
    for (ssize_t at = 0, w; at < n; at += w)
      if ((w = send(fd, b.data() + at, static_cast<size_t>(n - at), MSG_NOSIGNAL)) <= 0) return;
}

UniqueFd dial(const SocketAddress& to) {
  auto fd = std::move(*rt::make_tcp_socket(to));
  sockaddr_storage storage;
  const socklen_t length = to.to_sockaddr(storage);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  return fd;
}

class TunnelTest : public rt::BackendTest {
 protected:
  void make(const SocketAddress& upstream, const HboneOptions& options = {}) {
    far = std::make_unique<Far>(loop(), ca.context(kServer), upstream, options);
    near = std::make_unique<Near>(loop(), ca.context(kClient), far->address,
                                  std::vector{id(kServer)}, options);
  }
  void TearDown() override {
    near.reset();
    far.reset();
    if (loop_) loop_->run_once(MonoTime{});
  }
  // Runs the loop while `work` runs on a thread of its own.
  void during(std::function<void()> work, int seconds = 100) {
    std::atomic<bool> done{false};
    std::thread thread([&] {
      work();
      done = true;
      loop().post([] {});
    });
    EXPECT_TRUE(run_until([&] { return done.load(); }, seconds));
    thread.join();
  }
  TestCa ca;
  // Every flow has ended, and the kernel was told of it (closing takes one more turn): the threads
  // of the applications can be joined.
  void settle() {
    EXPECT_TRUE(run_until([&] { return near->flows.running() == 0 && far->flows.running() == 0; }));
    for (int i = 0; i < 3; ++i) loop().run_once(MonoTime{});
  }
  void expect_ended(size_t flows) {
    EXPECT_TRUE(run_until([&] { return near->flows.ended == flows && far->flows.ended == flows; }));
    settle();
  }
  std::unique_ptr<Far> far;
  std::unique_ptr<Near> near;
};
MELTEMI_ALL_BACKENDS(TunnelTest);

TEST_P(TunnelTest, CarriesARequestAndItsAnswer) {
  App app(echo);
  make(app.address);
  during([&] {
    UniqueFd c = dial(near->address);
    ASSERT_EQ(send(c.get(), "hello", 5, 0), 5);
    char b[16];
    ASSERT_EQ(recv(c.get(), b, 5, MSG_WAITALL), 5);
    EXPECT_EQ(std::string(b, 5), "hello");
  });
  EXPECT_EQ(far->last_authority, "10.1.2.3:80");
  EXPECT_EQ(far->last_peer.uri(), kClient);
  EXPECT_EQ(near->last_answer.status, 200);
  EXPECT_EQ(near->last_answer.peer.identity.uri(), kServer);
  expect_ended(1);
  for (Flows* f : {&near->flows, &far->flows}) {
    EXPECT_EQ(f->reports[0].reason, Reason::kOk);
    EXPECT_EQ(f->reports[0].closed_by, RelaySide::kClient);
    EXPECT_EQ(f->reports[0].bytes_up, 5u);
    EXPECT_EQ(f->reports[0].bytes_down, 5u);
  }
  EXPECT_EQ(near->pool.tunnels(), 1u);
  EXPECT_EQ(near->pool.streams(), 0u);
  EXPECT_EQ(far->server.streams(), 0u);
}

TEST_P(TunnelTest, BulkArrivesWholeBothWays) {
  static constexpr size_t kTotal = 192 << 20;  // each way
  App app([](int fd) {
    std::thread back([fd] {
      std::mt19937_64 rng(2);
      std::vector<uint64_t> b(1 << 15);
      size_t left = kTotal;
      while (left > 0) {
        for (auto& v : b) v = rng();
        const size_t n = std::min(left, b.size() * 8);
        if (send(fd, b.data(), n, MSG_NOSIGNAL) != static_cast<ssize_t>(n)) break;
        left -= n;
      }
      shutdown(fd, SHUT_WR);
    });
    std::vector<uint8_t> b(1 << 18);
    uint64_t hash = 1, total = 0;
    for (ssize_t n; (n = recv(fd, b.data(), b.size() & ~7ull, MSG_WAITALL)) > 0;) {
      hash = mix(hash, b.data(), static_cast<size_t>(n));
      total += static_cast<size_t>(n);
    }
    back.join();
    EXPECT_EQ(total, kTotal);
    std::mt19937_64 rng(1);
    uint64_t want = 1;
    std::vector<uint64_t> w(1 << 15);
    for (size_t left = kTotal; left > 0; left -= w.size() * 8) {
      for (auto& v : w) v = rng();
      want = mix(want, reinterpret_cast<uint8_t*>(w.data()), w.size() * 8);
    }
    EXPECT_EQ(hash, want);
  });
  make(app.address);
  during([&] {
    UniqueFd c = dial(near->address);
    std::thread up([&] {
      std::mt19937_64 rng(1);
      std::vector<uint64_t> b(1 << 15);
      for (size_t left = kTotal; left > 0; left -= b.size() * 8) {
        for (auto& v : b) v = rng();
        ASSERT_EQ(send(c.get(), b.data(), b.size() * 8, MSG_NOSIGNAL), static_cast<ssize_t>(b.size() * 8));
      }
      shutdown(c.get(), SHUT_WR);
    });
    std::vector<uint8_t> b(1 << 18);
    uint64_t hash = 1, total = 0, want = 1;
    for (ssize_t n; (n = recv(c.get(), b.data(), b.size(), MSG_WAITALL)) > 0;) {
      hash = mix(hash, b.data(), static_cast<size_t>(n));
      total += static_cast<size_t>(n);
    }
    up.join();
    std::mt19937_64 rng(2);
    std::vector<uint64_t> w(1 << 15);
    for (size_t left = kTotal; left > 0; left -= w.size() * 8) {
      for (auto& v : w) v = rng();
      want = mix(want, reinterpret_cast<uint8_t*>(w.data()), w.size() * 8);
    }
    EXPECT_EQ(total, kTotal);
    EXPECT_EQ(hash, want);
  });
}

TEST_P(TunnelTest, HalfCloseInBothOrders) {
  for (const bool client_first : {true, false}) {
    App app([client_first](int fd) {
      char b[64];
      if (client_first) {
        ssize_t n, total = 0;
        while ((n = recv(fd, b, sizeof b, 0)) > 0) total += n;
        EXPECT_EQ(n, 0);
        EXPECT_EQ(total, 3);
        EXPECT_EQ(send(fd, "answer", 6, MSG_NOSIGNAL), 6);
      } else {
        EXPECT_EQ(send(fd, "banner", 6, MSG_NOSIGNAL), 6);
        shutdown(fd, SHUT_WR);
        EXPECT_EQ(recv(fd, b, 3, MSG_WAITALL), 3);
        EXPECT_EQ(recv(fd, b, 1, 0), 0);
      }
    });
    make(app.address);
    during([&] {
      UniqueFd c = dial(near->address);
      char b[64];
      if (client_first) {
        ASSERT_EQ(send(c.get(), "ask", 3, 0), 3);
        shutdown(c.get(), SHUT_WR);
        EXPECT_EQ(recv(c.get(), b, 6, MSG_WAITALL), 6);
        EXPECT_EQ(recv(c.get(), b, 1, 0), 0);
      } else {
        EXPECT_EQ(recv(c.get(), b, 6, MSG_WAITALL), 6);
        EXPECT_EQ(recv(c.get(), b, 1, 0), 0);
        ASSERT_EQ(send(c.get(), "ask", 3, 0), 3);
        shutdown(c.get(), SHUT_WR);
      }
    });
    expect_ended(1);
    EXPECT_EQ(near->flows.reports[0].reason, Reason::kOk);
    EXPECT_EQ(near->flows.reports[0].closed_by,
              client_first ? RelaySide::kClient : RelaySide::kServer);
    EXPECT_EQ(far->flows.reports[0].reason, Reason::kOk);
    near.reset();
    far.reset();
  }
}

TEST_P(TunnelTest, ResetGoesThroughBothWays) {
  for (const bool by_client : {true, false}) {
    std::atomic<int> app_error{0};
    App app([&, by_client](int fd) {
      char b[8];
      EXPECT_EQ(recv(fd, b, 2, MSG_WAITALL), 2);
      if (by_client) {
        send(fd, "ok", 2, MSG_NOSIGNAL);
        app_error = recv(fd, b, 1, 0) < 0 ? errno : -1;
        loop().post([] {});
      } else {
        rt::set_reset_on_close(fd);
      }
    });
    make(app.address);
    int client_error = 0;
    during([&] {
      UniqueFd c = dial(near->address);
      char b[8];
      ASSERT_EQ(send(c.get(), "hi", 2, 0), 2);
      if (by_client) {
        ASSERT_EQ(recv(c.get(), b, 2, MSG_WAITALL), 2);
        rt::set_reset_on_close(c.get());
      } else {
        client_error = recv(c.get(), b, 1, 0) < 0 ? errno : -1;
      }
    });
    expect_ended(1);
    if (by_client) {
      EXPECT_TRUE(run_until([&] { return app_error != 0; }));
    }
    EXPECT_EQ(by_client ? app_error.load() : client_error, ECONNRESET);
    for (Flows* f : {&near->flows, &far->flows}) {
      EXPECT_EQ(f->reports[0].reason, Reason::kConnectReset);
      EXPECT_TRUE(f->reports[0].reset);
      EXPECT_EQ(f->reports[0].closed_by, by_client ? RelaySide::kClient : RelaySide::kServer);
    }
    near.reset();
    far.reset();
  }
}

TEST_P(TunnelTest, SlowReaderHoldsABoundedAmount) {
  rt::Budget held("held_bytes", 1ull << 40);
  HboneOptions options;
  options.held = &held;
  std::atomic<bool> go{false};
  std::atomic<uint64_t> got{0};
  App app([&](int fd) {
    while (!go) std::this_thread::sleep_for(milliseconds(5));
    std::vector<char> b(1 << 20);
    for (ssize_t n; (n = recv(fd, b.data(), b.size(), 0)) > 0;) got += static_cast<uint64_t>(n);
  });
  make(app.address, options);
  uint64_t peak = 0, sent = 0;
  during([&] {
    UniqueFd c = dial(near->address);
    std::vector<char> b(1 << 20, 'x');
    for (int idle = 0; idle < 60;) {
      const ssize_t n = send(c.get(), b.data(), b.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) {
        sent += static_cast<uint64_t>(n);
        idle = 0;
      } else {
        ++idle;
        std::this_thread::sleep_for(milliseconds(5));
      }
      peak = std::max(peak, held.used());
    }
    // A second flow is not held up by the stalled one.
    go = true;
    shutdown(c.get(), SHUT_WR);
    char e;
    recv(c.get(), &e, 1, 0);
  });
  EXPECT_GT(peak, 0u);
  EXPECT_LT(peak, 3u << 20);
  EXPECT_EQ(got, sent);
  expect_ended(1);
  EXPECT_EQ(held.used(), 0u);
}

TEST_P(TunnelTest, StalledStreamDoesNotHoldOthersUp) {
  std::atomic<bool> go{false};
  std::atomic<int> n{0};
  App app([&](int fd) {
    if (n++ == 0) {
      while (!go) std::this_thread::sleep_for(milliseconds(5));
    }
    echo(fd);
  });
  make(app.address);
  during([&] {
    UniqueFd stalled = dial(near->address);
    while (n == 0) std::this_thread::sleep_for(milliseconds(1));  // the other must not overtake it
    std::vector<char> b(1 << 20, 'x');
    for (int idle = 0; idle < 40;) {
      if (send(stalled.get(), b.data(), b.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        idle = 0;
      } else {
        ++idle;
        std::this_thread::sleep_for(milliseconds(2));
      }
    }
    UniqueFd other = dial(near->address);
    ASSERT_EQ(send(other.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(other.get(), b.data(), 4, MSG_WAITALL), 4);
    rt::set_reset_on_close(stalled.get());
    go = true;
  });
  EXPECT_EQ(near->pool.tunnels(), 1u);
  settle();
}

TEST_P(TunnelTest, ThousandConnectionsAtOnce) {
  App app([](int fd) { echo(fd); });
  make(app.address);
  during([&] {
    std::vector<UniqueFd> clients;
    for (int i = 0; i < 1000; ++i) clients.push_back(dial(near->address));
    for (int i = 0; i < 1000; ++i) {
      const std::string s = "message " + std::to_string(i);
      ASSERT_EQ(send(clients[i].get(), s.data(), s.size(), 0), static_cast<ssize_t>(s.size()));
    }
    for (int i = 0; i < 1000; ++i) {
      const std::string s = "message " + std::to_string(i);
      char b[32] = "";
      ASSERT_EQ(recv(clients[i].get(), b, s.size(), MSG_WAITALL), static_cast<ssize_t>(s.size()));
      ASSERT_EQ(b, s);
    }
  });
  expect_ended(1000);
  EXPECT_GE(near->pool.tunnels(), 10u);  // 100 streams each
  EXPECT_LE(near->pool.tunnels(), 20u);
  EXPECT_EQ(near->failures.size(), 0u);
}

TEST_P(TunnelTest, UpstreamThatRefusesIsA503) {
  auto closed = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto nobody = *rt::local_address(closed->get());
  closed->reset();
  make(nobody);
  during([&] {
    UniqueFd c = dial(near->address);
    char b;
    EXPECT_LE(recv(c.get(), &b, 1, 0), 0);
  });
  ASSERT_EQ(near->failures.size(), 1u);
  EXPECT_EQ(near->failures[0].reason, Reason::kTunnelHttpStatus);
  EXPECT_EQ(near->statuses[0], 503);
}

TEST_P(TunnelTest, RelayAbortedByPolicyCutsBothEnds) {
  App app(echo);
  make(app.address);
  int error = 0;
  during([&] {
    UniqueFd c = dial(near->address);
    char b[4];
    ASSERT_EQ(send(c.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(c.get(), b, 4, MSG_WAITALL), 4);
    loop().post([&] { far->flows.first()->abort(Reason::kPolicyChanged); });
    error = recv(c.get(), b, 1, 0) < 0 ? errno : -1;
  });
  EXPECT_EQ(error, ECONNRESET);
  expect_ended(1);
  EXPECT_EQ(far->flows.reports[0].reason, Reason::kPolicyChanged);
  EXPECT_EQ(far->flows.reports[0].closed_by, RelaySide::kNone);
}

TEST_P(TunnelTest, DrainedTunnelFinishesItsFlowsAndANewOneIsDialled) {
  App app(echo);
  make(app.address);
  during([&] {
    UniqueFd a = dial(near->address);
    char b[4];
    ASSERT_EQ(send(a.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(a.get(), b, 4, MSG_WAITALL), 4);
    loop().post([&] { far->server.drain(); });
    std::this_thread::sleep_for(milliseconds(50));
    UniqueFd c = dial(near->address);
    ASSERT_EQ(send(c.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(c.get(), b, 4, MSG_WAITALL), 4);
    ASSERT_EQ(send(a.get(), "pong", 4, 0), 4);
    ASSERT_EQ(recv(a.get(), b, 4, MSG_WAITALL), 4);
    EXPECT_EQ(far->server.tunnels(), 2u);
  });
  settle();
  EXPECT_TRUE(run_until([&] { return far->server.tunnels() == 1; }));
  EXPECT_TRUE(run_until([&] { return near->pool.tunnels() == 1; }));
  EXPECT_EQ(near->failures.size(), 0u);
}

TEST_P(TunnelTest, LostTunnelResetsItsFlows) {
  App app(echo);
  make(app.address);
  int error = 0;
  during([&] {
    UniqueFd c = dial(near->address);
    char b[4];
    ASSERT_EQ(send(c.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(c.get(), b, 4, MSG_WAITALL), 4);
    loop().post([&] { far->server.close(Reason::kPeerRevoked); });
    error = recv(c.get(), b, 1, 0) < 0 ? errno : -1;
  });
  EXPECT_EQ(error, ECONNRESET);
  expect_ended(1);
  EXPECT_EQ(far->flows.reports[0].reason, Reason::kPeerRevoked);
  EXPECT_EQ(near->flows.reports[0].reason, Reason::kConnectReset);
}

TEST_P(TunnelTest, IdleTunnelIsReleased) {
  HboneOptions options;
  options.idle_release = milliseconds(30);
  options.h2.ping_interval = milliseconds(20);
  App app(echo);
  make(app.address, options);
  during([&] {
    UniqueFd c = dial(near->address);
    char b[4];
    ASSERT_EQ(send(c.get(), "ping", 4, 0), 4);
    ASSERT_EQ(recv(c.get(), b, 4, MSG_WAITALL), 4);
  });
  settle();
  EXPECT_TRUE(run_until([&] { return near->pool.tunnels() == 0 && far->server.tunnels() == 0; }));
}

TEST_P(TunnelTest, IdleConnectionsHoldNoBuffers) {
  App app(echo);
  rt::Budget held("held_bytes", 1 << 30);
  HboneOptions options;
  options.held = &held;
  make(app.address, options);
  size_t mapped = 0;
  during([&] {
    std::vector<UniqueFd> clients;
    for (int i = 0; i < 50; ++i) {
      clients.push_back(dial(near->address));
      char b[4];
      ASSERT_EQ(send(clients[i].get(), "ping", 4, 0), 4);
      ASSERT_EQ(recv(clients[i].get(), b, 4, MSG_WAITALL), 4);
    }
    std::this_thread::sleep_for(milliseconds(20));
    EXPECT_EQ(held.used(), 0u);
    mapped = loop().buffers().mapped_bytes();
  });
  EXPECT_LT(mapped, 4u << 20);  // two tunnels' worth, whatever the connections
  settle();
}

TEST_P(TunnelTest, AHundredCallsAtOnceAllGoThroughWhereThePeerTakesTenStreams) {
  App app(echo);
  HboneOptions options;
  options.h2.max_concurrent_streams = 10;
  make(app.address, options);
  during([&] {
    std::vector<std::thread> clients;
    for (int i = 0; i < 100; ++i) {
      clients.emplace_back([&] {
        auto fd = dial(near->address);
        EXPECT_EQ(send(fd.get(), "hi", 2, 0), 2);
        char b[2];
        EXPECT_EQ(recv(fd.get(), b, 2, MSG_WAITALL), 2);
      });
    }
    for (auto& t : clients) t.join();
  });
  settle();
  EXPECT_TRUE(near->failures.empty());
  EXPECT_EQ(near->flows.ended, 100u);
}

// Admission at the tunnel's port: four strangers fit; who says nothing gives way to who comes next.
class AdmittedTunnels : public TunnelTest {
 protected:
  void SetUp() override {
    TunnelTest::SetUp();
    if (IsSkipped()) return;
    rt::AdmissionOptions options;
    options.descriptors = 100;
    options.small_share = options.pending = 4;
    door = std::make_unique<rt::Admission>(options);
    const auto id = door->add_class({.name = "hbone", .limit = 4});
    app = std::make_unique<App>(echo);
    make(app->address);
    far->admit = [this, id] {
      auto lease = door->admit(id, {.source = IpAddress::v4(0x7f000001)}, loop().now());
      EXPECT_TRUE(lease) << lease.error().detail;
      return lease ? std::move(*lease) : rt::Lease();
    };
  }
  void TearDown() override {
    TunnelTest::TearDown();
    app.reset();
    if (door) EXPECT_EQ(door->held(), 0u);
  }
  void call_once() {
    during([&] {
      auto fd = dial(near->address);
      ASSERT_EQ(send(fd.get(), "hi", 2, 0), 2);
      char b[2];
      ASSERT_EQ(recv(fd.get(), b, 2, MSG_WAITALL), 2);
    });
    settle();
    for (const Error& e : near->failures) ADD_FAILURE() << e.to_string();
  }
  uint64_t outcome(rt::Outcome o) { return door->rows()[0].outcomes[static_cast<size_t>(o)]; }
  std::unique_ptr<rt::Admission> door;
  std::unique_ptr<App> app;
};
MELTEMI_ALL_BACKENDS(AdmittedTunnels);

TEST_P(AdmittedTunnels, ASilentConnectionGivesWayToANewOne) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 12; ++i) silent.push_back(dial(far->address));
  ASSERT_TRUE(run_until([&] { return outcome(rt::Outcome::kGaveWay) == 8; }));
  call_once();
  EXPECT_EQ(outcome(rt::Outcome::kGaveWay), 9u);
  EXPECT_TRUE(near->failures.empty());
}

TEST_P(AdmittedTunnels, ASilentConnectionIsClosedAtItsDeadlineAndSaidToBe) {
  auto silent = dial(far->address);
  ASSERT_TRUE(run_until([&] { return door->held() == 1; }));
  door->sweep(loop().now() + door->options().first_byte);
  ASSERT_TRUE(run_until([&] { return door->held() == 0; }));
  ASSERT_EQ(far->failures.size(), 1u);
  EXPECT_EQ(far->failures[0].detail, "nothing was sent in time");
}

TEST_P(AdmittedTunnels, AnIdleTunnelGivesWayByGoawayAndTheNextCallDialsAgain) {
  call_once();
  EXPECT_EQ(far->server.tunnels(), 1u);
  std::vector<rt::Lease> working;
  for (int i = 0; i < 4; ++i) {
    working.push_back(far->admit());
    working.back().active();
  }
  ASSERT_TRUE(run_until([&] { return far->server.tunnels() == 0; }));
  working.clear();
  call_once();
  EXPECT_TRUE(near->failures.empty());
}

// The other end: tunnels that we keep although they carry nothing have a place, and give it up for others.
TEST_P(AdmittedTunnels, AnIdleTunnelOfOursHasAPlaceAndGivesWay) {
  rt::AdmissionOptions few;
  few.descriptors = 40;
  few.small_share = few.descriptors;
  rt::Admission own(few);
  const auto kept = own.add_class({.name = "idle_tunnel", .limit = 1, .starts_silent = false});
  HboneOptions options;
  options.h2.ping_interval = milliseconds(20);
  options.h2.ping_timeout = std::chrono::seconds(2);  // also how often it is looked at
  options.idle_place = [&](const TunnelTarget&) { return own.admit(kept, {}, loop().now()); };
  make(app->address, options);
  far->admit = nullptr;
  call_once();
  ASSERT_TRUE(run_until([&] { return own.held() == 1; }));
  call_once();
  EXPECT_EQ(near->stats.tunnels_opened, 1u) << "it is used again";
  ASSERT_TRUE(run_until([&] { return own.held() == 1; }));
  auto other = own.admit(kept, {}, loop().now());
  ASSERT_TRUE(other);
  other->active();
  ASSERT_TRUE(run_until([&] { return near->pool.tunnels() == 0; })) << "it gave way";
  call_once();
  ASSERT_TRUE(run_until([&] { return near->pool.tunnels() == 0; })) << "there is no place";
  other->release();
  EXPECT_TRUE(near->failures.empty());
  near.reset();
  loop().run_once(MonoTime{});
  EXPECT_EQ(own.held(), 0u);
}

TEST_P(AdmittedTunnels, AHandshakeThatStopsHasADeadline) {
  auto fd = dial(far->address);
  ASSERT_EQ(send(fd.get(), "\x16\x03\x01", 3, 0), 3);
  // A silent one has gone after this; one that has begun is left its time.
  loop().run_until([&] { return false; }, MonoClock::now() + milliseconds(50));
  door->sweep(loop().now() + door->options().first_byte);
  EXPECT_EQ(door->held(), 1u);
  door->sweep(loop().now() + door->options().handshake);
  ASSERT_TRUE(run_until([&] { return door->held() == 0; }));
  EXPECT_EQ(outcome(rt::Outcome::kHandshake), 1u);
}

}  // namespace
}  // namespace meltemi::net::test
