// What a tunnel rests on ends it: the clock jumps, nothing sleeps. Applications are plain sockets that
// the loop's own turns look after.
#include <fcntl.h>
#include <sys/socket.h>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "tests/unit/rt/backends.h"

namespace meltemi::net::test {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr char kClient[] = "spiffe://cluster.local/ns/shop/sa/webapp";
constexpr char kServer[] = "spiffe://cluster.local/ns/shop/sa/catalog";
constexpr long kHour = 3600, kDay = 86400;

class CredentialTest : public rt::BackendTest {
 protected:
  void SetUp() override {
    rt::BackendTest::SetUp();
    upstream_ = std::move(*rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {}));
    ASSERT_EQ(fcntl(upstream_.get(), F_SETFL, O_NONBLOCK), 0);
    options_.wall_clock = [this] { return clock_; };
    tick_ = std::make_unique<rt::FnTimer>(
        [this] { loop().start(*tick_, loop().now() + milliseconds(2)); });
    loop().start(*tick_, loop().now());
  }
  void TearDown() override {
    near_.reset();
    far_.reset();
    tick_.reset();
    if (loop_) loop_->run_once(MonoTime{});
  }
  void make(LeafOptions client, LeafOptions server) {
    far_ = std::make_unique<Far>(loop(), ca_.context(kServer, server),
                                 *rt::local_address(upstream_.get()), options_);
    near_ = std::make_unique<Near>(loop(), ca_.context(kClient, client), far_->address,
                                   std::vector{id(kServer)}, options_);
  }
  struct Pair {
    UniqueFd client, app;
  };
  Pair open() {
    Pair out;
    out.client = std::move(*rt::make_tcp_socket(near_->address));
    sockaddr_storage storage;
    const socklen_t length = near_->address.to_sockaddr(storage);
    EXPECT_EQ(connect(out.client.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    EXPECT_TRUE(run_until([&] {
      out.app = UniqueFd(accept4(upstream_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      return bool(out.app);
    }));
    EXPECT_TRUE(passes(out)) << "it is there at both ends";
    return out;
  }
  bool passes(const Pair& pair) {
    char c = 'x';
    return send(pair.client.get(), &c, 1, MSG_NOSIGNAL) == 1 &&
           run_until([&] { return recv(pair.app.get(), &c, 1, MSG_DONTWAIT) == 1; });
  }
  // The end of the flow, as the receiving end reports it.
  Reason ended() {
    EXPECT_TRUE(run_until([&] { return !far_->flows.reports.empty(); }));
    return far_->flows.reports.empty() ? Reason::kOk : far_->flows.reports[0].reason;
  }
  void renew_client() { near_->dial.tls = ca_.context(kClient, {-kHour, 10 * kDay, ""}); }

  TestCa ca_{"test root", 20 * kDay};
  WallTime clock_ = std::chrono::system_clock::now();
  HboneOptions options_;
  UniqueFd upstream_;
  std::unique_ptr<Far> far_;
  std::unique_ptr<Near> near_;
  std::unique_ptr<rt::FnTimer> tick_;
};
MELTEMI_ALL_BACKENDS(CredentialTest);

TEST_P(CredentialTest, ATunnelTakesNoNewStreamAfterItsPeersCertificateEnds) {
  make({-kHour, kHour, ""}, {-kHour, 10 * kDay, ""});
  const Pair first = open();
  EXPECT_TRUE(passes(first));
  clock_ += hours(1) + seconds(1);
  renew_client();
  const Pair second = open();
  EXPECT_TRUE(passes(second)) << "on a tunnel of the new certificate";
  EXPECT_EQ(far_->stats.tunnels_opened, 2u);
  EXPECT_TRUE(passes(first)) << "the grace is not over";
  far_->server.check_credentials();
  EXPECT_EQ(far_->stats.credential_ends, 1u);
  EXPECT_TRUE(passes(first));
}

TEST_P(CredentialTest, StreamsEndWithTheCertificateAndItsGrace) {
  make({-kHour, kHour, ""}, {-kHour, 10 * kDay, ""});
  const Pair first = open();
  renew_client();
  clock_ += hours(1) + seconds(1);
  const Pair second = open();
  clock_ += options_.credential_grace;
  far_->server.check_credentials();
  EXPECT_EQ(ended(), Reason::kCertExpired);
  EXPECT_TRUE(passes(second));
  EXPECT_EQ(far_->flows.running(), 1u);
}

TEST_P(CredentialTest, WithoutGraceStreamsEndAtOnce) {
  options_.credential_grace = Duration::zero();
  make({-kHour, kHour, ""}, {-kHour, 10 * kDay, ""});
  const Pair first = open();
  clock_ += hours(1);
  far_->server.check_credentials();
  EXPECT_EQ(ended(), Reason::kCertExpired);
}

// The sending end does not wait for the peer to say so: here it is the server's that ends.
TEST_P(CredentialTest, ThePoolLeavesATunnelWhoseServersCertificateEnds) {
  make({-kHour, 10 * kDay, ""}, {-kHour, kHour, ""});
  const Pair first = open();
  clock_ += hours(1) + seconds(1);
  far_->tls = ca_.context(kServer, {-kHour, 10 * kDay, ""});
  const Pair second = open();
  EXPECT_TRUE(passes(second));
  EXPECT_EQ(near_->stats.tunnels_opened, 2u);
  near_->pool.check_credentials();
  EXPECT_EQ(near_->stats.credential_ends, 1u);
  clock_ += options_.credential_grace;
  near_->pool.check_credentials();
  EXPECT_TRUE(run_until([&] { return near_->flows.ended == 1; }));
  EXPECT_EQ(near_->flows.reports[0].reason, Reason::kCertExpired);
  EXPECT_TRUE(passes(second));
}

TEST_P(CredentialTest, AnIntermediateOrRootThatEndsFirstCounts) {
  TestCa brief("brief root", kHour);
  const auto leaf = [&](const char* name) { return brief.context(name, {-kHour, 10 * kDay, ""}); };
  far_ = std::make_unique<Far>(loop(), leaf(kServer), *rt::local_address(upstream_.get()), options_);
  near_ = std::make_unique<Near>(loop(), leaf(kClient), far_->address, std::vector{id(kServer)}, options_);
  const Pair first = open();
  clock_ += hours(1) + seconds(1) + options_.credential_grace;
  far_->server.check_credentials();
  EXPECT_EQ(ended(), Reason::kCertExpired);
}

TEST_P(CredentialTest, ARootThatIsTrustedNoMoreEndsItsTunnels) {
  make({-kHour, kDay, ""}, {-kHour, kDay, ""});
  const Pair first = open();
  TestCa next("next root");
  auto both = next.issue(kServer);
  both.roots_pem += ca_.root_pem();
  far_->server.check_roots(*TlsContext::create(both));
  EXPECT_TRUE(passes(first)) << "the old root is still trusted";
  far_->server.check_roots(next.context("spiffe://cluster.local/ns/shop/sa/another"));
  EXPECT_TRUE(passes(first)) << "another workload's roots";
  far_->server.check_roots(next.context(kServer));
  EXPECT_EQ(ended(), Reason::kPeerRevoked);
}

// However far the handshake has come when the roots change: no tunnel rests on the old one.
TEST_P(CredentialTest, ARootThatIsWithdrawnDuringTheHandshakeMakesNoTunnel) {
  TestCa next("next root");
  const auto distrusting = [&](const char* name) {
    auto material = ca_.issue(name);
    material.roots_pem = next.root_pem();
    return *TlsContext::create(material);
  };
  size_t under_way = 0, at_its_end = 0;
  for (const bool server : {true, false}) {
    for (int turns = 0; turns < 12; ++turns) {
      near_.reset();
      far_.reset();
      loop_->run_once(MonoTime{});
      make({-kHour, kDay, ""}, {-kHour, kDay, ""});
      sockaddr_storage storage;
      const UniqueFd client = std::move(*rt::make_tcp_socket(near_->address));
      const socklen_t length = near_->address.to_sockaddr(storage);
      ASSERT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
      ASSERT_TRUE(run_until([&] { return near_->pool.tunnels() == 1; }));
      for (int i = 0; i < turns; ++i) loop_->run_once(MonoTime{});
      HboneStats& stats = server ? far_->stats : near_->stats;
      if (stats.tunnels_opened > 0 || (server && far_->server.tunnels() == 0)) continue;
      ++under_way;
      if (server) {
        far_->tls = distrusting(kServer);
        far_->server.check_roots(far_->tls);
      } else {
        near_->dial.tls = distrusting(kClient);
        near_->pool.check_roots(near_->dial.tls);
      }
      ASSERT_TRUE(run_until([&] { return near_->failures.size() == 1; }));
      EXPECT_EQ(stats.tunnels_opened, 0u) << turns;
      for (const Error& error : server ? far_->failures : near_->failures) {
        at_its_end += error.reason == Reason::kPeerRevoked;
      }
    }
  }
  EXPECT_GT(under_way, 1u);
  EXPECT_GT(at_its_end, 0u) << "else no handshake had begun";
}

TEST_P(CredentialTest, TheEndIsSeenWithoutBeingAskedFor) {
  const auto end = ca_.context(kClient, {-kHour, kHour, ""})->not_after();
  clock_ = end - milliseconds(50);
  options_.credential_grace = Duration::zero();
  make({-kHour, kHour, ""}, {-kHour, 10 * kDay, ""});
  const Pair first = open();
  clock_ = end + hours(2);
  // Either end may be the first to look, and the other one then sees it go.
  EXPECT_TRUE(run_until([&] { return far_->flows.ended == 1 && near_->flows.ended == 1; }));
  EXPECT_TRUE(far_->flows.reports[0].reason == Reason::kCertExpired ||
              near_->flows.reports[0].reason == Reason::kCertExpired);
}

}  // namespace
}  // namespace meltemi::net::test
