// Reading certificates and requests that others made, among them such as nobody should trust.
#include "userspace/pki/certificate.h"

#include <gmock/gmock.h>

#include "tests/unit/pki/support.h"
#include "userspace/pki/csr.h"
#include "userspace/pki/rotation.h"

namespace meltemi::pki {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A certificate made by openssl with the given subjectAltName line.
Result<Certificate> made_by_openssl(const TemporaryDirectory& directory, const std::string& names) {
  const auto made = run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
                        "-subj / -keyout /dev/null -out " + directory.path() + "/c.pem " +
                        (names.empty() ? "" : "-addext 'subjectAltName=" + names + "'"));
  if (made.status != 0) return fail(Reason::kSystem, Fault::kInternal, made.output);
  std::ifstream in(directory.path() + "/c.pem");
  const std::string pem((std::istreambuf_iterator<char>(in)), {});
  return parse_bundle(pem)->front();
}

TEST(Certificate, ABundleWithABrokenEntryIsRefusedAsAWhole) {
  const TemporaryDirectory directory;
  const std::string pem = made_by_openssl(directory, "DNS:a")->to_pem();
  EXPECT_EQ(parse_bundle(pem + "\n# comment\n" + pem)->size(), 2u);
  EXPECT_FALSE(parse_bundle(""));
  EXPECT_FALSE(parse_bundle("not a certificate"));
  std::string broken = pem;
  broken[broken.size() / 2] = broken[broken.size() / 2] == 'A' ? 'B' : 'A';
  broken.insert(40, "!!!!");
  EXPECT_FALSE(parse_bundle(pem + broken));
  std::string many;
  for (size_t i = 0; i <= kMaxPemCertificates; ++i) many += pem;
  EXPECT_FALSE(parse_bundle(many));
}

TEST(Certificate, ChainErrorsSayWhy) {
  const TemporaryDirectory directory;
  AuthorityOptions options;
  options.directory = directory.path() + "/ca";
  auto ca = CertificateAuthority::open(options, now());
  options.directory = directory.path() + "/other";
  auto other = CertificateAuthority::open(options, now());
  const auto key = *PrivateKey::generate();
  const auto identity = identity_of("shop", "web");
  const auto request = *CertificateRequest::parse(*make_csr(key, identity));
  const auto pem = *(*ca)->issue(request, identity, seconds(3600), now());
  const auto cert = *assemble(key, identity, pem, now());

  EXPECT_EQ(verify_chain(cert->chain, (*other)->roots(), now()).error().reason, Reason::kTlsHandshake);
  const auto late = verify_chain(cert->chain, cert->roots, now() + hours(2));
  EXPECT_EQ(late.error().reason, Reason::kCertExpired);
  EXPECT_THAT(late.error().detail, HasSubstr("spiffe://cluster.local/ns/shop/sa/web"));
  EXPECT_EQ(verify_chain(cert->chain, cert->roots, now() - hours(2)).error().reason,
            Reason::kCertNotYetValid);

  // What a CA may not get away with.
  EXPECT_FALSE(assemble(key, identity_of("shop", "db"), pem, now()));
  EXPECT_FALSE(assemble(*PrivateKey::generate(), identity, pem, now()));
  EXPECT_FALSE(assemble(key, identity, {pem.front()}, now()));
  EXPECT_FALSE(assemble(key, identity, {pem[0], pem[1], (*other)->root_bundle_pem()}, now()));
  EXPECT_FALSE(assemble(key, identity, {pem[0], pem.back()}, now())) << "the issuer is missing";
}

TEST(Csr, CarriesOneCriticalNameAndNoSubject) {
  const TemporaryDirectory directory;
  const auto pem = *make_csr(*PrivateKey::generate(), identity_of("shop", "web"));
  const auto text = run("openssl req -noout -text -verify -in " + directory.write("r.pem", pem)).output;
  EXPECT_THAT(text, HasSubstr("verify OK"));
  EXPECT_THAT(text, HasSubstr("X509v3 Subject Alternative Name: critical"));
  EXPECT_THAT(text, HasSubstr("URI:spiffe://cluster.local/ns/shop/sa/web"));
  EXPECT_THAT(text, HasSubstr("Subject: \n"));
  EXPECT_THAT(text, HasSubstr("prime256v1"));
  EXPECT_THAT(CertificateRequest::parse(pem)->uris(),
              ElementsAre("spiffe://cluster.local/ns/shop/sa/web"));
  EXPECT_FALSE(make_csr(*PrivateKey::generate(), model::Identity()));
}

