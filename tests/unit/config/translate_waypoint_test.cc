// What a waypoint gets: listeners, routes, clusters, endpoints and RBAC; and which waypoint serves
// what.
#include <gmock/gmock.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/filters/network/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "tests/unit/config/fixture.h"
#include "workload/workload.pb.h"

namespace meltemi::config {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::UnorderedElementsAre;
namespace wl = ::istio::workload;
namespace rt = ::envoy::config::route::v3;
namespace lst = ::envoy::config::listener::v3;
namespace cl = ::envoy::config::cluster::v3;
namespace ep = ::envoy::config::endpoint::v3;
namespace hcm = ::envoy::extensions::filters::network::http_connection_manager::v3;
namespace tcp = ::envoy::extensions::filters::network::tcp_proxy::v3;
namespace rbac = ::envoy::config::rbac::v3;

const Scope kScope = "waypoint/shop/waypoint";
constexpr char kHttp[] = "inbound-vip|80|http|catalog.shop.svc.cluster.local";
constexpr char kV1[] = "inbound-vip|80|http/version-v1|catalog.shop.svc.cluster.local";
constexpr char kV2[] = "inbound-vip|80|http/version-v2|catalog.shop.svc.cluster.local";

constexpr char kBase[] = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: meltemi-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  selector: {app: catalog}
  ports:
  - {name: http, port: 80, targetPort: http}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: other}
spec: {clusterIP: 10.96.0.11, selector: {app: reviews}, ports: [{name: grpc, port: 9080}]}
)";

std::string pods() {
  return pod_yaml("shop", "catalog-v1", "app: catalog, version: v1", "10.244.0.5",
                  "  serviceAccountName: catalog") +
         pod_yaml("shop", "catalog-v2", "app: catalog, version: v2", "10.244.1.6",
                  "  serviceAccountName: catalog");
}

constexpr char kSubsets[] = R"(
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {connectTimeout: 3s, maxConnections: 7}}}
  subsets:
  - {name: version-v1, labels: {version: v1}}
  - {name: version-v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
)";

std::string vs(std::string_view http) {
  return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, "
         "namespace: shop}\n"
         "spec:\n  hosts: [catalog]\n  http:\n" +
         std::string(http);
}

struct Shop : Mesh {
  Shop() {
    put("base.yaml", kBase);
    put("pods.yaml", pods());
  }
  rt::VirtualHost routes(std::string_view name = kHttp) {
    return get<rt::RouteConfiguration>(ResourceType::kRoute, kScope, name).virtual_hosts(0);
  }
  hcm::HttpConnectionManager manager(std::string_view listener = kHttp) {
    hcm::HttpConnectionManager out;
    auto l = get<lst::Listener>(ResourceType::kListener, kScope, listener);
    EXPECT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&out));
    return out;
  }
};

TEST(TranslateProxy, ServicePortBecomesAVirtualListener) {
  Shop mesh;
  auto l = mesh.get<lst::Listener>(ResourceType::kListener, kScope, kHttp);
  EXPECT_FALSE(l.bind_to_port().value());
  EXPECT_TRUE(l.has_bind_to_port());
  EXPECT_EQ(l.address().socket_address().address(), "10.96.0.10");
  EXPECT_EQ(l.address().socket_address().port_value(), 80u);
  ASSERT_EQ(l.additional_addresses_size(), 1);
  EXPECT_EQ(l.additional_addresses(0).address().socket_address().address(), "fd00:96::10");
  EXPECT_EQ(mesh.manager().rds().route_config_name(), kHttp);
  ASSERT_EQ(mesh.manager().http_filters_size(), 1);
  EXPECT_EQ(mesh.manager().http_filters(0).name(), "envoy.filters.http.router");
  EXPECT_THAT(mesh.names(ResourceType::kCluster, kScope), UnorderedElementsAre("encap", kHttp));
  // The other namespace has no waypoint: nothing of it is here.
  EXPECT_THAT(mesh.names(ResourceType::kListener, kScope), ElementsAre(kHttp));
  auto service = mesh.get<wl::Address>(ResourceType::kAddress, kEveryone,
                                       "shop/catalog.shop.svc.cluster.local")
                     .service();
  EXPECT_EQ(service.waypoint().hostname().hostname(), "waypoint.shop.svc.cluster.local");
  EXPECT_EQ(service.waypoint().hbone_mtls_port(), 15008u);
}

