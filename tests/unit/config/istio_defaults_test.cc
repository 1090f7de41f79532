// The table "What a waypoint is told" of ARCHITECTURE.md, row by row, on translated resources; and
// that Envoy's own rules are asked at all.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>

#include <functional>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "tests/unit/config/envoy_rules.h"
#include "tests/unit/config/fixture.h"

namespace meltemi::config {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
namespace rt = ::envoy::config::route::v3;
namespace lst = ::envoy::config::listener::v3;
namespace cl = ::envoy::config::cluster::v3;
namespace hcm = ::envoy::extensions::filters::network::http_connection_manager::v3;
using Upstream = ::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;

const Scope kScope = "waypoint/shop/waypoint";

constexpr char kBase[] = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: meltemi-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: catalog}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: grpc-api, port: 81, targetPort: http}
  - {name: grpc-web, port: 82, targetPort: http}
  - {name: api, port: 83, appProtocol: kubernetes.io/h2c, targetPort: http}
  - {name: something, port: 84, targetPort: http}
  - {name: tcp, port: 85, targetPort: http}
)";

struct Shop : Mesh {
  Shop() {
    put("base.yaml", kBase);
    put("pod.yaml", pod_yaml("shop", "catalog-v1", "app: catalog", "10.244.0.5"));
  }
  static std::string name(int port) {
    return fmt::format("inbound-vip|{}|http|catalog.shop.svc.cluster.local", port);
  }
  hcm::HttpConnectionManager manager(const std::string& listener = name(80)) {
    hcm::HttpConnectionManager out;
    auto l = get<lst::Listener>(ResourceType::kListener, kScope, listener);
    EXPECT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&out));
    return out;
  }
  cl::Cluster cluster(const std::string& name = Shop::name(80)) {
    return get<cl::Cluster>(ResourceType::kCluster, kScope, name);
  }
  rt::RouteAction route() {
    return get<rt::RouteConfiguration>(ResourceType::kRoute, kScope, name(80))
        .virtual_hosts(0)
        .routes(0)
        .route();
  }
  // "http/1.1", "h2", "client's" or "nothing said".
  std::string upstream(const std::string& cluster_name) {
    const cl::Cluster c = cluster(cluster_name);
    const auto& options = c.typed_extension_protocol_options();
    if (options.empty()) return "nothing said";
    Upstream out;
    EXPECT_TRUE(options.begin()->second.UnpackTo(&out));
    if (out.has_use_downstream_protocol_config()) return "client's";
    return out.explicit_http_config().has_http2_protocol_options() ? "h2" : "http/1.1";
  }
};

std::string json(const google::protobuf::Message& message) {
  std::string out;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(message, &out, options).ok());
  return out;
}

TEST(WaypointDefaults, EveryValueThatIstioOverridesIsSaid) {
  Shop mesh;
  const std::string manager = json(mesh.manager());
  const std::string cluster = json(mesh.cluster());
  const std::string route = json(mesh.route());
  struct Row {
    const char* setting;
    const std::string& where;
    const char* value;
  };
  const Row rows[] = {
      {"stream_idle_timeout", manager, R"("stream_idle_timeout":"0s")"},
      {"normalize_path", manager, R"("normalize_path":true)"},
      {"escaped slashes", manager, R"("path_with_escaped_slashes_action":"KEEP_UNCHANGED")"},
      {"server header", manager, R"("server_header_transformation":"PASS_THROUGH")"},
      {"upgrades", manager, R"("upgrade_configs":[{"upgrade_type":"websocket"}])"},
      {"max_concurrent_streams", manager, R"("max_concurrent_streams":1024)"},
      {"connect_timeout", cluster, R"("connect_timeout":"10s")"},
      {"lb_policy", cluster, R"("lb_policy":"LEAST_REQUEST")"},
      {"max_connections", cluster, R"("max_connections":4294967295)"},
      {"max_pending_requests", cluster, R"("max_pending_requests":4294967295)"},
      {"max_requests", cluster, R"("max_requests":4294967295)"},
      {"max_retries", cluster, R"("max_retries":4294967295)"},
      {"panic", cluster, R"("healthy_panic_threshold":{})"},
      {"protocol of an http port", cluster, R"("explicit_http_config":{"http_protocol_options":{}})"},
      {"route timeout", route, R"("timeout":"0s")"},
      {"gRPC's own deadline", route, R"("max_grpc_timeout":"0s")"},
      {"retries", route, R"("num_retries":2)"},
      {"retry_on", route, R"("retry_on":"connect-failure,refused-stream,reset-before-request")"},
      {"other host", route, R"("host_selection_retry_max_attempts":"5")"},
  };
  for (const Row& row : rows) EXPECT_THAT(row.where, HasSubstr(row.value)) << row.setting;
  // Left out, because Envoy's default is the value (see the table).
  for (const char* field : {"merge_slashes", "use_remote_address", "request_timeout",
                            "max_request_headers_kb", "max_stream_duration", "idle_timeout"}) {
    EXPECT_THAT(manager, testing::Not(HasSubstr(fmt::format("\"{}\"", field)))) << field;
  }
}

