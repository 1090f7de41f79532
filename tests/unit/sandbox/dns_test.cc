// The cluster's DNS, by the messages of RFC 1035.
#include "userspace/sandbox/dns.h"

#include <gtest/gtest.h>

#include "tests/unit/sandbox/objects.h"

namespace meltemi::sandbox {
namespace {

std::string query(std::string_view name, uint16_t type, uint16_t id = 0x1234) {
  std::string out{static_cast<char>(id >> 8), static_cast<char>(id), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
  while (!name.empty()) {
    const size_t dot = std::min(name.find('.'), name.size());
    out += static_cast<char>(dot);
    out += name.substr(0, dot);
    name.remove_prefix(std::min(dot + 1, name.size()));
  }
  out += '\0';
  out += static_cast<char>(type >> 8);
  out += static_cast<char>(type);
  out += std::string("\0\1", 2);
  return out;
}

uint16_t at(const std::string& message, size_t offset) {
  return load_be<uint16_t>(as_bytes(message).data() + offset);
}
int rcode(const std::string& message) {
  return at(message, 2) & 15;
}
int answers(const std::string& message) {
  return at(message, 6);
}

class Dns : public testing::Test {
 protected:
  Dns() {
    const auto store = test::store_of(R"(
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, "fd54::1"], ports: [{port: 80}], selector: {app: a}}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: catalog.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: ring, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}], selector: {app: ring}}
---
apiVersion: v1
kind: Pod
metadata: {name: ring-0, namespace: shop, labels: {app: ring}}
spec: {containers: [{name: c, image: i, command: [x]}]}
status: {phase: Running, podIP: 10.244.1.9, podIPs: [{ip: 10.244.1.9}], conditions: [{type: Ready, status: "True"}]}
)");
    zone_ = build_zone(
        store, {{"meltemid.istio-system.svc.cluster.local", {*IpAddress::parse("10.254.0.1")}}});
  }
  std::string ask(std::string_view name, uint16_t type, size_t max = kMaxDnsUdpBytes) {
    return answer_dns(as_bytes(query(name, type)), zone_, max);
  }
  DnsZone zone_;
};

TEST_F(Dns, AnswersServicesInBothFamilies) {
  const std::string v4 = ask("catalog.shop.svc.cluster.local", 1);
  EXPECT_EQ(at(v4, 0), 0x1234);
  EXPECT_EQ(rcode(v4), 0);
  ASSERT_EQ(answers(v4), 1);
  EXPECT_EQ(v4.substr(v4.size() - 4), std::string("\x0a\x60\x01\x01", 4));
  const std::string v6 = ask("catalog.shop.svc.cluster.local", 28);
  ASSERT_EQ(answers(v6), 1);
  EXPECT_EQ(v6.substr(v6.size() - 16), IpAddress::parse("fd54::1")->wire());
}

TEST_F(Dns, NamesHaveNoCase) {
  EXPECT_EQ(answers(ask("Catalog.SHOP.svc.Cluster.Local", 1)), 1);
}

TEST_F(Dns, HeadlessServicesAreTheirReadyPods) {
  const std::string answer = ask("ring.shop.svc.cluster.local", 1);
  ASSERT_EQ(answers(answer), 1);
  EXPECT_EQ(answer.substr(answer.size() - 4), IpAddress::parse("10.244.1.9")->wire());
}

TEST_F(Dns, ANameWithoutThatFamilyExistsAllTheSame) {
  const std::string answer = ask("ring.shop.svc.cluster.local", 28);
  EXPECT_EQ(rcode(answer), 0) << "NXDOMAIN here would make resolvers give up on the A record too";
  EXPECT_EQ(answers(answer), 0);
}

TEST_F(Dns, FollowsExternalNames) {
  EXPECT_EQ(answers(ask("outside.shop.svc.cluster.local", 1)), 2);
}
TEST_F(Dns, KnowsTheControlPlane) {
  EXPECT_EQ(answers(ask("meltemid.istio-system.svc.cluster.local", 1)), 1);
}

TEST_F(Dns, NothingLeavesTheSandbox) {
  for (const char* name :
       {"example.com", "nowhere.shop.svc.cluster.local", "catalog", "catalog.shop"})
    EXPECT_EQ(rcode(ask(name, 1)), 3) << name;
}

TEST_F(Dns, TooLongForItsTransportIsTruncated) {
  const std::string answer = ask("catalog.shop.svc.cluster.local", 1, 50);
  EXPECT_TRUE(at(answer, 2) & 0x0200);
  EXPECT_LE(answer.size(), 50u);
}

TEST_F(Dns, GarbageGetsAFormatErrorOrNothing) {
  const std::string good = query("catalog.shop.svc.cluster.local", 1);
  for (size_t length = 0; length < good.size(); ++length) {
    const std::string cut =
        answer_dns(as_bytes(std::string_view(good).substr(0, length)), zone_, 512);
    if (length < 12)
      EXPECT_TRUE(cut.empty()) << length;
    else
      EXPECT_EQ(rcode(cut), 1) << length;
  }
  std::string pointer = good;
  pointer[12] = static_cast<char>(0xC0);  // a compression pointer in a question
  EXPECT_EQ(rcode(answer_dns(as_bytes(pointer), zone_, 512)), 1);
  std::string response = good;
  response[2] |= static_cast<char>(0x80);
  EXPECT_TRUE(answer_dns(as_bytes(response), zone_, 512).empty())
      << "two servers would talk forever";
  std::string update = good;
  update[2] = 0x28;
  EXPECT_EQ(rcode(answer_dns(as_bytes(update), zone_, 512)), 4);
}

}  // namespace
}  // namespace meltemi::sandbox
