// The certificate authority: what it grants, what it keeps on disk, and that a program which is not
// ours (openssl) agrees that the result is a chain.
#include "userspace/pki/authority.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "tests/unit/pki/support.h"

namespace meltemi::pki {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct AuthorityTest : ::testing::Test {
  AuthorityTest() { options.directory = directory.path() + "/ca"; }

  std::unique_ptr<CertificateAuthority> open(WallTime at = now()) {
    auto ca = CertificateAuthority::open(options, at);
    EXPECT_TRUE(ca) << ca.error().to_string();
    return ca ? std::move(*ca) : nullptr;
  }
  CertificateRequest request_for(const model::Identity& identity) {
    return *CertificateRequest::parse(*make_csr(key, identity));
  }
  WorkloadCertificatePtr get(CertificateAuthority& ca, const model::Identity& identity,
                             WallTime at = now()) {
    auto chain = ca.issue(request_for(identity), identity, seconds(0), at);
    EXPECT_TRUE(chain) << chain.error().to_string();
    auto cert = assemble(key, identity, *chain, at);
    EXPECT_TRUE(cert) << cert.error().to_string();
    return cert ? *cert : nullptr;
  }

  TemporaryDirectory directory;
  AuthorityOptions options;
  PrivateKey key = *PrivateKey::generate();
};

TEST_F(AuthorityTest, GrantsExactlyTheIdentityThatWasDecided) {
  auto ca = open();
  // The CSR asks for another one; what counts is what the caller of issue() granted.
  const auto asked = request_for(identity_of("kube-system", "admin"));
  auto chain = ca->issue(asked, identity_of("shop", "web"), seconds(0), now());
  ASSERT_TRUE(chain);
  ASSERT_EQ(chain->size(), 3u);  // leaf, issuer, root
  const auto leaf = parse_bundle(chain->front())->front();
  EXPECT_THAT(leaf.uris(), ElementsAre("spiffe://cluster.local/ns/shop/sa/web"));
  EXPECT_TRUE(leaf.dns_names().empty());
  EXPECT_EQ(leaf.subject(), "");
  EXPECT_FALSE(leaf.is_ca());
  EXPECT_EQ(ca->issued(), 1u);
}

TEST_F(AuthorityTest, RefusesAnIdentityOfAnotherTrustDomain) {
  auto ca = open();
  const auto foreign = *model::Identity::make("other.example", "shop", "web");
  const auto chain = ca->issue(request_for(foreign), foreign, seconds(0), now());
  ASSERT_FALSE(chain);
  EXPECT_EQ(chain.error().reason, Reason::kPermission);
}

TEST_F(AuthorityTest, LifetimeIsBackdatedAndBounded) {
  auto ca = open();
  const auto identity = identity_of("shop", "web");
  const WallTime at = now();
  const auto cert = get(*ca, identity, at);
  EXPECT_LE(cert->not_before, at - seconds(299));
  EXPECT_NEAR(static_cast<double>((cert->not_after - at) / seconds(1)), 86400, 2);
  // More than the limit is cut, and so is what would outlive the issuer.
  const auto chain = ca->issue(request_for(identity), identity, hours(24 * 5000), at);
  const auto leaf = parse_bundle(chain->front())->front();
  EXPECT_NEAR(static_cast<double>((leaf.not_after() - at) / hours(24)), 90, 1);
  options.max_ttl = hours(24 * 5000);
  const auto longer = open()->issue(request_for(identity), identity, hours(24 * 5000), at);
  const auto bundle = parse_bundle((*longer)[0] + (*longer)[1]);
  EXPECT_EQ((*bundle)[0].not_after(), (*bundle)[1].not_after());
}

// Istio's ztunnel renews at not_before + lifetime / 2, without jitter and without a floor.
TEST_F(AuthorityTest, AStockProxyWithAShortLifetimeAsksAFewTimesAMinute) {
  auto ca = open();
  const auto identity = identity_of("shop", "web");
  const auto request = request_for(identity);
  for (const int ttl : {10, 60, 120, 299, 300, 600}) {
    const WallTime start = now();
    int asked = 0;
    for (WallTime at = start; at < start + seconds(ttl) && asked < 100; ++asked) {
      const auto chain = ca->issue(request, identity, seconds(ttl), at);
      ASSERT_TRUE(chain) << chain.error().to_string();
      const auto leaf = parse_bundle(chain->front())->front();
      EXPECT_LE(leaf.not_before(), at) << "clocks differ, if only by a little";
      at = std::max(at, leaf.not_before() + (leaf.not_after() - leaf.not_before()) / 2);
    }
    EXPECT_LE(asked, 4) << "in a lifetime of " << ttl << " s";
  }
}

TEST_F(AuthorityTest, NothingIsSignedBeyondTheCaNorWithAnExpiredOne) {
  options.root_ttl = hours(3);
  options.issuer_ttl = hours(2);
  auto ca = open();
  const auto identity = identity_of("shop", "web");
  const WallTime at = now();
  const auto chain = ca->issue(request_for(identity), identity, hours(24), at);
  ASSERT_TRUE(chain);
  EXPECT_LE(parse_bundle(chain->front())->front().not_after(), at + hours(2));
  // The clock jumps past the issuer's end, with no rotation in between.
  const auto late = ca->issue(request_for(identity), identity, hours(24), at + hours(2) + seconds(1));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().reason, Reason::kIdentityUnavailable);
  EXPECT_FALSE(ca->issue_server(key, {"localhost"}, {}, at + hours(4)));
}