TEST(WaypointDefaults, AnAnswerMayTakeAsLongAsTheApplicationNeeds) {
  Shop mesh;
  for (const std::string& listener : mesh.names(ResourceType::kListener, kScope)) {
    if (listener.find("|tcp|") != std::string::npos) continue;
    EXPECT_TRUE(mesh.manager(listener).has_stream_idle_timeout()) << listener;
    EXPECT_EQ(mesh.manager(listener).stream_idle_timeout().seconds(), 0) << listener;
  }
}

TEST(WaypointDefaults, ThePortOrTheRuleDecidesWhatIsSpokenToThePods) {
  Shop mesh;
  EXPECT_EQ(mesh.upstream(Shop::name(80)), "http/1.1");
  EXPECT_EQ(mesh.upstream(Shop::name(81)), "h2") << "grpc";
  EXPECT_EQ(mesh.upstream(Shop::name(82)), "h2") << "grpc-web";
  EXPECT_EQ(mesh.upstream(Shop::name(83)), "h2") << "appProtocol kubernetes.io/h2c";
  EXPECT_EQ(mesh.upstream(Shop::name(84)), "client's") << "not declared";
  EXPECT_EQ(mesh.upstream("encap"), "client's") << "a pod's own address";
  EXPECT_EQ(mesh.upstream("inbound-vip|85|tcp|catalog.shop.svc.cluster.local"), "nothing said");
  const auto rule = [&mesh](std::string_view http) {
    mesh.put("dr.yaml", fmt::format("apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
                                    "metadata: {{name: catalog, namespace: shop}}\nspec: {{host: "
                                    "catalog, trafficPolicy: {{connectionPool: {{http: {{{}}}}}}}}}\n",
                                    http));
    return mesh.upstream(Shop::name(80)) + ", " + mesh.upstream(Shop::name(81)) + ", " +
           mesh.upstream(Shop::name(84));
  };
  EXPECT_EQ(rule("h2UpgradePolicy: UPGRADE"), "h2, h2, h2");
  EXPECT_EQ(rule("h2UpgradePolicy: DO_NOT_UPGRADE"), "http/1.1, h2, http/1.1");
  EXPECT_EQ(rule("useClientProtocol: true"), "client's, client's, client's");
  EXPECT_EQ(rule("maxRetries: 3"), "http/1.1, h2, client's");
}

std::string retry_json(Shop& mesh, std::string_view retries) {
  mesh.put("vs.yaml",
           fmt::format("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: "
                       "v, namespace: shop}}\nspec: {{hosts: [catalog], http: [{{retries: {{{}}}, "
                       "route: [{{destination: {{host: catalog, port: {{number: 80}}}}}}]}}]}}\n",
                       retries));
  return json(mesh.route().retry_policy());
}

TEST(Retries, StatusCodesAreSaidInEnvoysWords) {
  Shop mesh;
  EXPECT_THAT(retry_json(mesh, "attempts: 1, retryOn: \"503\""),
              HasSubstr(R"("retry_on":"retriable-status-codes")"));
  EXPECT_THAT(retry_json(mesh, "attempts: 1, retryOn: \"503\""),
              HasSubstr(R"("retriable_status_codes":[503])"));
  EXPECT_THAT(retry_json(mesh, "attempts: 1, retryOn: \"reset, 502,retriable-status-codes ,504\""),
              HasSubstr(R"("retry_on":"reset,retriable-status-codes")"));
  EXPECT_THAT(retry_json(mesh, "attempts: 1"),
              HasSubstr("connect-failure,refused-stream,unavailable,cancelled,"
                        "retriable-status-codes"));
  EXPECT_THAT(retry_json(mesh, "attempts: 1, retryIgnorePreviousHosts: false"),
              testing::Not(HasSubstr("previous_hosts")));
}

// istioctl's columns VIRTUAL SERVICE and DESTINATION RULE are read from there.
TEST(ConfigMetadata, NamesTheObjectThatAClusterOrRouteIsMadeOf) {
  Shop mesh;
  const auto config = [](const auto& message) {
    const auto& fields = message.metadata().filter_metadata();
    const auto istio = fields.find("istio");
    if (istio == fields.end() || !istio->second.fields().contains("config")) return std::string();
    return istio->second.fields().at("config").string_value();
  };
  const auto first_route = [&mesh] {
    return mesh.get<rt::RouteConfiguration>(ResourceType::kRoute, kScope, Shop::name(80))
        .virtual_hosts(0)
        .routes(0);
  };
  EXPECT_EQ(config(first_route()), "") << "no VirtualService: an empty column";
  EXPECT_EQ(config(mesh.cluster()), "");
  mesh.put("vs.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: "
                      "canary, namespace: shop}\nspec: {hosts: [catalog], http: [{route: "
                      "[{destination: {host: catalog, subset: v1, port: {number: 80}}}]}]}\n");
  mesh.put("dr.yaml", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: "
                      "versions, namespace: shop}\nspec: {host: catalog, subsets: [{name: v1, "
                      "labels: {app: catalog}}]}\n");
  EXPECT_EQ(config(first_route()),
            "/apis/networking.istio.io/v1alpha3/namespaces/shop/virtual-service/canary");
  const cl::Cluster subset =
      mesh.cluster("inbound-vip|80|http/v1|catalog.shop.svc.cluster.local");
  EXPECT_EQ(config(subset),
            "/apis/networking.istio.io/v1alpha3/namespaces/shop/destination-rule/versions");
  const auto& istio = subset.metadata().filter_metadata().at("istio").fields();
  EXPECT_EQ(istio.at("subset").string_value(), "v1");
  EXPECT_EQ(istio.at("services").list_value().values_size(), 1);
  mesh.remove("dr.yaml");
  mesh.remove("vs.yaml");
  EXPECT_EQ(config(mesh.cluster()), "");
}