TEST(TranslateProxy, DefaultRoute) {
  Shop mesh;
  rt::VirtualHost host = mesh.routes();
  EXPECT_EQ(host.name(), "inbound|http|80");
  EXPECT_THAT(host.domains(), ElementsAre("*"));
  ASSERT_EQ(host.routes_size(), 1);
  EXPECT_EQ(host.routes(0).route().cluster(), kHttp);
  EXPECT_TRUE(host.routes(0).route().has_timeout()) << "Istio has no timeout by default";
  EXPECT_EQ(host.routes(0).route().timeout().seconds(), 0);
  EXPECT_EQ(host.routes(0).route().retry_policy().retry_on(),
            "connect-failure,refused-stream,reset-before-request")
      << "only provably unprocessed requests are repeated";
}

TEST(TranslateCluster, EndpointsFollowTheKernel) {
  Shop mesh;
  mesh.translator().set_enrolled("node-a", {"uid-shop-catalog-v1"});
  auto endpoints =
      mesh.get<ep::ClusterLoadAssignment>(ResourceType::kEndpoints, kScope, kHttp).endpoints(0);
  ASSERT_EQ(endpoints.lb_endpoints_size(), 2);
  const auto& hbone = endpoints.lb_endpoints(0);
  EXPECT_EQ(hbone.endpoint().address().envoy_internal_address().server_listener_name(),
            "connect_originate");
  EXPECT_EQ(hbone.endpoint().address().envoy_internal_address().endpoint_id(), "10.244.0.5:8080");
  EXPECT_EQ(hbone.metadata()
                .filter_metadata()
                .at("envoy.filters.listener.original_dst")
                .fields()
                .at("local")
                .string_value(),
            "10.244.0.5:8080");
  EXPECT_EQ(hbone.health_status(), ::envoy::config::core::v3::HEALTHY);
  const auto& plain = endpoints.lb_endpoints(1);
  EXPECT_EQ(plain.endpoint().address().socket_address().address(), "10.244.1.6");
  EXPECT_EQ(plain.endpoint().address().socket_address().port_value(), 8080u);
}

TEST(TranslateCluster, DestinationRuleShapesIt) {
  Shop mesh;
  mesh.put("dr.yaml", kSubsets);
  mesh.put("vs.yaml", vs("  - match: [{headers: {x-dark-launch: {exact: v2}}}]\n    route: "
                         "[{destination: {host: catalog, subset: version-v2}}]\n"
                         "  - route: [{destination: {host: catalog, subset: version-v1}}]\n"));
  EXPECT_THAT(mesh.names(ResourceType::kCluster, kScope), UnorderedElementsAre("encap", kV1, kV2));
  auto v1 = mesh.get<cl::Cluster>(ResourceType::kCluster, kScope, kV1);
  EXPECT_EQ(v1.lb_policy(), cl::Cluster::RANDOM);
  EXPECT_EQ(v1.connect_timeout().seconds(), 3);
  EXPECT_EQ(v1.circuit_breakers().thresholds(0).max_connections().value(), 7u);
  auto services = v1.metadata().filter_metadata().at("istio").fields().at("services").list_value();
  EXPECT_EQ(services.values(0).struct_value().fields().at("host").string_value(),
            "catalog.shop.svc.cluster.local");
  auto v2 = mesh.get<cl::Cluster>(ResourceType::kCluster, kScope, kV2);
  EXPECT_EQ(v2.lb_policy(), cl::Cluster::ROUND_ROBIN) << "the subset's own";
  EXPECT_EQ(v2.connect_timeout().seconds(), 3) << "inherited";
  auto endpoints = mesh.get<ep::ClusterLoadAssignment>(ResourceType::kEndpoints, kScope, kV2);
  ASSERT_EQ(endpoints.endpoints(0).lb_endpoints_size(), 1);
  rt::VirtualHost host = mesh.routes();
  ASSERT_EQ(host.routes_size(), 2);
  EXPECT_EQ(host.routes(0).match().headers(0).string_match().exact(), "v2");
  EXPECT_EQ(host.routes(0).route().cluster(), kV2);
  EXPECT_EQ(host.routes(0).name(), "shop/catalog/http[0]");
  // Without the rule the subset is unknown: no cluster, so the waypoint answers 503 for it.
  mesh.remove("dr.yaml");
  EXPECT_THAT(mesh.names(ResourceType::kCluster, kScope), ElementsAre("encap"));
}

