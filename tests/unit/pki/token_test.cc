// Bearer tokens: ours verify, and every way of forging one that has worked somewhere does not.
#include "userspace/pki/token.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/unit/pki/support.h"

namespace meltemi::pki {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using ::testing::HasSubstr;

TokenKeys keys_of(const PrivateKey& key) { return *TokenKeys::of(PublicKey::of(key)); }

struct TokenTest : ::testing::Test {
  TokenClaims claims() const {
    TokenClaims out;
    out.ns = "istio-system";
    out.service_account = "ztunnel";
    out.pod_name = "ztunnel-abc";
    out.pod_uid = "uid-1";
    out.node_name = "node-1";
    out.issued_at = at;
    out.expires_at = at + hours(1);
    return out;
  }
  std::string refusal(const std::string& token, WallTime when) const {
    const auto verified = verify_token(keys, token, when);
    if (verified) return "accepted";
    EXPECT_EQ(verified.error().reason, Reason::kPermission);
    if (token.size() > 8) {
      EXPECT_EQ(verified.error().detail.find(token), std::string::npos) << "no token in a log";
    }
    return verified.error().detail;
  }

  PrivateKey key = *PrivateKey::generate();
  TokenKeys keys = keys_of(key);
  WallTime at = now();
};

// The table is tokens.py's: keys and signatures are made by another program.
TEST(Tokens, WhatOthersSignAndForgeIsJudgedCaseByCase) {
  const char* source = getenv("MELTEMI_SOURCE_DIR");
  const auto made = run("/usr/bin/python3 -W ignore " + std::string(source ? source : ".") +
                        "/tests/unit/pki/tokens.py");
  ASSERT_EQ(made.status, 0) << made.output;
  const WallTime at(seconds(1'800'000'000));
  std::istringstream lines(made.output);
  size_t good = 0, bad = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto row = nlohmann::json::parse(line);
    SCOPED_TRACE(row["case"].get<std::string>());
    const auto keys = TokenKeys::parse(row["keys"].get<std::string>());
    ASSERT_TRUE(keys) << keys.error().to_string();
    const auto said = verify_token(*keys, row["token"].get<std::string>(), at);
    const std::string why = row["why"];
    if (why.empty()) {
      ++good;
      ASSERT_TRUE(said) << said.error().to_string();
      EXPECT_EQ(said->ns + "/" + said->service_account, "shop/web");
      continue;
    }
    ++bad;
    ASSERT_FALSE(said);
    EXPECT_EQ(said.error().reason, Reason::kPermission);
    EXPECT_THAT(said.error().detail, HasSubstr(why));
  }
  EXPECT_GE(good, 25u);
  EXPECT_GE(bad, 50u);
}

TEST_F(TokenTest, ComesBackAsItWas) {
  const auto token = sign_token(key, claims());
  ASSERT_TRUE(token);
  const auto back = verify_token(keys, *token, at);
  ASSERT_TRUE(back) << back.error().to_string();
  EXPECT_EQ(back->ns, "istio-system");
  EXPECT_EQ(back->service_account, "ztunnel");
  EXPECT_EQ(back->pod_name, "ztunnel-abc");
  EXPECT_EQ(back->pod_uid, "uid-1");
  EXPECT_EQ(back->node_name, "node-1");
  // The verifier has only the public half.
  EXPECT_TRUE(verify_token(*TokenKeys::parse(key.public_key_pem()), *token, at));
}

TEST_F(TokenTest, IssuersAndAudiencesAreSetsOfTheVerifier) {
  const std::string token = *sign_token(key, claims());
  const std::string ours(kTokenIssuer);
  EXPECT_TRUE(verify_token(keys, token, at, {{"https://other", ours}, {"vault", "istio-ca"}}));
  EXPECT_THAT(verify_token(keys, token, at, {{"https://other"}, {"istio-ca"}}).error().detail,
              HasSubstr("issuer"));
  EXPECT_THAT(verify_token(keys, token, at, {{ours}, {"vault"}}).error().detail, HasSubstr("audience"));
  EXPECT_FALSE(verify_token(keys, token, at, {{}, {"istio-ca"}})) << "no issuer is nobody's";
  EXPECT_FALSE(verify_token(keys, token, at, {{ours}, {}}));
}

TEST_F(TokenTest, EveryChangedByteIsRefused) {
  const std::string token = *sign_token(key, claims());
  EXPECT_FALSE(verify_token(keys_of(*PrivateKey::generate()), token, at)) << "another key";
  for (size_t i = 0; i < token.size(); i += 7) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_NE(refusal(changed, at), "accepted") << "at " << i;
  }
  EXPECT_THAT(refusal(token, at + hours(2)), HasSubstr("expired"));
  EXPECT_THAT(refusal(token, at - hours(2)), HasSubstr("not valid before"));
}

TEST_F(TokenTest, NeedsANameAndAKeyOfTheRightCurve) {
  TokenClaims nobody = claims();
  nobody.service_account.clear();
  EXPECT_FALSE(sign_token(key, nobody));
}

TEST(TokenKeySets, SayWhatIsWrongWithThem) {
  const TemporaryDirectory directory;
  const auto refused = [](const std::string& text) {
    const auto keys = TokenKeys::parse(text);
    EXPECT_FALSE(keys) << text;
    return keys ? std::string() : keys.error().detail;
  };
  const auto pem_of = [&](const std::string& options) {
    return run("openssl genpkey " + options + " 2>/dev/null | openssl pkey -pubout").output;
  };
  const auto key = *PrivateKey::generate();
  EXPECT_THAT(refused(""), HasSubstr("none"));
  EXPECT_THAT(refused("{}"), HasSubstr("Key Set"));
  EXPECT_THAT(refused(R"({"keys":[], "keys":[]})"), HasSubstr("Key Set"));
  EXPECT_THAT(refused(R"({"keys":[{"kty":"oct","k":"c2VjcmV0"}]})"), HasSubstr("none"));
  EXPECT_THAT(refused(R"({"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]})"), HasSubstr("size"));
  const std::string off(43, 'A');  // (0, 0) is not on the curve
  EXPECT_THAT(refused(R"({"keys":[{"kty":"EC","crv":"P-256","x":")" + off + R"(","y":")" + off + R"("}]})"),
              HasSubstr("malformed"));
  EXPECT_THAT(refused(R"({"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]})"),
              HasSubstr("private"));
  EXPECT_THAT(refused(std::string(key.to_pem().view())), HasSubstr("private"));
  EXPECT_THAT(refused(key.public_key_pem() + std::string(key.to_pem().view())), HasSubstr("private"));
  EXPECT_THAT(refused(pem_of("-algorithm RSA -pkeyopt rsa_keygen_bits:1024")), HasSubstr("1024"));
  EXPECT_THAT(refused(pem_of("-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1")), HasSubstr("neither"));
  EXPECT_THAT(refused(std::string(kMaxKeySetBytes + 1, ' ')), HasSubstr("larger"));
  std::string many;
  for (size_t i = 0; i <= kMaxTokenKeys; ++i) many += key.public_key_pem();
  EXPECT_THAT(refused(many), HasSubstr("more than"));
}

