#include "tests/unit/config/random_manifests.h"

#include <fmt/format.h>

#include "tests/unit/config/fixture.h"

namespace meltemi::config {

RandomManifests::File RandomManifests::object() {
  const char* where = ns();
  switch (pick(9)) {
    case 0:
      return {
          fmt::format("ns-{}", where),
          fmt::format(
              "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {{{}}}}}\n", where,
              one_of({"x: y", "istio.io/dataplane-mode: ambient", "istio.io/use-waypoint: w1",
                      "istio.io/use-waypoint: w2, istio.io/use-waypoint-namespace: shop"}))};
    case 1:
    case 2:
      return pod(where);
    case 3:
      return service(where);
    case 4:
      return gateway(where);
    case 5:
      return virtual_service(where);
    case 6:
      return destination_rule(where);
    case 7:
      return policy(where);
    default:
      return peer_authentication(where);
  }
}

RandomManifests::File RandomManifests::pod(const char* where) {
  uint32_t i = pick(4);
  std::string name = fmt::format("p{}", i);
  std::string yaml = pod_yaml(
      where, name,
      fmt::format("app: {}, version: {}{}", app(), one_of({"v1", "v2"}),
                  one_of({"", ", istio.io/use-waypoint: w1", ", istio.io/use-waypoint: none"})),
      fmt::format("10.{}.0.{}", int{where[0]}, i + 1),
      fmt::format("  serviceAccountName: {}", one_of({"x", "y"})));
  if (pick(5) == 0) yaml.replace(yaml.find("\"True\""), 6, "\"False\"");
  if (pick(8) == 0) yaml.replace(yaml.find("Running"), 7, "Failed");
  return {fmt::format("pod-{}-{}", where, name), yaml};
}

RandomManifests::File RandomManifests::service(const char* where) {
  const char* name = app();
  return {fmt::format("svc-{}-{}", where, name),
          fmt::format("apiVersion: v1\nkind: Service\nmetadata: {{name: {1}, namespace: {0}, "
                      "labels: {{{2}}}}}\nspec:\n"
                      "  clusterIP: {3}\n  selector: {{app: {4}}}\n  ports: [{{name: {5}, port: "
                      "{6}, targetPort: {7}}}]\n",
                      where, name,
                      one_of({"x: y", "istio.io/use-waypoint: w1", "istio.io/use-waypoint: none"}),
                      one_of({"10.96.0.1", "None", "fd00::1"}), app(),
                      one_of({"http", "tcp", "grpc", "other"}), 80 + pick(2),
                      one_of({"http", "8080", "nope"}))};
}

RandomManifests::File RandomManifests::gateway(const char* where) {
  const char* name = one_of({"w1", "w2"});
  return {fmt::format("gw-{}-{}", where, name),
          fmt::format("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: "
                      "{1}, namespace: {0}, {2}}}\n"
                      "spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: "
                      "15008, protocol: HBONE, "
                      "allowedRoutes: {{namespaces: {{from: {3}}}}}}}]}}\n",
                      where, name,
                      one_of({"labels: {a: b}", "labels: {istio.io/waypoint-for: all}",
                              "labels: {istio.io/waypoint-for: workload}",
                              "annotations: {istio.io/for-service-account: x}"}),
                      one_of({"Same", "All"}))};
}

RandomManifests::File RandomManifests::virtual_service(const char* where) {
  const char* host = app();
  return {
      fmt::format("vs-{}-{}", where, host),
      fmt::format("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: "
                  "{1}, namespace: {0}}}\nspec:\n"
                  "  hosts: [{1}]\n  http:\n  - match: [{{uri: {{prefix: /{2}}}}}]\n    route:\n"
                  "    - {{destination: {{host: {3}, subset: {4}}}, weight: 1}}\n    - "
                  "{{destination: {{host: {5}.other.svc.cluster.local}}, weight: 2}}\n"
                  "  {6}\n",
                  where, host, one_of({"x", "y"}), app(), one_of({"s1", "s2"}), app(),
                  one_of({"", "- directResponse: {status: 404}",
                          "- timeout: 1s\n    route: [{destination: {host: a}}]"}))};
}

RandomManifests::File RandomManifests::destination_rule(const char* where) {
  const char* host = one_of({"a", "b", "c", "\"*.svc.cluster.local\""});
  return {fmt::format("dr-{}-{}", where, one_of({"1", "2"})),
          fmt::format("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: "
                      "{{name: d{3}, namespace: {0}}}\nspec:\n"
                      "  host: {1}\n  trafficPolicy: {{loadBalancer: {{simple: {2}}}}}\n  subsets: "
                      "[{{name: s1, labels: {{version: v1}}}}]\n",
                      where, host, one_of({"RANDOM", "ROUND_ROBIN"}), next_++)};
}

RandomManifests::File RandomManifests::policy(const char* where) {
  const char* name = one_of({"p1", "p2"});
  return {
      fmt::format("ap-{}-{}", where, name),
      fmt::format(
          "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {1}, "
          "namespace: {0}}}\nspec:\n"
          "  {2}\n  action: {3}\n  rules: [{{from: [{{source: {{namespaces: [{0}]}}}}]}}]\n",
          where, name,
          one_of({"", "selector: {matchLabels: {app: a}}", "selector: {matchLabels: {version: v1}}",
                  "targetRefs: [{kind: Service, group: \"\", name: a}]",
                  "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w1}]"}),
          one_of({"ALLOW", "DENY"}))};
}

RandomManifests::File RandomManifests::peer_authentication(const char* where) {
  const char* name = one_of({"x", "y"});
  return {
      fmt::format("pa-{}-{}", where, name),
      fmt::format(
          "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {1}, "
          "namespace: {0}}}\nspec: {2}\n",
          where, name,
          one_of({"{mtls: {mode: STRICT}}", "{mtls: {mode: UNSET}}",
                  "{selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: "
                  "{mode: PERMISSIVE}}}",
                  "{selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: STRICT}}}"}))};
}

}  // namespace meltemi::config