TEST(TranslateCluster, HttpTwoWhereThePortSaysSo) {
  Shop mesh;
  mesh.put("grpc.yaml",
           "apiVersion: v1\nkind: Service\nmetadata: {name: rpc, namespace: shop}\nspec: "
           "{clusterIP: 10.96.0.12, "
           "selector: {app: catalog}, ports: [{name: grpc-api, port: 50051}]}\n");
  auto c = mesh.get<cl::Cluster>(ResourceType::kCluster, kScope,
                                 "inbound-vip|50051|http|rpc.shop.svc.cluster.local");
  ::envoy::extensions::upstreams::http::v3::HttpProtocolOptions options;
  ASSERT_TRUE(c.typed_extension_protocol_options()
                  .at("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
                  .UnpackTo(&options));
  EXPECT_TRUE(options.explicit_http_config().has_http2_protocol_options());
}

TEST(TranslateRoutes, AllMatches) {
  Shop mesh;
  mesh.put("vs.yaml", vs(R"(  - name: all
    match:
    - name: one
      uri: {prefix: /api}
      ignoreUriCase: true
      method: {exact: GET}
      authority: {regex: "cat.*"}
      scheme: {exact: http}
      headers: {b: {}, a: {prefix: x}}
      withoutHeaders: {c: {exact: y}, d: {}}
      queryParams: {q: {regex: "[0-9]+"}, r: {}}
    - {uri: {exact: /exact}, port: 80}
    - {uri: {regex: "/r.*"}}
    - {uri: {exact: /other-port}, port: 81}
    - {uri: {exact: /labelled}, sourceLabels: {app: web}}
    - {uri: {exact: /ingress}, gateways: [shop/gw]}
    - {uri: {exact: /here}, sourceNamespace: shop}
    - {uri: {exact: /there}, sourceNamespace: elsewhere}
    route: [{destination: {host: catalog}}]
)"));
  rt::VirtualHost host = mesh.routes();
  ASSERT_EQ(host.routes_size(), 4) << host.DebugString();
  EXPECT_EQ(host.routes(0).name(), "all.one");
  const rt::RouteMatch& one = host.routes(0).match();
  EXPECT_EQ(one.prefix(), "/api");
  EXPECT_FALSE(one.case_sensitive().value());
  ASSERT_EQ(one.headers_size(), 7);
  EXPECT_EQ(one.headers(0).name(), ":method");
  EXPECT_EQ(one.headers(1).string_match().safe_regex().regex(), "cat.*");
  EXPECT_EQ(one.headers(2).name(), ":scheme");
  EXPECT_EQ(one.headers(3).string_match().prefix(), "x");
  EXPECT_TRUE(one.headers(4).present_match());
  EXPECT_TRUE(one.headers(5).invert_match());
  EXPECT_TRUE(one.headers(5).treat_missing_header_as_empty());
  EXPECT_TRUE(one.headers(6).invert_match() && one.headers(6).present_match());
  EXPECT_EQ(one.query_parameters(0).string_match().safe_regex().regex(), "[0-9]+");
  EXPECT_TRUE(one.query_parameters(1).present_match());
  EXPECT_EQ(host.routes(1).match().path(), "/exact");
  EXPECT_EQ(host.routes(2).match().safe_regex().regex(), "/r.*");
  EXPECT_EQ(host.routes(3).match().path(), "/here");
}

TEST(TranslateRoutes, Actions) {
  Shop mesh;
  mesh.put("vs.yaml", vs(R"(  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, authority: example.org, scheme: https, redirectCode: 302, derivePort: FROM_PROTOCOL_DEFAULT}
  - match: [{uri: {prefix: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {prefix: /weighted}}]
    route:
    - {destination: {host: catalog}, weight: 90, headers: {request: {add: {x-a: "1"}}, response: {remove: [server]}}}
    - {destination: {host: reviews.other.svc.cluster.local, port: {number: 9080}}, weight: 10}
    - {destination: {host: catalog}, weight: 0}
  - match: [{uri: {prefix: /rewrite}}]
    rewrite: {uri: /, authority: inner.example}
    headers: {request: {set: {x-b: "2"}, remove: [cookie]}}
    route: [{destination: {host: catalog}}]
  - match: [{uri: {regex: "/re/.*"}}]
    rewrite: {uri: "/plain\\1"}
    route: [{destination: {host: catalog}}]
  - match: [{uri: {prefix: /regex}}]
    rewrite: {uriRegexRewrite: {match: "^/regex/(.*)$", rewrite: "/\\1"}}
    route: [{destination: {host: catalog}}]
  - timeout: 1.5s
    retries: {attempts: 3, retryOn: "5xx,503", perTryTimeout: 2s, backoff: 40ms}
    route: [{destination: {host: catalog}}]
)"));
  rt::VirtualHost host = mesh.routes();
  ASSERT_EQ(host.routes_size(), 7);
  const auto& redirect = host.routes(0).redirect();
  EXPECT_EQ(redirect.path_redirect(), "/new");
  EXPECT_EQ(redirect.host_redirect(), "example.org");
  EXPECT_EQ(redirect.response_code(), rt::RedirectAction::FOUND);
  EXPECT_EQ(redirect.port_redirect(), 443u);
  EXPECT_EQ(host.routes(1).direct_response().status(), 418u);
  EXPECT_EQ(host.routes(1).direct_response().body().inline_string(), "short and stout");
  const auto& weighted = host.routes(2).route().weighted_clusters();
  ASSERT_EQ(weighted.clusters_size(), 2);
  EXPECT_EQ(weighted.clusters(0).weight().value(), 90u);
  EXPECT_EQ(weighted.clusters(0).request_headers_to_add(0).header().key(), "x-a");
  EXPECT_EQ(weighted.clusters(0).response_headers_to_remove(0), "server");
  EXPECT_EQ(weighted.clusters(1).name(), "outbound|9080||reviews.other.svc.cluster.local");
  EXPECT_TRUE(
      mesh.has(ResourceType::kCluster, kScope, "outbound|9080||reviews.other.svc.cluster.local"));
  EXPECT_EQ(host.routes(3).route().prefix_rewrite(), "/");
  EXPECT_EQ(host.routes(3).route().host_rewrite_literal(), "inner.example");
  EXPECT_EQ(host.routes(3).request_headers_to_add(0).append_action(),
            ::envoy::config::core::v3::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
  EXPECT_EQ(host.routes(3).request_headers_to_remove(0), "cookie");
  EXPECT_EQ(host.routes(4).route().regex_rewrite().substitution(), "/plain\\\\1")
      << "a literal, not a group";
  EXPECT_EQ(host.routes(5).route().regex_rewrite().pattern().regex(), "^/regex/(.*)$");
  const auto& last = host.routes(6).route();
  EXPECT_EQ(last.timeout().nanos(), 500'000'000);
  EXPECT_EQ(last.retry_policy().num_retries().value(), 3u);
  EXPECT_EQ(last.retry_policy().retry_on(), "5xx,retriable-status-codes");
  EXPECT_THAT(last.retry_policy().retriable_status_codes(), ElementsAre(503u));
  EXPECT_EQ(last.retry_policy().per_try_timeout().seconds(), 2);
  EXPECT_EQ(last.retry_policy().retry_back_off().base_interval().nanos(), 40'000'000);
  EXPECT_EQ(last.retry_policy().host_selection_retry_max_attempts(), 5);
}

TEST(TranslateRoutes, RulesAfterACatchAllAndForeignServicesAreLeftOut) {
  Shop mesh;
  mesh.put("vs.yaml", vs("  - route: [{destination: {host: catalog}}]\n  - match: [{uri: {prefix: "
                         "/x}}]\n    redirect: {uri: /y}\n"));
  EXPECT_EQ(mesh.routes().routes_size(), 1);
  mesh.put("vs.yaml",
           vs("  - match: [{uri: {prefix: /x}}]\n    route: [{destination: {host: catalog}}]\n"));
  EXPECT_EQ(mesh.routes().routes_size(), 1) << "no default: what no rule takes gets 404";
  // A VirtualService for another host does not touch this one.
  mesh.put("vs.yaml",
           "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, "
           "namespace: shop}\n"
           "spec: {hosts: [web], http: [{route: [{destination: {host: catalog}}]}]}\n");
  EXPECT_EQ(mesh.routes().routes(0).name(), "default");
  // One in a third namespace is neither the waypoint's nor the service's.
  mesh.put("vs.yaml",
           "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, "
           "namespace: third}\n"
           "spec: {hosts: [catalog.shop.svc.cluster.local], http: [{route: [{destination: {host: "
           "catalog}}]}]}\n");
  EXPECT_EQ(mesh.routes().routes(0).name(), "default");
}

TEST(TranslateRoutes, TwoObjectsForOneHostAreAsOneTheOldestFirst) {
  Shop mesh;
  const auto put = [&mesh](const char* name, const char* created, const char* http) {
    mesh.put(std::string(name) + ".yaml",
             std::string("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: "
                         "{name: ") +
                 name + ", namespace: shop, creationTimestamp: \"" + created +
                 "\"}\nspec: {hosts: [catalog], http: [" + http + "]}\n");
  };
  const auto names = [&mesh] {
    std::vector<std::string> out;
    for (const auto& route : mesh.routes().routes()) out.push_back(route.name());
    return out;
  };
  put("old", "2026-01-01T00:00:00Z",
      "{name: a, match: [{uri: {prefix: /a}}], redirect: {uri: /}}, {name: all, redirect: {uri: /x}},"
      " {name: after, match: [{uri: {prefix: /after}}], redirect: {uri: /}}");
  put("new", "2026-02-01T00:00:00Z",
      "{name: b, match: [{uri: {prefix: /b}}], redirect: {uri: /}}, {name: too-late, redirect: {uri: "
      "/y}}");
  EXPECT_THAT(names(), ElementsAre("a", "b", "all"));
  mesh.remove("old.yaml");
  EXPECT_THAT(names(), ElementsAre("b", "too-late"));
  // The same for a match that says no more than a missing one.
  put("new", "2026-02-01T00:00:00Z",
      "{name: everything, match: [{uri: {prefix: /}}], redirect: {uri: /}}, {name: c, match: [{uri: "
      "{exact: /c}}], redirect: {uri: /}}");
  EXPECT_THAT(names(), ElementsAre("c", "everything"));
}

TEST(TranslateProxy, TcpAndUnknownProtocols) {
  Shop mesh;
  mesh.put("db.yaml",
           "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: "
           "{clusterIP: 10.96.0.13, "
           "selector: {app: db}, ports: [{name: tcp, port: 5432}, {name: weird, port: 7}]}\n");
  const char* tcp_name = "inbound-vip|5432|tcp|db.shop.svc.cluster.local";
  auto l = mesh.get<lst::Listener>(ResourceType::kListener, kScope, tcp_name);
  tcp::TcpProxy proxy;
  ASSERT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&proxy));
  EXPECT_EQ(proxy.cluster(), tcp_name);
  auto unknown = mesh.get<lst::Listener>(ResourceType::kListener, kScope,
                                         "inbound-vip|7|http|db.shop.svc.cluster.local");
  EXPECT_THAT(unknown.filter_chains(0).filter_chain_match().application_protocols(),
              ElementsAre("http/1.1", "h2c"));
  ASSERT_TRUE(unknown.default_filter_chain().filters(0).typed_config().UnpackTo(&proxy));
  EXPECT_EQ(proxy.cluster(), "inbound-vip|7|tcp|db.shop.svc.cluster.local");
  mesh.put("vs.yaml",
           "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: db, "
           "namespace: shop}\n"
           "spec: {hosts: [db], tcp: [{match: [{port: 5432}], route: [{destination: {host: db}, "
           "weight: 1}, "
           "{destination: {host: catalog}, weight: 3}]}]}\n");
  l = mesh.get<lst::Listener>(ResourceType::kListener, kScope, tcp_name);
  ASSERT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&proxy));
  ASSERT_EQ(proxy.weighted_clusters().clusters_size(), 2);
  EXPECT_EQ(proxy.weighted_clusters().clusters(1).name(),
            "outbound|80||catalog.shop.svc.cluster.local");
}

// --- which waypoint -----------------------------------------------------------------------------

std::string gateway(std::string_view name, std::string_view meta, std::string_view listener = "") {
  return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: " +
         std::string(name) + ", namespace: shop, " + std::string(meta) +
         "}\nspec: {gatewayClassName: istio-waypoint, listeners: "
         "[{name: mesh, port: 15008, protocol: HBONE" +
         std::string(listener) + "}]}\n";
}

struct Bindings : Mesh {
  std::string service() {
    return get<wl::Address>(ResourceType::kAddress, kEveryone, "shop/s.shop.svc.cluster.local")
        .service()
        .waypoint()
        .hostname()
        .hostname();
  }
  std::string pod() {
    return get<wl::Address>(ResourceType::kAddress, kEveryone, "Kubernetes//Pod/shop/p")
        .workload()
        .waypoint()
        .hostname()
        .hostname();
  }
  void set(std::string_view ns_labels, std::string_view service_labels,
           std::string_view pod_labels) {
    put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {" +
                       std::string(ns_labels) + "}}\n");
    put("s.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, labels: {" +
                      std::string(service_labels) +
                      "}}\nspec: {clusterIP: 10.0.0.1, selector: {app: a}, ports: [{port: 80}]}\n");
    put("p.yaml", pod_yaml("shop", "p", "app: a" + std::string(pod_labels), "10.1.0.1",
                           "  serviceAccountName: web"));
  }
};

TEST(WaypointBinding, LabelsAndTrafficTypes) {
  Bindings mesh;
  const ObjectKey key{Kind::kService, "shop", "s"};
  mesh.put("g.yaml", gateway("svc", "labels: {istio.io/waypoint-for: service}") +
                         gateway("all", "labels: {istio.io/waypoint-for: all}") +
                         gateway("wl", "labels: {istio.io/waypoint-for: workload}"));
  mesh.set("", "", "");
  EXPECT_EQ(mesh.service(), "");
  mesh.set("istio.io/use-waypoint: svc", "", "");
  EXPECT_EQ(mesh.service(), "svc.shop.svc.cluster.local");
  EXPECT_EQ(mesh.pod(), "") << "a service waypoint does not take traffic to pods";
  EXPECT_EQ(mesh.reason(key, "istio.io/WaypointBound"), "WaypointAccepted");
  mesh.set("istio.io/use-waypoint: all", "", "");
  EXPECT_EQ(mesh.pod(), "all.shop.svc.cluster.local");
  mesh.set("istio.io/use-waypoint: all", "istio.io/use-waypoint: none",
           ", istio.io/use-waypoint: wl");
  EXPECT_EQ(mesh.service(), "");
  EXPECT_EQ(mesh.pod(), "wl.shop.svc.cluster.local");
  mesh.set("", "istio.io/use-waypoint: wl", "");
  EXPECT_EQ(mesh.service(), "");
  EXPECT_EQ(mesh.reason(key, "istio.io/WaypointBound"), "UnsupportedTrafficType");
  mesh.set("", "istio.io/use-waypoint: nobody", "");
  EXPECT_EQ(mesh.service(), "nobody.shop.svc.cluster.local") << "fails closed";
  EXPECT_EQ(mesh.reason(key, "istio.io/WaypointBound"), "WaypointMissing");
  mesh.set("", "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: other", "");
  EXPECT_EQ(mesh.service(), "wp.other.svc.cluster.local");
}

TEST(WaypointBinding, AdmissionOfNamespaces) {
  Bindings mesh;
  const ObjectKey key{Kind::kService, "shop", "s"};
  auto there = [](std::string_view routes) {
    return "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, "
           "namespace: other}\nspec: "
           "{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
           "HBONE" +
           std::string(routes) + "}]}\n";
  };
  mesh.set("team: blue", "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: other", "");
  mesh.put("g.yaml", there(""));
  EXPECT_EQ(mesh.reason(key, "istio.io/WaypointBound"), "AttachmentDenied");
  EXPECT_EQ(mesh.service(), "");
  mesh.put("g.yaml", there(", allowedRoutes: {namespaces: {from: All}}"));
  EXPECT_EQ(mesh.service(), "wp.other.svc.cluster.local");
  mesh.put(
      "g.yaml",
      there(
          ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: red}}}}"));
  EXPECT_EQ(mesh.service(), "");
  mesh.set("team: red", "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: other", "");
  EXPECT_EQ(mesh.service(), "wp.other.svc.cluster.local") << "the namespace's labels were read";
}

