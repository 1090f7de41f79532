// Who may talk to whom: every refused peer is refused for its own reason, at both ends.
#include <sys/socket.h>

#include <thread>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "tests/unit/rt/backends.h"

namespace meltemi::net::test {
namespace {

constexpr char kClient[] = "spiffe://cluster.local/ns/shop/sa/webapp";
constexpr char kServer[] = "spiffe://cluster.local/ns/shop/sa/catalog";

class TlsTest : public rt::BackendTest {
 protected:
  struct Outcome {
    Error near, far;
  };
  // A connection that must not come to be; what each end says.
  Outcome refused(std::shared_ptr<const TlsContext> server, std::shared_ptr<const TlsContext> client,
                  std::vector<model::Identity> expected) {
    Far far(loop(), std::move(server), *SocketAddress::parse("127.0.0.1:1"));
    Near near(loop(), std::move(client), far.address, std::move(expected));
    auto fd = rt::make_tcp_socket(near.address);
    sockaddr_storage storage;
    const socklen_t length = near.address.to_sockaddr(storage);
    EXPECT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    EXPECT_TRUE(run_until([&] { return !near.failures.empty() && !far.failures.empty(); }));
    Outcome out;
    if (!near.failures.empty()) out.near = near.failures[0];
    if (!far.failures.empty()) out.far = far.failures[0];
    EXPECT_EQ(far.flows.running(), 0u);
    return out;
  }
  TestCa ca;
};
MELTEMI_ALL_BACKENDS(TlsTest);

TEST_P(TlsTest, WrongServerIdentity) {
  const auto out = refused(ca.context(kServer), ca.context(kClient),
                           {id("spiffe://cluster.local/ns/shop/sa/other")});
  EXPECT_EQ(out.near.reason, Reason::kPeerIdentityMismatch);
  EXPECT_NE(out.near.detail.find(kServer), std::string::npos);
  EXPECT_EQ(out.far.reason, Reason::kTlsHandshake);
}

TEST_P(TlsTest, IdentityMustMatchExactly) {
  const auto out = refused(ca.context(std::string(kServer) + "2"), ca.context(kClient), {id(kServer)});
  EXPECT_EQ(out.near.reason, Reason::kPeerIdentityMismatch);
}

TEST_P(TlsTest, ClientOfAForeignTrustDomain) {
  const auto out = refused(ca.context(kServer), ca.context("spiffe://evil.example/ns/shop/sa/webapp"),
                           {id(kServer)});
  EXPECT_EQ(out.far.reason, Reason::kPeerIdentityMismatch);
  EXPECT_EQ(out.near.reason, Reason::kTlsHandshake);  // by alert, after its own handshake was done
}

TEST_P(TlsTest, ExpiredCertificates) {
  const LeafOptions expired{-7200, -3600, ""};
  const auto server = refused(ca.context(kServer, expired), ca.context(kClient), {id(kServer)});
  EXPECT_EQ(server.near.reason, Reason::kCertExpired);
  const auto client = refused(ca.context(kServer), ca.context(kClient, expired), {id(kServer)});
  EXPECT_EQ(client.far.reason, Reason::kCertExpired);
  EXPECT_EQ(client.near.reason, Reason::kCertExpired) << "it knows its own";
}

TEST_P(TlsTest, CertificateNotYetValid) {
  const LeafOptions early{3600, 7200, ""};
  const auto out = refused(ca.context(kServer, early), ca.context(kClient), {id(kServer)});
  EXPECT_EQ(out.near.reason, Reason::kCertNotYetValid);
}

TEST_P(TlsTest, ForeignCa) {
  TestCa other("other root");
  const auto server = refused(other.context(kServer), ca.context(kClient), {id(kServer)});
  EXPECT_EQ(server.near.reason, Reason::kTlsHandshake);
  EXPECT_EQ(server.far.reason, Reason::kTlsHandshake);
  auto client = other.issue(kClient);
  client.roots_pem = ca.root_pem();  // it trusts us, we do not trust it
  const auto out = refused(ca.context(kServer), *TlsContext::create(client), {id(kServer)});
  EXPECT_EQ(out.far.reason, Reason::kTlsHandshake);
}

TEST_P(TlsTest, NoExpectedIdentityIsRefused) {
  Far far(loop(), ca.context(kServer), *SocketAddress::parse("127.0.0.1:1"));
  Near near(loop(), ca.context(kClient), far.address, {});
  auto fd = rt::make_tcp_socket(near.address);
  sockaddr_storage storage;
  const socklen_t length = near.address.to_sockaddr(storage);
  ASSERT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  EXPECT_TRUE(run_until([&] { return !near.failures.empty(); }));
  EXPECT_EQ(near.failures[0].reason, Reason::kPeerIdentityMismatch);
}

TEST_P(TlsTest, GarbageOnThePortIsClosed) {
  Far far(loop(), ca.context(kServer), *SocketAddress::parse("127.0.0.1:1"));
  const std::string pieces[] = {
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n", std::string(40'000, '\0'),
      std::string("\x16\x03\x01\xff\xff", 5), std::string("\x16\x03\x01\x00\x05hello", 10),
      std::string("\x17\x03\x03\x00\x20", 5) + std::string(32, 'a')};
  size_t n = 0;
  for (const std::string& s : pieces) {
    auto fd = rt::make_tcp_socket(far.address);
    sockaddr_storage storage;
    const socklen_t length = far.address.to_sockaddr(storage);
    ASSERT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    ASSERT_GT(send(fd->get(), s.data(), s.size(), MSG_NOSIGNAL), 0);
    ++n;
    EXPECT_TRUE(run_until([&] { return far.failures.size() == n; })) << n;
  }
  for (const Error& e : far.failures) {
    EXPECT_TRUE(e.reason == Reason::kTlsHandshake || e.reason == Reason::kTlsRecord) << e.to_string();
    EXPECT_EQ(e.fault, Fault::kDownstream);
  }
  EXPECT_EQ(far.server.tunnels(), 0u);
}

TEST_P(TlsTest, SilentPeerIsDroppedAtTheHandshakeTimeout) {
  HboneOptions options;
  options.handshake_timeout = std::chrono::milliseconds(50);
  Far far(loop(), ca.context(kServer), *SocketAddress::parse("127.0.0.1:1"), options);
  auto fd = rt::make_tcp_socket(far.address);
  sockaddr_storage storage;
  const socklen_t length = far.address.to_sockaddr(storage);
  ASSERT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  EXPECT_TRUE(run_until([&] { return far.failures.size() == 1; }));
  EXPECT_EQ(far.failures[0].reason, Reason::kTlsHandshake);
}

TEST(TlsContext, NamesWhatIsWrong) {
  TestCa ca;
  auto good = ca.issue(kClient);
  auto check = [](TlsContext::Material m, const char* part) {
    auto made = TlsContext::create(m);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().reason, Reason::kBadConfig);
    EXPECT_NE(made.error().detail.find(part), std::string::npos) << made.error().detail;
  };
  auto m = good;
  m.cert_chain_pem = "nonsense";
  check(m, "certificate chain");
  m = good;
  m.private_key_pem = ca.issue(kClient).private_key_pem;
  check(m, "private key");
  m = good;
  m.private_key_pem = "";
  check(m, "private key");
  m = good;
  m.roots_pem = "";
  check(m, "roots");
  check(ca.issue("", {-3600, 86400, "DNS:localhost"}), "URI names");
  auto made = TlsContext::create(good);
  ASSERT_TRUE(made);
  EXPECT_EQ((*made)->identity().uri(), kClient);
  EXPECT_LT((*made)->not_before(), (*made)->not_after());
}

}  // namespace
}  // namespace meltemi::net::test
