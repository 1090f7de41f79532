#include "tests/unit/config/fixture.h"

#include <fmt/format.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "tests/unit/config/envoy_rules.h"

namespace meltemi::config {
namespace {

template <typename Proto>
void expect_valid(const ResourceChange& change) {
  Proto message;
  ASSERT_TRUE(message.ParseFromString(change.resource->body)) << change.name;
  for (const std::string& violation : envoy_violations(message)) {
    ADD_FAILURE() << "Envoy would refuse " << change.name << ": " << violation;
  }
}

}  // namespace

TranslationResult Mesh::checked(TranslationResult result) {
  namespace v3 = ::envoy::config;
  for (const ResourceChange& change : result.resources) {
    if (!change.resource) continue;
    switch (change.type) {
      case ResourceType::kListener:
        expect_valid<v3::listener::v3::Listener>(change);
        break;
      case ResourceType::kRoute:
        expect_valid<v3::route::v3::RouteConfiguration>(change);
        break;
      case ResourceType::kCluster:
        expect_valid<v3::cluster::v3::Cluster>(change);
        break;
      case ResourceType::kEndpoints:
        expect_valid<v3::endpoint::v3::ClusterLoadAssignment>(change);
        break;
      default:
        break;
    }
  }
  return result;
}

std::string pod_yaml(std::string_view ns, std::string_view name, std::string_view labels,
                     std::string_view ip, std::string_view extra_spec) {
  return fmt::format(R"(---
apiVersion: v1
kind: Pod
metadata: {{name: {1}, namespace: {0}, uid: uid-{0}-{1}, labels: {{{2}}}}}
spec:
  nodeName: node-a
  containers:
  - name: main
    command: [serve]
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /, port: http}}}}
{4}
status:
  phase: Running
  podIP: {3}
  podIPs: [{{ip: {3}}}]
  conditions: [{{type: Ready, status: "True"}}]
)",
                     ns, name, labels, ip, extra_spec);
}

}  // namespace meltemi::config
