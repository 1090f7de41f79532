#include "tests/unit/config/fixture.h"

#include <fmt/format.h>

namespace meltemi::config {

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