TEST(TokenKeySets, KeysAreExchangedWhileTheyAreUsed) {
  const TemporaryDirectory directory;
  const auto old = *PrivateKey::generate(), fresh = *PrivateKey::generate();
  const std::string file = directory.write("keys.pem", old.public_key_pem());
  EXPECT_FALSE(TokenKeyFiles::open({file, directory.path() + "/absent"}));
  auto files = *TokenKeyFiles::open({file});
  TokenClaims claims;
  claims.ns = "shop";
  claims.service_account = "web";
  claims.issued_at = now();
  claims.expires_at = now() + hours(1);
  MonoTime clock{};
  const auto takes = [&](const PrivateKey& key) {
    clock += TokenKeyFiles::kLook;
    return bool(verify_token(*files->current(clock), *sign_token(key, claims), now()));
  };
  const auto exchange = [&](const std::string& text) {  // as atomic writers do
    directory.write("next", text);
    std::filesystem::rename(directory.path() + "/next", file);
  };
  EXPECT_TRUE(takes(old));
  EXPECT_FALSE(takes(fresh));
  exchange(old.public_key_pem() + fresh.public_key_pem());
  EXPECT_TRUE(takes(fresh));
  EXPECT_TRUE(takes(old));
  exchange("garbage");
  EXPECT_TRUE(takes(old)) << "what cannot be used changes nothing";
  exchange(fresh.public_key_pem());
  EXPECT_TRUE(takes(fresh));
  EXPECT_FALSE(takes(old)) << "withdrawn";
}

// python3 and openssl read the same token: its parts are what RFC 7515 says.
TEST_F(TokenTest, OpensslVerifiesTheSignature) {
  const TemporaryDirectory directory;
  directory.write("token", *sign_token(key, claims()));
  directory.write("public.pem", key.public_key_pem());
  const auto out = run(
      "/usr/bin/python3 - <<'PY'\n"
      "import base64,json\n"
      "d='" + directory.path() + "/'\n"
      "h,p,s=open(d+'token').read().split('.')\n"
      "b=lambda t: base64.urlsafe_b64decode(t+'='*(-len(t)%4))\n"
      "raw=b(s)\n"
      "def num(x):\n"
      "  x=x.lstrip(b'\\0') or b'\\0'\n"
      "  return b'\\x02'+bytes([len(x)+(x[0]>>7)])+(b'\\0' if x[0]>>7 else b'')+x\n"
      "body=num(raw[:32])+num(raw[32:])\n"
      "open(d+'sig','wb').write(b'\\x30'+bytes([len(body)])+body)\n"
      "open(d+'text','w').write(h+'.'+p)\n"
      "c=json.loads(b(p)); print(c['sub'],c['aud'],c['kubernetes.io']['node']['name'])\n"
      "PY\n"
      "openssl dgst -sha256 -verify " + directory.path() + "/public.pem -signature " +
      directory.path() + "/sig " + directory.path() + "/text");
  EXPECT_THAT(out.output, HasSubstr("system:serviceaccount:istio-system:ztunnel ['istio-ca'] node-1"));
  EXPECT_THAT(out.output, HasSubstr("Verified OK"));
}

}  // namespace
}  // namespace meltemi::pki