TEST(WaypointBinding, ForAServiceAccount) {
  Bindings mesh;
  mesh.put("g.yaml", gateway("web", "annotations: {istio.io/for-service-account: web}") +
                         gateway("ns", "labels: {istio.io/waypoint-for: all}"));
  mesh.set("", "", "");
  EXPECT_EQ(mesh.pod(), "web.shop.svc.cluster.local");
  EXPECT_EQ(mesh.service(), "web.shop.svc.cluster.local") << "all its pods run as web";
  mesh.set("istio.io/use-waypoint: ns", "istio.io/use-waypoint: ns", "");
  EXPECT_EQ(mesh.service(), "ns.shop.svc.cluster.local") << "an explicit label wins";
  mesh.set("", "", "");
  mesh.put("p2.yaml", pod_yaml("shop", "p2", "app: a", "10.1.0.2", "  serviceAccountName: other"));
  EXPECT_EQ(mesh.service(), "") << "pods of two accounts";
  EXPECT_EQ(mesh.pod(), "web.shop.svc.cluster.local");
}

TEST(WaypointBinding, PodBehindAWorkloadWaypoint) {
  Bindings mesh;
  mesh.put("g.yaml", gateway("wl", "labels: {istio.io/waypoint-for: workload}"));
  mesh.set("istio.io/use-waypoint: wl", "", "");
  auto l = mesh.get<lst::Listener>(ResourceType::kListener, "waypoint/shop/wl",
                                   "direct|Kubernetes//Pod/shop/p");
  EXPECT_EQ(l.address().socket_address().address(), "10.1.0.1");
  EXPECT_EQ(l.address().socket_address().port_value(), 0u);
  hcm::HttpConnectionManager manager;
  ASSERT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&manager));
  EXPECT_EQ(manager.route_config().virtual_hosts(0).routes(0).route().cluster(), "encap");
  EXPECT_EQ(mesh.get<cl::Cluster>(ResourceType::kCluster, "waypoint/shop/wl", "encap").type(),
            cl::Cluster::ORIGINAL_DST);
}

