// The sandbox's nodes and the mesh's own processes (meltemid, agents, ztunnels, kubelets).
#pragma once

#include <string>
#include <vector>

#include "userspace/cli/context.h"

namespace meltemi::cli {

struct MeshProcess {
  std::string name, node, netns, log, started, last_end;
  int64_t pid = 0;  // 0: not running
  int64_t restarts = 0;
  // "meltemid", "ztunnel-node1": as a pod of istio-system would be called.
  std::string pod_name() const { return node.empty() ? name : name + "-" + node; }
};
Result<std::vector<MeshProcess>> mesh_processes(const sandbox::Layout& layout);

// `output`: "", "wide", "json" or "yaml".
int get_mesh(const Context& context, const std::string& output, bool no_headers);
int get_nodes(const Context& context, const std::string& output, bool no_headers);

// "node", "nodes", "no": not a kind of the mesh's configuration, but kubectl's word for what there is.
bool is_node_word(std::string_view word);
// "nodes", "node a b", "node/a": addresses, pods and processes of each. Exit code 1: a name that is not
// there.
int describe_nodes(const Context& context, const std::vector<std::string>& words);

}  // namespace meltemi::cli
