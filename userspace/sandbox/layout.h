// Where everything of one sandbox lies, and which addresses it uses: run directory, cgroups,
// namespace names, subnets. Pure: computes names and never touches what they name. Two sandboxes
// share nothing, so their addresses may be the same.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/address.h"
#include "userspace/base/error.h"

namespace meltemi::sandbox {

inline constexpr std::string_view kDefaultName = "default";
inline constexpr int kMaxNodes = 64;

inline constexpr uint16_t kXdsPort = 15012;
inline constexpr uint16_t kReadinessPort = 15021;
inline constexpr std::string_view kClusterDomain = "cluster.local";
inline constexpr std::string_view kSystemNamespace = "istio-system";
// Those that every sandbox begins with; they cannot be deleted.
inline constexpr std::string_view kFirstNamespaces[] = {"default", "kube-system", kSystemNamespace};

// 1-12 characters of [a-z0-9], starting with a letter. No dash: "a" and "a-b" could not be told
// apart by the prefix of a namespace's name, and `down` removes by prefix.
Status check_sandbox_name(std::string_view name);

class Layout {
 public:
  // REQUIRES: check_sandbox_name(name).
  explicit Layout(std::string_view name) : name_(name) {}

  const std::string& name() const { return name_; }

  // /run/meltemi/<name> and below.
  std::string run_dir() const { return "/run/meltemi/" + name_; }
  std::string config_dir() const { return run_dir() + "/config"; }  // the user's YAML
  std::string node_state_dir() const { return config_dir() + "/state/node"; }
  std::string control_state_dir() const { return config_dir() + "/state/control"; }
  std::string bpf_dir() const { return run_dir() + "/bpf"; }    // a bpffs of its own
  std::string pods_dir() const { return run_dir() + "/pods"; }  // a tmpfs: the pods' files
  std::string ca_dir() const { return run_dir() + "/ca"; }      // meltemid's
  std::string root_cert() const { return ca_dir() + "/root-cert.pem"; }
  std::string token_dir() const {
    return run_dir() + "/tokens";
  }  // signing key, components' tokens
  std::string token_key() const { return token_dir() + "/signing-key.pem"; }
  std::string token_public_key() const { return token_dir() + "/signing-key.pub.pem"; }
  std::string log_dir() const { return run_dir() + "/logs"; }
  std::string lock_file() const { return run_dir() + "/lock"; }  // held by a live supervisor
  std::string config_lock() const {
    return run_dir() + "/config.lock";
  }  // held while writing config/
  std::string processes_file() const { return run_dir() + "/processes.yaml"; }
  // A file named by a pod's uid asks for its deletion; its content is the grace period in seconds,
  // or nothing for the pod's own. For pods that no manifest of a user stands for.
  std::string deletions_dir() const { return run_dir() + "/deletions"; }
  std::string settings_file() const {
    return run_dir() + "/settings.yaml";
  }  // how it was brought up

  // Per node.
  std::string node_dir(std::string_view node) const {
    return run_dir() + "/nodes/" + std::string(node);
  }
  std::string node_pods_dir(std::string_view node) const { return node_dir(node) + "/pods"; }
  std::string node_log_dir(std::string_view node) const { return node_dir(node) + "/logs"; }
  std::string agent_run_dir(std::string_view node) const { return node_dir(node) + "/agent"; }
  std::string agent_socket(std::string_view node) const {
    return agent_run_dir(node) + "/agent.sock";
  }
  std::string node_bpf_dir(std::string_view node) const {
    return bpf_dir() + "/" + std::string(node);
  }

  // Relative to the cgroup2 mount.
  std::string cgroup() const { return "meltemi/" + name_; }
  std::string control_cgroup() const { return cgroup() + "/control"; }
  std::string node_cgroup(std::string_view node) const {
    return cgroup() + "/" + std::string(node);
  }
  std::string system_cgroup(std::string_view node) const { return node_cgroup(node) + "/system"; }
  // One each: the kernel knows the kubelet and ztunnel by theirs.
  std::string component_cgroup(std::string_view node, std::string_view component) const {
    return system_cgroup(node) + "/" + std::string(component);
  }
  std::string pod_cgroup(std::string_view node, std::string_view uid) const {
    return node_cgroup(node) + "/pods/" + std::string(uid);
  }

  // Names below /run/netns.
  std::string netns_prefix() const { return "meltemi-" + name_ + "-"; }
  std::string fabric_netns() const { return netns_prefix() + "fabric"; }
  std::string node_netns(std::string_view node) const { return netns_prefix() + std::string(node); }
  std::string pod_netns(std::string_view uid) const {
    return netns_prefix() + "pod-" + std::string(uid.substr(0, 8));
  }

 private:
  std::string name_;
};

// Node i is "node<i>", i = 1..kMaxNodes.
std::string node_name(int index);
// 0 if it is no node name.
int node_index(std::string_view node);

// An address of each family; what they are for is in the functions' names.
struct AddressPair {
  IpAddress v4;
  IpAddress v6;
};
AddressPair fabric_address();  // the bridge: meltemid, cluster DNS, default gateway of nodes
AddressPair node_address(int index);
AddressPair pod_address(int index, int host);  // host 2..254
Cidr pod_cidr_v4(int index);
Cidr pod_cidr_v6(int index);
Cidr fabric_cidr_v4();
Cidr fabric_cidr_v6();
Cidr service_cidr_v4();                      // 10.96.0.0/16
Cidr service_cidr_v6();                      // a /112
AddressPair dns_address();                   // in the service range, served in the fabric
AddressPair service_address(uint16_t host);  // host 0..65535 within both service ranges
// Next hop of a pod: the host side of its veth, the same for every pod.
AddressPair pod_gateway();

inline constexpr int kFirstPodHost = 2;
inline constexpr int kLastPodHost = 254;

}  // namespace meltemi::sandbox