TEST(WaypointBinding, AWaypointsOwnPartsHaveNone) {
  Bindings mesh;
  mesh.put("g.yaml", gateway("all", "labels: {istio.io/waypoint-for: all}"));
  mesh.put("ns.yaml",
           "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: "
           "{istio.io/use-waypoint: all}}\n");
  mesh.put("p.yaml",
           pod_yaml("shop", "p", "gateway.networking.k8s.io/gateway-class-name: istio-waypoint",
                    "10.1.0.1"));
  EXPECT_EQ(mesh.pod(), "");
  auto w =
      mesh.get<wl::Address>(ResourceType::kAddress, kEveryone, "Kubernetes//Pod/shop/p").workload();
  EXPECT_EQ(w.tunnel_protocol(), wl::HBONE);
  EXPECT_TRUE(w.native_tunnel());
}

// --- RBAC ---------------------------------------------------------------------------------------

struct Policies : Shop {
  void policy(std::string_view name, std::string_view spec, std::string_view meta = "") {
    put(name, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " +
                  std::string(name) + ", namespace: shop, " + std::string(meta) +
                  "}\nspec: " + std::string(spec) + "\n");
  }
  ::envoy::extensions::filters::http::rbac::v3::RBAC filter(int index) {
    ::envoy::extensions::filters::http::rbac::v3::RBAC out;
    auto m = manager();
    EXPECT_LT(index, m.http_filters_size() - 1);
    EXPECT_EQ(m.http_filters(index).name(), "envoy.filters.http.rbac");
    EXPECT_TRUE(m.http_filters(index).typed_config().UnpackTo(&out));
    return out;
  }
};

