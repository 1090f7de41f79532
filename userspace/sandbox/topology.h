// The network of a sandbox: the fabric (a bridge in a netns of its own), the nodes, and each pod's
// veth; and its removal. Everything is made inside namespaces named after the sandbox, nothing in
// the root namespace. Must never touch what another sandbox or the machine owns: removal goes by
// this sandbox's names only.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/sandbox/layout.h"
#include "userspace/sys/netns.h"

namespace meltemi::sandbox {

// The namespace of the fabric with its bridge and the cluster DNS address, and routes to the pods
// of `nodes` nodes. Error if it exists.
Status create_fabric(const Layout& layout, int nodes);
// One node's namespace, its uplink and its routes to the other nodes' pods. Error if it exists.
Status create_node(const Layout& layout, int index, int nodes);

struct PodNetwork {
  std::string netns_name;
  AddressPair addresses;
  std::string host_interface;  // in the node
};
// A pod's namespace with eth0 (/32 and /128) routed through the node's side of the veth. Must be
// called in the node's namespace or any other: it enters the node by itself. Error if it exists.
Result<PodNetwork> create_pod_network(const Layout& layout, int node_index, std::string_view uid,
                                      int host);
// No error if it is not there.
Status remove_pod_network(const Layout& layout, int node_index, std::string_view uid);

// Makes a namespace fit for the mesh's tests: cubic where the machine lists it (bbr paces on veth),
// no IPv6 duplicate address detection. Called by the functions above.
Status tune_namespace(const sys::Netns& netns, bool forwards);

// What is there of a sandbox, by its names. Empty when it left nothing behind.
Result<std::vector<std::string>> find_remains(const Layout& layout);
// Kills every process of the sandbox's cgroups, then removes namespaces, mounts, cgroups and files.
// Also after a crash of any part, at any step. Running it twice is no error.
Status remove_everything(const Layout& layout);

// Sandboxes that have left a run directory, running or crashed.
std::vector<std::string> list_sandboxes();

}  // namespace meltemi::sandbox