TEST_F(AuthorityTest, SecretsAreReadableByTheOwnerOnlyAndComeBack) {
  const auto roots = open()->root_bundle_pem();
  for (const char* name : {"root-key.pem", "ca-key.pem"}) {
    struct stat info {};
    ASSERT_EQ(stat((options.directory + "/" + name).c_str(), &info), 0) << name;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
  auto again = open();
  EXPECT_EQ(again->root_bundle_pem(), roots);
  // What one process issued verifies against what the next one publishes.
  const auto cert = get(*again, identity_of("shop", "web"));
  EXPECT_TRUE(verify_chain(cert->chain, *parse_bundle(roots), now(), Usage::kServer));
  EXPECT_TRUE(verify_chain(cert->chain, *parse_bundle(roots), now(), Usage::kClient));
}

TEST_F(AuthorityTest, AHalfWrittenIssuerIsMadeAgain) {
  const auto roots = open()->root_bundle_pem();
  std::filesystem::remove(options.directory + "/ca-cert.pem");
  auto ca = open();
  EXPECT_EQ(ca->root_bundle_pem(), roots);
  // A crash between the two writes of a renewal: the key is new, the certificate old.
  std::ofstream(options.directory + "/ca-key.pem") << PrivateKey::generate()->to_pem().view();
  EXPECT_TRUE(get(*open(), identity_of("shop", "web")));
}

TEST_F(AuthorityTest, AKeyOfWhichNobodyCanTellIsNotMadeAnew) {
  const std::string key = options.directory + "/root-key.pem";
  std::filesystem::create_directories(options.directory);
  std::filesystem::create_symlink("root-key.pem", key);  // ELOOP: neither there nor absent
  const auto ca = CertificateAuthority::open(options, now());
  ASSERT_FALSE(ca);
  EXPECT_EQ(ca.error().reason, Reason::kSystem) << ca.error().detail;
  EXPECT_TRUE(std::filesystem::is_symlink(key)) << "a new root was put in its place";
  EXPECT_FALSE(std::filesystem::exists(options.directory + "/root-cert.pem"));
}

TEST_F(AuthorityTest, NamesTheFileThatIsBad) {
  open();
  std::ofstream(options.directory + "/root-key.pem") << "garbage";
  const auto ca = CertificateAuthority::open(options, now());
  ASSERT_FALSE(ca);
  EXPECT_THAT(ca.error().detail, HasSubstr("/ca/root-key.pem"));
  EXPECT_EQ(ca.error().reason, Reason::kBadConfig);
}

TEST_F(AuthorityTest, ARootCertificateWithoutItsKeyIsNotOverwritten) {
  open();
  for (const char* name : {"root-key.pem", "ca-key.pem", "ca-cert.pem"}) {
    std::filesystem::remove(options.directory + "/" + name);
  }
  const auto ca = CertificateAuthority::open(options, now());
  ASSERT_FALSE(ca);
  EXPECT_THAT(ca.error().detail, HasSubstr("root-cert.pem"));
}

TEST_F(AuthorityTest, APluggedInIssuerSignsAndNothingIsWritten) {
  open();
  std::filesystem::remove(options.directory + "/root-key.pem");  // stays with its owner
  const auto before = std::filesystem::last_write_time(options.directory + "/ca-cert.pem");
  auto ca = open();
  EXPECT_TRUE(get(*ca, identity_of("shop", "web")));
  EXPECT_FALSE(ca->begin_root_rotation(now()));
  EXPECT_EQ(*ca->rotate(now()), false);
  EXPECT_EQ(std::filesystem::last_write_time(options.directory + "/ca-cert.pem"), before);
}

TEST_F(AuthorityTest, RootRotationKeepsEveryPairOfNeighboursInTrust) {
  options.max_ttl = hours(48);
  options.default_ttl = hours(24);
  WallTime at = now();
  auto ca = open(at);
  const auto identity = identity_of("shop", "web");
  std::vector<WorkloadCertificatePtr> in_use;
  const auto check = [&] {
    in_use.push_back(get(*ca, identity, at));
    std::erase_if(in_use, [&](const auto& cert) { return cert->not_after <= at; });
    for (const auto& a : in_use) {
      for (const auto& b : in_use) {
        const Status trusted = verify_chain(a->chain, b->roots, at);
        EXPECT_TRUE(trusted) << trusted.error().to_string();
      }
    }
  };
  const std::string first_root = ca->roots().front().to_pem();
  check();
  ASSERT_TRUE(ca->begin_root_rotation(at));
  EXPECT_FALSE(ca->begin_root_rotation(at)) << "one at a time";
  EXPECT_EQ(ca->roots().size(), 2u);
  size_t changes = 0;
  for (int hour = 0; hour < 200; hour += 4, at += hours(4)) {
    const auto rotated = ca->rotate(at);
    ASSERT_TRUE(rotated) << rotated.error().to_string();
    if (*rotated) {
      ++changes;
      ca = open(at);  // every step survives a restart
    }
    check();
  }
  EXPECT_EQ(changes, 2u);  // the new root signs; the old one leaves
  ASSERT_EQ(ca->roots().size(), 1u);
  EXPECT_NE(ca->roots().front().to_pem(), first_root);
}

TEST_F(AuthorityTest, TheIssuerIsRenewedBeforeItEnds) {
  WallTime at = now();
  auto ca = open(at);
  EXPECT_EQ(*ca->rotate(at + hours(24 * 100)), false);
  EXPECT_EQ(*ca->rotate(at + hours(24 * 190)), true);
  EXPECT_EQ(ca->roots().size(), 1u);
  EXPECT_TRUE(get(*ca, identity_of("shop", "web"), at + hours(24 * 400)));
}

TEST_F(AuthorityTest, OpensslAgreesWithOurChains) {
  auto ca = open();
  const auto cert = get(*ca, identity_of("shop", "web"));
  const auto roots = directory.write("roots.pem", cert->roots_pem);
  const auto chain = directory.write("chain.pem", cert->chain_pem);
  for (const char* purpose : {"sslserver", "sslclient"}) {
    const auto verified = run("openssl verify -x509_strict -purpose " + std::string(purpose) +
                              " -CAfile " + roots + " -untrusted " + chain + " " + chain);
    EXPECT_EQ(verified.status, 0) << verified.output;
  }
  const auto text = run("openssl x509 -noout -text -in " + chain).output;
  EXPECT_THAT(text, HasSubstr("X509v3 Subject Alternative Name: critical"));
  EXPECT_THAT(text, HasSubstr("URI:spiffe://cluster.local/ns/shop/sa/web"));
  EXPECT_THAT(text, HasSubstr("TLS Web Server Authentication, TLS Web Client Authentication"));
  EXPECT_THAT(text, HasSubstr("ecdsa-with-SHA256"));
}

TEST_F(AuthorityTest, ServerCertificateNamesHostsAndAddresses) {
  auto ca = open();
  const auto server = ca->issue_server(key, {"istiod.istio-system.svc", "localhost"},
                                       {*IpAddress::parse("10.1.2.3"), *IpAddress::parse("fd00::1")},
                                       now());
  ASSERT_TRUE(server) << server.error().to_string();
  const auto chain = parse_bundle(server->chain_pem);
  EXPECT_THAT(chain->front().dns_names(), ElementsAre("istiod.istio-system.svc", "localhost"));
  EXPECT_THAT(chain->front().ip_addresses(),
              ElementsAre(*IpAddress::parse("10.1.2.3"), *IpAddress::parse("fd00::1")));
  EXPECT_TRUE(verify_chain(*chain, ca->roots(), now(), Usage::kServer));
  EXPECT_FALSE(verify_chain(*chain, ca->roots(), now(), Usage::kClient));
}

}  // namespace
}  // namespace meltemi::pki
