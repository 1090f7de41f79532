// /config_dump has the keys that istioctl's ztunnel-config reads, and no key material.
#include "ztunnel/config_dump.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ztunnel/local_config.h"

namespace meltemi::ztunnel {
namespace {

TEST(ConfigDump, PeersShape) {
  model::MeshStore store;
  const auto batch = parse_local_config(R"(
workloads: [{uid: u1, name: web, namespace: shop, workloadIps: [10.0.0.1], protocol: HBONE,
             serviceAccount: web, services: {shop/web.h: {80: 8080}}}]
services: [{name: web, namespace: shop, hostname: web.h, vips: [/10.96.0.1], ports: {80: 8080}}]
policies: [{name: p, namespace: shop, action: Deny, rules: [[[{principals: [{Prefix: x}]}]]]}]
)", "x");
  ASSERT_TRUE(batch.has_value()) << batch.error().detail;
  store.apply(*batch);
  const auto mesh = store.snapshot();
  ConfigDumpInput in;
  in.mesh = mesh.get();
  in.pods = {{"pod-uid", "shop", "web", "web"}};
  in.flows = {{"pod-uid", true, *SocketAddress::parse("10.0.0.5:1"), *SocketAddress::parse("10.0.0.1:15008"),
               *SocketAddress::parse("10.0.0.1:8080"), "HBONE"}};
  in.certificates.push_back({*model::Identity::make("td", "shop", "web"),
                             pki::CertificateState::kUnavailable, nullptr, "CA is away", 3});
  in.config_json = R"({"packetMark": 1337})";
  const auto j = nlohmann::json::parse(config_dump(in));
  EXPECT_EQ(j["workloads"][0]["workloadIps"][0], "10.0.0.1");
  EXPECT_EQ(j["workloads"][0]["protocol"], "HBONE");
  EXPECT_EQ(j["services"][0]["vips"][0], "/10.96.0.1");
  EXPECT_EQ(j["services"][0]["endpoints"]["u1"]["port"]["80"], 8080);
  EXPECT_EQ(j["policies"][0]["rules"][0][0][0]["principals"][0]["Prefix"], "x");
  EXPECT_EQ(j["certificates"][0]["identity"], "spiffe://td/ns/shop/sa/web");
  EXPECT_EQ(j["certificates"][0]["state"], "Unavailable: CA is away");
  EXPECT_EQ(j["workloadState"]["pod-uid"]["state"], "Up");
  EXPECT_EQ(j["workloadState"]["pod-uid"]["connections"]["inbound"][0]["actualDst"], "10.0.0.1:8080");
  EXPECT_EQ(j["config"]["packetMark"], 1337);
  EXPECT_THAT(j.dump(), testing::Not(testing::HasSubstr("PRIVATE KEY")));
}

}  // namespace
}  // namespace meltemi::ztunnel
