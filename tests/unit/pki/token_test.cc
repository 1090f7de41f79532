// Bearer tokens: ours verify, and every way of forging one that has worked somewhere does not.
#include "userspace/pki/token.h"

#include <gmock/gmock.h>

#include "tests/unit/pki/support.h"

namespace meltemi::pki {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using ::testing::HasSubstr;

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
    const auto verified = verify_token(PublicKey::of(key), token, when);
    if (verified) return "accepted";
    EXPECT_EQ(verified.error().reason, Reason::kPermission);
    if (token.size() > 8) {
      EXPECT_EQ(verified.error().detail.find(token), std::string::npos) << "no token in a log";
    }
    return verified.error().detail;
  }

  PrivateKey key = *PrivateKey::generate();
  WallTime at = now();
};

TEST_F(TokenTest, ComesBackAsItWas) {
  const auto token = sign_token(key, claims());
  ASSERT_TRUE(token);
  const auto back = verify_token(PublicKey::of(key), *token, at);
  ASSERT_TRUE(back) << back.error().to_string();
  EXPECT_EQ(back->ns, "istio-system");
  EXPECT_EQ(back->service_account, "ztunnel");
  EXPECT_EQ(back->pod_name, "ztunnel-abc");
  EXPECT_EQ(back->pod_uid, "uid-1");
  EXPECT_EQ(back->node_name, "node-1");
  // The verifier has only the public half.
  EXPECT_TRUE(verify_token(*PublicKey::from_pem(key.public_key_pem()), *token, at));
}

TEST_F(TokenTest, TimeAndAudienceCount) {
  const std::string token = *sign_token(key, claims());
  EXPECT_THAT(refusal(token, at + hours(2)), HasSubstr("expired"));
  EXPECT_THAT(refusal(token, at - hours(2)), HasSubstr("not valid before"));
  EXPECT_EQ(refusal(token, at + hours(1) + std::chrono::seconds(30)), "accepted") << "skew";
  EXPECT_FALSE(verify_token(PublicKey::of(key), token, at, "vault"));
}

TEST_F(TokenTest, ForgeriesAreRefused) {
  const std::string token = *sign_token(key, claims());
  EXPECT_FALSE(verify_token(PublicKey::of(*PrivateKey::generate()), token, at)) << "another key";
  for (size_t i = 0; i < token.size(); i += 7) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_NE(refusal(changed, at), "accepted") << "at " << i;
  }
  const std::string payload = token.substr(token.find('.') + 1, token.rfind('.') - token.find('.') - 1);
  // {"alg":"none","typ":"JWT"} without and with the real signature; {"alg":"HS256","typ":"JWT"}.
  EXPECT_THAT(refusal("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + payload + ".", at),
              HasSubstr("algorithm"));
  EXPECT_THAT(refusal("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + payload + token.substr(token.rfind('.')), at),
              HasSubstr("algorithm"));
  EXPECT_THAT(refusal("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + payload + token.substr(token.rfind('.')), at),
              HasSubstr("algorithm"));
  for (const std::string& bad : {std::string(), std::string("."), std::string(".."), std::string("a.b.c"),
                                 token + ".", token + "=", std::string(kMaxTokenBytes + 1, 'a')}) {
    EXPECT_NE(refusal(bad, at), "accepted");
  }
}

TEST_F(TokenTest, NeedsANameAndAKeyOfTheRightCurve) {
  TokenClaims nobody = claims();
  nobody.service_account.clear();
  EXPECT_FALSE(sign_token(key, nobody));
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
