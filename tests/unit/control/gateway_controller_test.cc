// The waypoint deployer: what a Gateway makes, and when it says that it is programmed.
#include "userspace/control/gateway_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace meltemi::control {
namespace {

using config::Kind;
using config::Object;
using config::ObjectStore;
namespace kube = config::kube;

Object read(std::string_view yaml) {
  auto result = config::read_objects(yaml, "test.yaml");
  EXPECT_TRUE(result.problems.empty()) << result.problems.front().to_string();
  EXPECT_EQ(result.objects.size(), 1u);
  return result.objects.at(0);
}

Object gateway(std::string_view extra = "", std::string_view cls = "meltemi-waypoint",
               std::string_view port = "15008") {
  std::string yaml = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n"
                     "metadata: {name: wp, namespace: shop, uid: u-1, generation: 3}\nspec:\n"
                     "  gatewayClassName: ";
  yaml += cls;
  yaml += "\n  listeners: [{name: mesh, port: ";
  yaml += port;
  yaml += ", protocol: HBONE}]\n";
  yaml += extra;
  return read(yaml);
}

const Object* find(const std::vector<Object>& objects, Kind kind) {
  for (const Object& object : objects)
    if (object.kind() == kind) return &object;
  return nullptr;
}

std::string condition(const kube::Gateway::Status& status, std::string_view type) {
  for (const auto& c : status.conditions())
    if (c.type() == type) return c.status() + "/" + c.reason() + "@" + c.last_transition_time();
  return "none";
}

TEST(GatewayController, MakesAccountRootDeploymentAndService) {
  WaypointSettings settings;
  settings.root_cert_pem = "PEM";
  const auto objects = waypoint_objects(gateway(), settings);
  ASSERT_EQ(objects.size(), 4u);
  for (const Object& object : objects) {
    EXPECT_EQ(object.ns(), "shop");
    EXPECT_FALSE(config::has_errors(config::validate(object))) << object.key().to_string();
  }
  const auto& deployment = find(objects, Kind::kDeployment)->as<kube::Deployment>();
  const auto& pod = deployment.spec().template_();
  EXPECT_EQ(pod.metadata().labels().at("istio.io/dataplane-mode"), "none") << "never captured";
  EXPECT_EQ(pod.metadata().labels().at("gateway.networking.k8s.io/gateway-name"), "wp");
  EXPECT_EQ(pod.spec().service_account_name(), "wp");
  EXPECT_EQ(pod.spec().containers(0).command(0), "waypoint");
  const auto& service = find(objects, Kind::kService)->as<kube::Service>();
  for (const auto& [key, value] : service.spec().selector())
    EXPECT_EQ(pod.metadata().labels().at(key), value);
  EXPECT_EQ(service.spec().ports(1).port(), 15008);
  EXPECT_EQ(service.spec().ports(1).app_protocol(), "hbone");
  EXPECT_EQ(find(objects, Kind::kConfigMap)->as<kube::ConfigMap>().data().at("root-cert.pem"), "PEM");
  EXPECT_EQ(find(objects, Kind::kService)->meta().owner_references(0).uid(), "u-1");
}

TEST(GatewayController, LeavesOtherGatewaysAlone) {
  EXPECT_TRUE(waypoint_objects(gateway("", "istio"), {}).empty());
  EXPECT_TRUE(waypoint_objects(gateway("  addresses: [{type: Hostname, value: mine.shop}]\n"), {}).empty());
  EXPECT_TRUE(waypoint_objects(gateway("", "istio-waypoint", "15009"), {}).empty());
  EXPECT_EQ(waypoint_objects(gateway("", "istio-waypoint"), {}).size(), 4u);
}

TEST(GatewayController, IsProgrammedOnlyWithAReadyEndpoint) {
  ObjectStore store;
  Object g = gateway();
  auto status = gateway_status(g, store, "T1", {});
  EXPECT_EQ(condition(status, "Accepted"), "True/Accepted@T1");
  EXPECT_EQ(condition(status, "Programmed"), "False/AddressNotUsable@T1");
  EXPECT_EQ(status.addresses_size(), 0);

  for (Object object : waypoint_objects(g, {})) {
    if (object.kind() == Kind::kService)
      object.edit<kube::Service>(
          [](kube::Service& s) { s.mutable_spec()->set_cluster_ip("10.96.0.9"); });
    store.upsert(object);
  }
  EXPECT_EQ(condition(gateway_status(g, store, "T2", {}), "Programmed"), "False/AddressNotAssigned@T2");

  Object pod = read("apiVersion: v1\nkind: Pod\nmetadata:\n  name: wp-1\n  namespace: shop\n"
                    "  labels: {gateway.networking.k8s.io/gateway-name: wp}\n"
                    "spec: {containers: [{name: w, command: [waypoint]}]}\n"
                    "status: {podIP: 10.1.0.9, conditions: [{type: Ready, status: \"True\"}]}\n");
  store.upsert(pod);
  status = gateway_status(g, store, "T3", {});
  EXPECT_EQ(condition(status, "Programmed"), "True/Programmed@T3");
  ASSERT_EQ(status.addresses_size(), 2);
  EXPECT_EQ(status.addresses(0).value(), "10.96.0.9");
  EXPECT_EQ(status.addresses(1).value(), "wp.shop.svc.cluster.local");

  // Unchanged conditions keep their time, and addresses stay when the endpoint goes.
  g.edit<kube::Gateway>([&](kube::Gateway& body) { *body.mutable_status() = status; });
  EXPECT_EQ(condition(gateway_status(g, store, "T4", {}), "Programmed"), "True/Programmed@T3");
  store.erase(pod.key());
  status = gateway_status(g, store, "T5", {});
  EXPECT_EQ(condition(status, "Programmed"), "False/AddressNotAssigned@T5");
  EXPECT_EQ(status.addresses_size(), 2) << "withdrawing it would send callers around the waypoint";
}

TEST(GatewayController, RefusesAWrongListenerByIstiosMessage) {
  const auto status = gateway_status(gateway("", "meltemi-waypoint", "80"), ObjectStore(), "T", {});
  EXPECT_EQ(condition(status, "Accepted"), "False/ListenersNotValid@T");
  EXPECT_EQ(status.conditions(0).message(),
            "Expected a single listener on port 15008 with protocol \"HBONE\"");
}

}  // namespace
}  // namespace meltemi::control
