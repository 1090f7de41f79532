// The X.509-SVID profile against certificates that another program made: svids.py has the table.
#include "userspace/pki/svid.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/unit/pki/support.h"
#include "userspace/pki/certificate.h"

namespace meltemi::pki {
namespace {

using ::testing::HasSubstr;

Status verdict(const Certificate& cert, const std::string& role) {
  if (role == "signer") return check_svid_signer(cert.native());
  const auto id = svid_identity(cert.native(), role == "client"   ? SvidRole::kClient
                                               : role == "server" ? SvidRole::kServer
                                                                  : SvidRole::kBoth);
  return id ? Status() : Status(fail(id.error()));
}

TEST(Svid, TheProfileIsKeptRuleByRule) {
  const char* source = getenv("MELTEMI_SOURCE_DIR");
  const auto made = run("/usr/bin/python3 -W ignore " + std::string(source ? source : ".") +
                        "/tests/unit/pki/svids.py");
  ASSERT_EQ(made.status, 0) << made.output;
  std::istringstream lines(made.output);
  size_t good = 0, bad = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto row = nlohmann::json::parse(line);
    SCOPED_TRACE(row["case"].get<std::string>());
    const auto certs = parse_bundle(row["pem"].get<std::string>());
    ASSERT_TRUE(certs) << certs.error().to_string();
    const Status said = verdict(certs->front(), row["role"]);
    const std::string why = row["why"];
    if (why.empty()) {
      ++good;
      EXPECT_TRUE(said) << said.error().to_string();
      continue;
    }
    ++bad;
    ASSERT_FALSE(said);
    EXPECT_EQ(said.error().reason, Reason::kPeerIdentityMismatch);
    EXPECT_THAT(said.error().detail, HasSubstr(why));
  }
  EXPECT_GE(good, 8u);
  EXPECT_GE(bad, 40u);
}

// What our own CA makes keeps the profile, at every place of the chain.
TEST(Svid, WhatTheAuthoritySignsKeepsTheProfile) {
  const TemporaryDirectory directory;
  AuthorityOptions options;
  options.directory = directory.path() + "/ca";
  auto ca = *CertificateAuthority::open(options, now());
  const auto key = *PrivateKey::generate();
  const auto identity = identity_of("shop", "web");
  const auto request = *CertificateRequest::parse(*make_csr(key, identity));
  const auto chain = *ca->issue(request, identity, std::chrono::seconds(0), now());
  EXPECT_EQ(*svid_identity(parse_bundle(chain[0])->front().native(), SvidRole::kBoth), identity);
  EXPECT_TRUE(check_svid_signer(parse_bundle(chain[1])->front().native()));
}

}  // namespace
}  // namespace meltemi::pki