TEST(TranslateRbac, PoliciesOfServiceAndGateway) {
  Policies mesh;
  mesh.policy("allow-web", R"({targetRefs: [{kind: Service, group: "", name: catalog}],
    rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/webapp"]}}, {source: {namespaces: ["team-*"], notIpBlocks: [10.0.0.0/8]}}],
             to: [{operation: {ports: ["80", "81"]}}]}]})");
  mesh.policy(
      "deny-evil",
      R"({targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}], action: DENY,
    rules: [{from: [{source: {serviceAccounts: [evil, other/bad]}}]}]})");
  mesh.policy("unrelated", "{targetRefs: [{kind: Service, group: \"\", name: other}], rules: []}");
  ASSERT_EQ(mesh.manager().http_filters_size(), 3);
  auto deny = mesh.filter(0).rules();
  EXPECT_EQ(deny.action(), rbac::RBAC::DENY);
  const auto& evil = deny.policies().at("ns[shop]-policy[deny-evil]-rule[0]");
  EXPECT_TRUE(evil.permissions(0).any());
  ASSERT_EQ(evil.principals(0).or_ids().ids_size(), 2);
  EXPECT_EQ(
      evil.principals(0).or_ids().ids(1).authenticated().principal_name().safe_regex().regex(),
      "spiffe://[^/]+/ns/other/sa/bad");
  auto allow = mesh.filter(1).rules();
  EXPECT_EQ(allow.action(), rbac::RBAC::ALLOW);
  const auto& web = allow.policies().at("ns[shop]-policy[allow-web]-rule[0]");
  EXPECT_EQ(web.permissions(0).or_rules().rules(1).destination_port(), 81u);
  ASSERT_EQ(web.principals_size(), 2);
  EXPECT_EQ(web.principals(0).authenticated().principal_name().exact(),
            "spiffe://cluster.local/ns/shop/sa/webapp");
  ASSERT_EQ(web.principals(1).and_ids().ids_size(), 2);
  EXPECT_EQ(
      web.principals(1).and_ids().ids(0).authenticated().principal_name().safe_regex().regex(),
      "spiffe://[^/]+/ns/team-.*/.*");
  EXPECT_EQ(web.principals(1).and_ids().ids(1).not_id().direct_remote_ip().prefix_len().value(),
            8u);
  EXPECT_EQ(mesh.reason({Kind::kAuthorizationPolicy, "shop", "allow-web"}, "WaypointAccepted"),
            "Accepted");
}