TEST(Csr, RefusesForgedWeakAndOversizedOnes) {
  const TemporaryDirectory directory;
  const auto from_openssl = [&](const std::string& key_options) {
    run("openssl req -new -newkey " + key_options + " -nodes -subj /CN=x -keyout /dev/null -out " +
        directory.path() + "/r.pem");
    std::ifstream in(directory.path() + "/r.pem");
    return std::string((std::istreambuf_iterator<char>(in)), {});
  };
  EXPECT_TRUE(CertificateRequest::parse(from_openssl("rsa:2048")));
  EXPECT_TRUE(CertificateRequest::parse(from_openssl("ec -pkeyopt ec_paramgen_curve:P-384")));
  EXPECT_FALSE(CertificateRequest::parse(from_openssl("rsa:1024")));
  EXPECT_FALSE(CertificateRequest::parse(from_openssl("ec -pkeyopt ec_paramgen_curve:secp256k1")));
  EXPECT_FALSE(CertificateRequest::parse(from_openssl("ed25519")));
  EXPECT_FALSE(CertificateRequest::parse("garbage"));
  EXPECT_FALSE(CertificateRequest::parse(std::string(kMaxCsrBytes + 1, 'A')));

  // Signed by another key than the one inside: DER with a changed signature byte.
  const std::string good = directory.write("good.pem", from_openssl("rsa:2048"));
  run("openssl req -in " + good + " -outform DER -out " + directory.path() + "/r.der");
  {
    std::fstream der(directory.path() + "/r.der", std::ios::in | std::ios::out | std::ios::binary);
    der.seekg(-1, std::ios::end);
    const char last = static_cast<char>(der.get());
    der.seekp(-1, std::ios::end);
    der.put(static_cast<char>(last ^ 1));
  }
  run("openssl req -inform DER -in " + directory.path() + "/r.der -out " + directory.path() + "/bad.pem");
  std::ifstream in(directory.path() + "/bad.pem");
  const auto forged =
      CertificateRequest::parse(std::string((std::istreambuf_iterator<char>(in)), {}));
  ASSERT_FALSE(forged);
  EXPECT_THAT(forged.error().detail, HasSubstr("not signed by its own key"));
}

TEST(Key, NeverAsksForAPassword) {
  const TemporaryDirectory directory;
  run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:secret -out " +
      directory.path() + "/k.pem");
  std::ifstream in(directory.path() + "/k.pem");
  EXPECT_FALSE(PrivateKey::from_pem(std::string((std::istreambuf_iterator<char>(in)), {})));
}

TEST(Rotation, IsAboutHalfLife) {
  const WallTime from{};
  const WallTime to = from + hours(24);
  EXPECT_EQ(rotation_due(from, to, 0.5), from + hours(12));
  for (const double random : {0.0, 0.25, 0.75, 0.999}) {
    const auto due = rotation_due(from, to, random);
    EXPECT_GE(due, from + hours(10)) << random;
    EXPECT_LE(due, from + hours(14)) << random;
  }
  EXPECT_EQ(rotation_due(to, from, 0.5), to);
}

TEST(Rotation, RetriesBackOff) {
  EXPECT_EQ(retry_delay(1, 0.5), seconds(1));
  EXPECT_EQ(retry_delay(4, 0.5), seconds(8));
  EXPECT_EQ(retry_delay(100, 0.5), seconds(150));
  EXPECT_GE(retry_delay(1, 0.0), std::chrono::milliseconds(800));
  EXPECT_LE(retry_delay(100, 0.999), seconds(180));
  EXPECT_LT(retry_delay(100, 0.999, kRetryMissing), seconds(5)) << "its pods wait";
}

}  // namespace
}  // namespace meltemi::pki
