// Kubernetes' part in Services: cluster addresses, endpoints, and kube-proxy's translation rules
// for pods that are not enrolled and for the node itself (enrolled pods never reach them). Pure:
// objects in, objects and text out; the supervisor writes the files and runs nft.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/config/store.h"

namespace meltemi::sandbox {

// The Services of `wanted` that need an address from the cluster's range and their runtime copies
// with clusterIP(s) filled in. Addresses that `runtime` holds are kept; a new one starts at a hash
// of the name, so that a Service that comes back most likely gets the address it had. A Service for
// which no address is left stays out.
std::vector<config::Object> assign_cluster_ips(const config::ObjectStore& wanted,
                                               const config::ObjectStore& runtime);

// Whether a pod's status says Ready=True and it is neither finished nor going away.
bool is_ready(const config::Object& pod);
bool is_finished(const config::Object& pod);  // Succeeded or Failed
bool is_terminating(const config::Object& pod);
std::vector<IpAddress> pod_ips(const config::Object& pod);
// All addresses of a Service; empty if headless or not assigned yet.
std::vector<IpAddress> cluster_ips(const config::Object& service);
// The port number that `target` (a number, a container port's name, or absent: `port`) means in
// `pod`; 0 if the pod has no port of that name.
uint16_t resolve_target_port(const config::kube::ServicePort& port, const config::Object& pod);

struct ServiceTarget {
  IpAddress address;  // the Service's
  bool udp = false;
  uint16_t port = 0;
  std::vector<SocketAddress> endpoints;  // of the same family, ready ones only; empty: refuse
};
// Every address and port of every Service, sorted. `store`: the merged view.
std::vector<ServiceTarget> service_targets(const config::ObjectStore& store);
// Pods behind a Service: ready ones, or all that run if it publishes those that are not.
std::vector<config::ObjectPtr> endpoints_of(const config::ObjectStore& store,
                                            const config::Object& service);

// Input for `nft -f -`: replaces the sandbox's table as a whole.
std::string render_nft(const std::vector<ServiceTarget>& targets);

}  // namespace meltemi::sandbox