TEST(TranslateRbac, FailsClosed) {
  Policies mesh;
  mesh.policy("a",
              "{targetRefs: [{kind: Service, group: \"\", name: catalog}], rules: [{to: "
              "[{operation: {methods: [GET]}}]}]}");
  EXPECT_EQ(mesh.filter(0).rules().action(), rbac::RBAC::ALLOW);
  EXPECT_TRUE(mesh.filter(0).rules().policies().empty()) << "allows nothing";
  EXPECT_EQ(mesh.reason({Kind::kAuthorizationPolicy, "shop", "a"}, "WaypointAccepted"),
            "PartiallyInvalid");
  mesh.policy("a",
              "{targetRefs: [{kind: Service, group: \"\", name: catalog}], action: DENY, rules: "
              "[{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]}");
  EXPECT_TRUE(
      mesh.filter(0).rules().policies().at("ns[shop]-policy[a]-rule[0]").permissions(0).any());
  // Two conditions on principals at once cannot be said in one conjunction.
  const char* both =
      "rules: [{from: [{source: {principals: [\"td/ns/a/sa/b\"], trustDomains: [td]}}]}]}";
  mesh.policy("a",
              std::string("{targetRefs: [{kind: Service, group: \"\", name: catalog}], ") + both);
  EXPECT_TRUE(mesh.filter(0).rules().policies().empty());
  mesh.policy(
      "a",
      std::string("{targetRefs: [{kind: Service, group: \"\", name: catalog}], action: DENY, ") +
          both);
  EXPECT_EQ(mesh.filter(0).rules().policies().size(), 1u);
}

