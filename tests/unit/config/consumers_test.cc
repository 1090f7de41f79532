// What is translated is accepted by those who act on it: waypoints compile every resource, ztunnels
// convert every one, whatever the mesh looks like. The other halves of the wire are the real ones.
#include <fmt/format.h>

#include "security/authorization.pb.h"
#include "tests/unit/config/fixture.h"
#include "tests/unit/config/random_manifests.h"
#include "userspace/xds/workload_convert.h"
#include "waypoint/xds/store.h"
#include "workload/workload.pb.h"

namespace meltemi::config {
namespace {

// Feeds every reported change to the waypoint's own store and to ztunnel's own conversion.
class Consumers {
 public:
  void take(const TranslationResult& result) {
    for (const ResourceChange& change : result.resources) {
      if (auto type = waypoint::xds_type(type_url(change.type))) {
        auto& store = waypoints_[change.scope];
        if (!change.resource) {
          store.remove(*type, change.name);
        } else {
          Status ok = store.put(*type, change.name, change.resource->body);
          EXPECT_TRUE(ok) << change.scope << ": " << (ok ? "" : ok.error().to_string());
        }
        ++proxied_;
      } else if (change.resource && change.type == ResourceType::kAddress) {
        auto converted = xds::decode_address(change.resource->body);
        EXPECT_TRUE(converted) << change.name << ": "
                               << (converted ? "" : converted.error().to_string());
      } else if (change.resource && change.type == ResourceType::kAuthorization) {
        auto converted = xds::decode_policy(change.resource->body);
        EXPECT_TRUE(converted) << change.name << ": "
                               << (converted ? "" : converted.error().to_string());
      }
    }
  }
  waypoint::ConfigStore& waypoint(const Scope& scope) { return waypoints_[scope]; }
  size_t proxied() const { return proxied_; }

 private:
  std::map<Scope, waypoint::ConfigStore> waypoints_;
  size_t proxied_ = 0;
};

TEST(Consumers, AcceptEveryRandomMesh) {
  Consumers consumers;
  for (uint32_t seed = 100; seed < 106; ++seed) {
    RandomManifests make(seed);
    Mesh mesh;
    for (int step = 0; step < 300; ++step) {
      auto [path, yaml] = make.object();
      consumers.take(make.pick(5) == 0 ? mesh.remove(path) : mesh.put(path, yaml));
      if (make.pick(10) == 0) {
        consumers.take(mesh.translator().set_enrolled("node-a", {"uid-shop-p0", "uid-other-p1"}));
      }
    }
  }
  EXPECT_GT(consumers.proxied(), 1000u) << "the meshes are too poor to prove anything";
}

TEST(Consumers, AcceptEveryKindOfRule) {
  Mesh mesh;
  Consumers consumers;
  consumers.take(mesh.put("shop.yaml", R"yaml(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  selector: {app: catalog}
  ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 81, targetPort: 8080}, {name: tcp, port: 82}, {name: x, port: 83}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool:
      tcp: {maxConnections: 9, connectTimeout: 1s}
      http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 3, maxRetries: 4, idleTimeout: 5s, h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 6}
    retryBudget: {percent: 25, minRetryConcurrency: 5}
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - match:
    - uri: {prefix: /a}
      ignoreUriCase: true
      method: {exact: GET}
      authority: {regex: "c.*"}
      scheme: {prefix: ht}
      headers: {a: {}, b: {exact: c}, d: {prefix: e}, f: {regex: "g+"}}
      withoutHeaders: {h: {}, i: {exact: j}}
      queryParams: {k: {exact: l}, m: {regex: "n*"}, o: {}, p: {prefix: q}}
    - {uri: {exact: /b}}
    - {uri: {regex: "/c/[0-9]+"}, ignoreUriCase: true}
    rewrite: {uri: /z}
    headers: {request: {set: {x-a: "1%%"}, add: {x-b: ""}, remove: [x-c]}, response: {set: {x-d: "2"}, add: {x-e: "3"}, remove: [x-f]}}
    retries: {attempts: 12, retryOn: "5xx,gateway-error,reset,503,unavailable", perTryTimeout: 2s, backoff: 50ms}
    timeout: 10s
    route:
    - {destination: {host: catalog, subset: v1, port: {number: 80}}, weight: 70, headers: {request: {set: {":authority": third.example}}}}
    - {destination: {host: unknown.example.com}, weight: 30}
  - match: [{uri: {regex: "/r/(.*)"}}]
    rewrite: {uriRegexRewrite: {match: "/r/(.*)", rewrite: "/s/\\1"}}
    route: [{destination: {host: catalog}}]
  - match: [{uri: {prefix: /old/}}]
    redirect: {prefixRewrite: /new/, redirectCode: 308, scheme: https, port: 8443}
  - match: [{uri: {prefix: /older}}]
    redirect: {uri: /newer, authority: elsewhere.example, derivePort: FROM_REQUEST_PORT}
  - match: [{uri: {prefix: /none}}]
    retries: {attempts: 0}
    route: [{destination: {host: catalog}}]
  - directResponse: {status: 404, body: {bytes: aGVsbG8=}}
  tcp:
  - match: [{port: 82}]
    route: [{destination: {host: catalog, subset: v1}, weight: 1}, {destination: {host: catalog}, weight: 3}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: catalog}]
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/a/sa/b", "*/sa/c", "cluster.local/*", "*"], notPrincipals: [x], ipBlocks: [10.0.0.0/8, "fd00::1"], notIpBlocks: [10.1.0.0/16]}
    - source: {namespaces: [a, "b-*", "*-c", "*"], notNamespaces: [d.e]}
    - source: {serviceAccounts: [web, other/api.v1], notServiceAccounts: [z]}
    - source: {trustDomains: [td, "corp*", "*"], notTrustDomains: [evil]}
    to: [{operation: {ports: ["80", "81"], notPorts: ["82"]}}, {operation: {ports: ["83"]}}]
    when: [{key: destination.ip, values: [10.96.0.0/16], notValues: [10.96.0.9]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]
  action: DENY
  rules: [{}, {from: [{source: {namespaces: [evil]}}], to: [{operation: {methods: [GET]}}]}]
)yaml" + pod_yaml("shop", "catalog-1", "app: catalog, version: v1", "10.244.0.5")));
  consumers.take(mesh.translator().set_enrolled("node-a", {"uid-shop-catalog-1"}));
  waypoint::ConfigStore& store = consumers.waypoint("waypoint/shop/waypoint");
  EXPECT_TRUE(store.missing().empty()) << store.missing()[0];
  waypoint::SnapshotPtr snapshot = store.build();
  for (const char* authority :
       {"10.96.0.10:80", "[fd00:96::10]:81", "10.96.0.10:82", "10.96.0.10:83", "10.244.0.5:8080"}) {
    EXPECT_NE(snapshot->find_virtual(*SocketAddress::parse(authority)), nullptr) << authority;
  }
  EXPECT_EQ(snapshot->find_virtual(*SocketAddress::parse("10.96.0.10:84")), nullptr);
}

}  // namespace
}  // namespace meltemi::config
