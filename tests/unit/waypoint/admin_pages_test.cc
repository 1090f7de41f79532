// The admin pages in Envoy's shapes, as istioctl's proxy-config reads them.
#include "waypoint/app/admin_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "waypoint/xds/store.h"

namespace meltemi::waypoint {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

class AdminPages : public testing::Test {
 protected:
  AdminPages() {
    auto cluster = std::make_shared<Cluster>();
    cluster->name = model::Symbol("inbound-vip|80|http|shop.default.svc.cluster.local");
    auto snapshot = std::make_shared<Snapshot>();
    snapshot->clusters[cluster->name] = {cluster, nullptr};
    auto listener = std::make_shared<Listener>();
    listener->name = "shop";
    snapshot->virtual_listeners[*SocketAddress::parse("10.96.0.7:80")] = listener;
    snapshot_ = snapshot;
    registry_.add([](telemetry::Exposition& out) {
      out.family("a_total", telemetry::MetricType::kCounter, "A");
      out.sample("a_total", uint64_t{3});
      out.family("b_total", telemetry::MetricType::kCounter, "B");
      out.sample("b_total", uint64_t{0});
    });
    sources_ = {.node_id = "waypoint~10.0.0.1~w.default~default.svc.cluster.local",
                .cluster = "default/w",
                .admin_listen = "127.0.0.1:15000",
                .snapshot = [this] { return snapshot_; },
                .certificates = [this] { return entries_; },
                .xds_dump = [] { return ConfigStore().dump_json(); },
                .status =
                    [this] {
                      xds::ProcessStatus out;
                      out.component = "waypoint";
                      out.control_plane = client_;
                      return out;
                    },
                .registry = &registry_,
                .readiness = &readiness_};
    add_admin_pages(router_, sources_);
  }
  http::Response get(const std::string& path, http::Pairs query = {},
                     const char* peer = "127.0.0.1") {
    http::Request request;
    request.method = "GET";
    request.path = path;
    request.query = std::move(query);
    request.peer.ip = *IpAddress::parse(peer);
    return router_.dispatch(request);
  }
  xds::ClientStatus client_;
  SnapshotPtr snapshot_;
  std::vector<pki::CertificateEntry> entries_{1};
  telemetry::Registry registry_;
  telemetry::Readiness readiness_;
  AdminSources sources_;
  http::Router router_;
};

TEST_F(AdminPages, ConfigDumpHasEveryPartThatIstioctlAsksFor) {
  const auto types = [&](http::Pairs query) {
    std::vector<std::string> out;
    const json dump = json::parse(get("/config_dump", std::move(query)).body);
    for (const json& part : dump["configs"]) {
      const std::string type = part["@type"];
      out.push_back(type.substr(type.rfind('.') + 1));
    }
    return out;
  };
  const std::vector<std::string> always = {"BootstrapConfigDump", "ListenersConfigDump",
                                           "RoutesConfigDump",    "ClustersConfigDump",
                                           "SecretsConfigDump",   "EcdsConfigDump"};
  EXPECT_THAT(types({}), testing::UnorderedElementsAreArray(always));
  std::vector<std::string> with_eds = always;
  with_eds.push_back("EndpointsConfigDump");
  EXPECT_THAT(types({{"include_eds", ""}}), testing::UnorderedElementsAreArray(with_eds));
  const json dump = json::parse(get("/config_dump").body);
  EXPECT_EQ(dump["configs"][0]["bootstrap"]["node"]["id"], sources_.node_id);
  EXPECT_EQ(dump["configs"][0]["bootstrap"]["admin"]["address"]["socket_address"]["port_value"],
            15000);
}

TEST_F(AdminPages, ClustersComeAsTextAndAsJson) {
  const json list = json::parse(get("/clusters", {{"format", "json"}}).body);
  EXPECT_EQ(list["cluster_statuses"][0]["name"],
            "inbound-vip|80|http|shop.default.svc.cluster.local");
  EXPECT_TRUE(list["cluster_statuses"][0]["host_statuses"].is_array());
  EXPECT_THAT(get("/clusters").body, HasSubstr("svc.cluster.local::added_via_api::true\n"));
}

TEST_F(AdminPages, ListenersNameTheirAddresses) {
  EXPECT_EQ(get("/listeners").body, "shop::10.96.0.7:80\n");
  const json list = json::parse(get("/listeners", {{"format", "json"}}).body);
  EXPECT_EQ(list["listener_statuses"][0]["local_address"]["socket_address"]["port_value"], 80);
}

TEST_F(AdminPages, StatsAreFilteredAndCounted) {
  EXPECT_EQ(get("/stats").body, "a_total: 3\nb_total: 0\n");
  EXPECT_EQ(get("/stats", {{"usedonly", ""}}).body, "a_total: 3\n");
  EXPECT_EQ(get("/stats", {{"filter", "b_"}}).body, "b_total: 0\n");
  const json list = json::parse(get("/stats", {{"format", "json"}}).body);
  EXPECT_EQ(list["stats"][0]["name"], "a_total");
  EXPECT_EQ(list["stats"][0]["value"], 3);
}

TEST_F(AdminPages, ReadyAndServerInfoFollowReadiness) {
  EXPECT_EQ(get("/ready").status, 200);
  readiness_.pending("xds");
  EXPECT_EQ(get("/ready").status, 503);
  EXPECT_EQ(json::parse(get("/server_info").body)["state"], "PRE_INITIALIZING");
}

TEST_F(AdminPages, StatusSaysHowOldTheConfigurationIs) {
  client_.last_word = std::chrono::system_clock::now() - std::chrono::hours(1);
  client_.serving_saved = true;
  const json status = json::parse(get("/status").body);
  EXPECT_EQ(status["controlPlane"]["state"], "STALE");
  EXPECT_EQ(status["controlPlane"]["servingSavedState"], true);
  EXPECT_GE(status["controlPlane"]["staleSeconds"], 3600);
  EXPECT_EQ(get("/status", {}, "10.0.0.9").status, 403);
}

TEST_F(AdminPages, HelpListsThePages) {
  for (const char* path : {"/", "/help"}) {
    EXPECT_THAT(get(path).body, testing::AllOf(HasSubstr("/certs"), HasSubstr("/memory"),
                                               HasSubstr("/config_dump")));
  }
}

TEST_F(AdminPages, NothingIsShownToTheNetwork) {
  for (const std::string& path : router_.paths()) {
    EXPECT_EQ(get(path, {}, "10.0.0.9").status, 403) << path;
  }
}

TEST_F(AdminPages, BeforeTheFirstConfigurationTheyAreEmpty) {
  snapshot_ = nullptr;
  EXPECT_EQ(get("/clusters").body, "");
  EXPECT_EQ(get("/certs").status, 200);
  EXPECT_EQ(get("/memory").status, 200);
}

}  // namespace
}  // namespace meltemi::waypoint