TEST(PathNormalization, TheMeshConfigChoosesTheFormThatRulesSee) {
  Shop mesh;
  struct Row {
    const char* form;
    bool normalize, merge;
    hcm::HttpConnectionManager::PathWithEscapedSlashesAction slashes;
  };
  using Manager = hcm::HttpConnectionManager;
  const Row rows[] = {
      {"DEFAULT", true, false, Manager::KEEP_UNCHANGED},
      {"BASE", true, false, Manager::KEEP_UNCHANGED},
      {"NONE", false, false, Manager::KEEP_UNCHANGED},
      {"MERGE_SLASHES", true, true, Manager::KEEP_UNCHANGED},
      {"DECODE_AND_MERGE_SLASHES", true, true, Manager::UNESCAPE_AND_FORWARD},
  };
  for (const Row& row : rows) {
    mesh.put("mesh.yaml", fmt::format("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, "
                                      "namespace: istio-system}}\ndata:\n  mesh: |\n    "
                                      "pathNormalization: {{normalization: {}}}\n",
                                      row.form));
    const Manager manager = mesh.manager();
    EXPECT_EQ(manager.normalize_path().value(), row.normalize) << row.form;
    EXPECT_EQ(manager.merge_slashes(), row.merge) << row.form;
    EXPECT_EQ(manager.path_with_escaped_slashes_action(), row.slashes) << row.form;
  }
  mesh.remove("mesh.yaml");
  EXPECT_FALSE(mesh.manager().merge_slashes());
}

std::string mesh_problem(std::string_view mesh) {
  const std::string yaml = fmt::format(
      "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n"
      "  mesh: |\n    {}\n",
      mesh);
  std::string out;
  for (const Problem& problem : read_and_validate(yaml, "mesh.yaml").problems) {
    out += problem.to_string() + "\n";
  }
  return out;
}

TEST(PathNormalization, WhatTheMeshConfigCannotSayIsRefusedOrNamed) {
  EXPECT_EQ(mesh_problem("pathNormalization: {normalization: MERGE_SLASHES}"), "");
  EXPECT_EQ(mesh_problem("trustDomain: cluster.local"), "");
  EXPECT_THAT(mesh_problem("pathNormalization: {normalization: MERGE}"),
              HasSubstr("error: ConfigMap istio-system/istio (mesh.yaml:5): "
                        "data.mesh.pathNormalization.normalization: \"MERGE\" is no form of paths"));
  EXPECT_THAT(mesh_problem("trustDomain: example.org"), HasSubstr("TRUST_DOMAIN=example.org"));
  EXPECT_THAT(mesh_problem("{accessLogFile: /dev/stdout, enableTracing: true}"),
              HasSubstr("warning: ConfigMap istio-system/istio (mesh.yaml:5): data.mesh: accepted "
                        "without effect: accessLogFile, enableTracing"));
  EXPECT_THAT(mesh_problem("[a"), HasSubstr("error: "));
}

TEST(EnvoyRules, FindWhatAStrictEnvoyRefuses) {
  rt::RouteConfiguration config;
  rt::RouteAction* action =
      config.add_virtual_hosts()->add_routes()->mutable_route();
  action->mutable_retry_policy()->add_retry_host_predicate()->set_name("previous_hosts");
  action->mutable_retry_policy()->mutable_retry_back_off();
  const std::vector<std::string> found = envoy_violations(config);
  EXPECT_THAT(found, Contains("envoy.config.route.v3.VirtualHost.domains: repeated.min_items=1"));
  EXPECT_THAT(found, Contains("envoy.config.route.v3.VirtualHost.name: string.min_len=1"));
  EXPECT_THAT(found, Contains("envoy.config.route.v3.Route.match: message.required=true"));
  EXPECT_THAT(found,
              Contains("envoy.config.route.v3.RouteAction.oneof cluster_specifier: required=true"));
  EXPECT_THAT(found, Contains("envoy.config.route.v3.RetryPolicy.RetryBackOff.base_interval: "
                              "duration.required=true"));
  EXPECT_THAT(found, Contains("envoy.config.route.v3.RetryPolicy.RetryHostPredicate: typed_config "
                              "is not set"));
}

}  // namespace
}  // namespace meltemi::config
