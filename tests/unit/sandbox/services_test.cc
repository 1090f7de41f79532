#include "userspace/sandbox/services.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/sandbox/objects.h"
#include "userspace/sandbox/layout.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using test::store_of;
using testing::HasSubstr;
using testing::Not;

constexpr char kService[] = R"(
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
)";

std::string pod(std::string_view name, std::string_view ip, std::string_view ready,
                std::string_view extra = "") {
  return fmt::format(R"(
---
apiVersion: v1
kind: Pod
metadata: {{name: {}, namespace: shop, labels: {{app: web}}}}
spec:
  containers: [{{name: c, image: i, command: [x], ports: [{{name: http, containerPort: 3000}}]}}]
status:
  phase: Running
  podIP: {}
  podIPs: [{{ip: {}}}]
  conditions: [{{type: Ready, status: "{}"}}]
{})",
                     name, ip, ip, ready, extra);
}

TEST(ClusterIps, AreStableAndUnique) {
  const auto wanted = store_of(std::string(kService) + R"(
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {selector: {app: other}, ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}
---
apiVersion: v1
kind: Service
metadata: {name: fixed, namespace: shop}
spec: {selector: {app: x}, ports: [{port: 80}], clusterIP: 10.96.7.7}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {selector: {app: x}, ports: [{port: 80}], clusterIP: None}
)");
  const auto first = assign_cluster_ips(wanted, config::ObjectStore());
  ASSERT_EQ(first.size(), 2u) << "fixed and headless ones need none";
  EXPECT_EQ(first[0].name(), "other");
  EXPECT_EQ(cluster_ips(first[0]).size(), 2u);
  EXPECT_EQ(cluster_ips(first[1]).size(), 1u);
  EXPECT_NE(cluster_ips(first[0])[0], cluster_ips(first[1])[0]);
  for (const config::Object& service : first)
    EXPECT_TRUE(service_cidr_v4().contains(cluster_ips(service)[0])) << service.name();

  config::ObjectStore runtime;
  for (const config::Object& service : first) runtime.upsert(service);
  const auto second = assign_cluster_ips(wanted, runtime);
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(cluster_ips(second[0]), cluster_ips(first[0]));
  EXPECT_EQ(cluster_ips(second[1]), cluster_ips(first[1]));
}

TEST(ClusterIps, GoAroundAddressesThatAreTaken) {
  const auto wanted = store_of(kService);
  const auto first = assign_cluster_ips(wanted, config::ObjectStore());
  config::Object squatter = first.at(0);
  squatter.mutable_meta().set_name("squatter");
  config::ObjectStore with_squatter = wanted;
  with_squatter.upsert(squatter);
  const auto second = assign_cluster_ips(with_squatter, config::ObjectStore());
  ASSERT_EQ(second.size(), 1u);
  EXPECT_NE(cluster_ips(second[0]), cluster_ips(first[0]));
}

TEST(Targets, AreReadyPodsAtTheirNamedPort) {
  const auto store = store_of(std::string(kService).replace(std::string(kService).find("spec:"), 5,
                                                            "spec:\n  clusterIP: 10.96.1.1") +
                              pod("a", "10.244.1.2", "True") + pod("b", "10.244.2.2", "True") +
                              pod("c", "10.244.2.3", "False"));
  const auto targets = service_targets(store);
  ASSERT_EQ(targets.size(), 1u);
  EXPECT_EQ(targets[0].port, 80);
  EXPECT_THAT(targets[0].endpoints, testing::ElementsAre(*SocketAddress::parse("10.244.1.2:3000"),
                                                         *SocketAddress::parse("10.244.2.2:3000")));
}

TEST(Targets, LeaveOutFinishedAndTerminatingPods) {
  std::string going = pod("going", "10.244.1.3", "True");
  going.replace(going.find("labels:"), 7, "deletionTimestamp: \"2026-01-01T00:00:00Z\", labels:");
  std::string done = pod("done", "10.244.1.4", "True");
  done.replace(done.find("Running"), 7, "Succeeded");
  const auto store = store_of(std::string(kService).replace(std::string(kService).find("spec:"), 5,
                                                            "spec:\n  clusterIP: 10.96.1.1") +
                              going + done);
  ASSERT_EQ(service_targets(store).size(), 1u);
  EXPECT_TRUE(service_targets(store)[0].endpoints.empty());
}

TEST(Rules, TranslateBalanceAndRefuse) {
  const std::string rules = render_nft({
      {*IpAddress::parse("10.96.1.1"), false, 80, {*SocketAddress::parse("10.244.1.2:3000")}},
      {*IpAddress::parse("10.96.1.2"),
       false,
       80,
       {*SocketAddress::parse("10.244.1.2:1"), *SocketAddress::parse("10.244.2.2:2")}},
      {*IpAddress::parse("10.96.1.3"), false, 80, {}},
      {*IpAddress::parse("fd54::1"), true, 53, {*SocketAddress::parse("[fd54::2]:53")}},
  });
  EXPECT_THAT(rules, HasSubstr("ip daddr 10.96.1.1 tcp dport 80 dnat ip to 10.244.1.2:3000"));
  EXPECT_THAT(rules,
              HasSubstr("numgen random mod 2 map { 0 : 10.244.1.2 . 1, 1 : 10.244.2.2 . 2 }"));
  EXPECT_THAT(rules, HasSubstr("ip daddr 10.96.1.3 tcp dport 80 reject with tcp reset"));
  EXPECT_THAT(rules, HasSubstr("ip6 daddr fd54::1 udp dport 53 dnat ip6 to [fd54::2]:53"));
  EXPECT_THAT(rules, Not(HasSubstr("10.96.1.3 tcp dport 80 dnat")));
}

}  // namespace
}  // namespace meltemi::sandbox
