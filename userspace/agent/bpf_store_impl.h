// What the two halves of BpfStore share: skeletons, pins and links. Only for bpf_store.cc and
// bpf_guard.cc.
#pragma once

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The skeletons use the types of the contract.
#include "bpf/abi.h"

#include "skel/connect.skel.h"
#include "skel/guard.skel.h"
#include "skel/lookup.skel.h"
#include "skel/probe.skel.h"
#include "userspace/agent/bpf_store.h"

namespace meltemi::agent {

template <typename T, void (*Destroy)(T*)>
struct SkeletonDeleter {
  void operator()(T* skeleton) const { Destroy(skeleton); }
};
using ConnectSkeleton =
    std::unique_ptr<meltemi_connect_skel,
                    SkeletonDeleter<meltemi_connect_skel, meltemi_connect_skel__destroy>>;
using GuardSkeleton =
    std::unique_ptr<meltemi_guard_skel,
                    SkeletonDeleter<meltemi_guard_skel, meltemi_guard_skel__destroy>>;
using ProbeSkeleton =
    std::unique_ptr<meltemi_probe_skel,
                    SkeletonDeleter<meltemi_probe_skel, meltemi_probe_skel__destroy>>;
using LookupSkeleton =
    std::unique_ptr<meltemi_lookup_skel,
                    SkeletonDeleter<meltemi_lookup_skel, meltemi_lookup_skel__destroy>>;

// The kernel's refusal to load, with what it may lack.
std::unexpected<Error> load_failed(int error, std::string_view what);
// Nothing where there is no directory; what is there and cannot be listed is an error.
Result<std::vector<std::string>> list_directory(const std::string& path);
// nullopt: nothing is pinned there.
Result<std::optional<UniqueFd>> open_pin(const std::string& path);
Result<bpf_link_info> link_info(int fd);
Status pin(int fd, const std::string& path);
// Ends a link also where another process still holds it.
void drop_link(UniqueFd link, const std::string& path);

struct Hook {
  const char* name;
  const bpf_program* program;
  bpf_attach_type type;
};

struct PodMaps {
  UniqueFd config;
  UniqueFd listeners;
};

struct BpfStore::Impl {
  BpfOptions options;
  std::string directory;  // of this layout's version
  ConnectSkeleton connect;
  GuardSkeleton guard;
  ProbeSkeleton probe;
  LookupSkeleton lookup;
  std::map<uint64_t, PodMaps> pod_maps;

  std::string maps_directory() const { return directory + "/maps"; }
  std::string links_directory() const { return directory + "/links"; }
  std::string guards_directory() const { return directory + "/guards"; }
  std::string pod_directory(uint64_t cookie) const {
    return fmt::format("{}/pods/{}", directory, cookie);
  }
  std::array<Hook, 4> hooks() const {
    return {{{"capture_v4", connect->progs.capture_v4, BPF_CGROUP_INET4_CONNECT},
             {"capture_v6", connect->progs.capture_v6, BPF_CGROUP_INET6_CONNECT},
             {"probe_from_v4", probe->progs.probe_from_v4, BPF_CGROUP_INET4_CONNECT},
             {"probe_from_v6", probe->progs.probe_from_v6, BPF_CGROUP_INET6_CONNECT}}};
  }
  int enrolled_fd() const { return bpf_map__fd(connect->maps.enrolled); }
  int excluded_fd() const { return bpf_map__fd(connect->maps.excluded); }
  int probes_fd() const { return bpf_map__fd(connect->maps.probes); }
  int counters_fd() const { return bpf_map__fd(connect->maps.counters); }
  int cgroups_fd() const { return bpf_map__fd(connect->maps.cgroups); }
  int guarded_fd() const { return bpf_map__fd(guard->maps.guarded); }

  Status open_skeletons();
  Status make_directories();
  Status set_constants();
  Status load_programs();
  // The same pin below any other version directory, newest knowledge of links being irrelevant: a
  // link is a link.
  Result<std::optional<std::string>> foreign_pin(const std::string& relative) const;
  Result<std::optional<UniqueFd>> take_link(const std::string& relative);
  Status attach_hook(const Hook& hook, const sys::Cgroup& cgroup, uint64_t cgroup_id);
  Status remove_other_versions();
  Result<UniqueFd> clone_lookup(const PodMaps& maps) const;
  Result<const PodMaps*> maps_of(uint64_t cookie);
  Result<UniqueFd> ensure_map(const bpf_map* like, const std::string& path) const;
  // bpf_guard.cc. In the node's namespace.
  Status attach_guard_here(uint32_t ifindex);
  Status attach_guard_clsact(uint32_t ifindex);
  Result<bool> guard_attached_here(uint32_t ifindex) const;
  void detach_guard_here(uint32_t ifindex);
};

}  // namespace meltemi::agent