TEST(TranslateRbac, DryRunOnlyShadows) {
  Policies mesh;
  mesh.policy(
      "d", "{targetRefs: [{kind: Service, group: \"\", name: catalog}], action: DENY, rules: [{}]}",
      "annotations: {istio.io/dry-run: \"true\"}");
  EXPECT_FALSE(mesh.filter(0).has_rules());
  EXPECT_EQ(mesh.filter(0).shadow_rules().policies().size(), 1u);
  EXPECT_EQ(mesh.filter(0).shadow_rules_stat_prefix(), "istio_dry_run_deny_");
}

TEST(TranslateRbac, TcpPortsGetTheNetworkFilter) {
  Policies mesh;
  mesh.put("db.yaml",
           "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: "
           "{clusterIP: 10.96.0.13, "
           "selector: {app: db}, ports: [{name: tcp, port: 5432}]}\n");
  mesh.policy("d", "{targetRefs: [{kind: Service, group: \"\", name: db}], rules: []}");
  auto l = mesh.get<lst::Listener>(ResourceType::kListener, kScope,
                                   "inbound-vip|5432|tcp|db.shop.svc.cluster.local");
  ASSERT_EQ(l.filter_chains(0).filters_size(), 2);
  ::envoy::extensions::filters::network::rbac::v3::RBAC filter;
  ASSERT_TRUE(l.filter_chains(0).filters(0).typed_config().UnpackTo(&filter));
  EXPECT_TRUE(filter.has_rules());
  EXPECT_THAT(mesh.manager().http_filters_size(), 1) << "the policy is not the catalog's";
}

}  // namespace
}  // namespace meltemi::config
