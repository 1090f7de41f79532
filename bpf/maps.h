/* The node-wide maps, pinned by name, and what every program needs of them. Written only by the
 * agent; programs read them (but for the counters). */
#ifndef MELTEMI_BPF_MAPS_H
#define MELTEMI_BPF_MAPS_H

#include "abi.h"

/* Pods whose connections are captured: netns cookie -> pod. The switch of the whole mesh: an entry
 * is written last on enrolment and deleted first on un-enrolment. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, MELTEMI_MAX_PODS);
  __type(key, meltemi_u64);
  __type(value, struct meltemi_pod);
  __uint(map_flags, BPF_F_RDONLY_PROG);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} enrolled SEC(".maps");

/* Destinations that a pod reaches uncaptured, by longest prefix: exclusion -> 1. */
struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(max_entries, MELTEMI_MAX_EXCLUSIONS);
  __type(key, struct meltemi_exclusion);
  __type(value, meltemi_u8);
  __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} excluded SEC(".maps");

/* Declared probe ports of the node's enrolled pods, and how often each was used. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, MELTEMI_MAX_PROBES);
  __type(key, struct meltemi_probe);
  __type(value, struct meltemi_probe_use);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} probes SEC(".maps");

/* Cgroup id -> enum meltemi_cgroup_role. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, MELTEMI_MAX_CGROUPS);
  __type(key, meltemi_u64);
  __type(value, meltemi_u32);
  __uint(map_flags, BPF_F_RDONLY_PROG);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} cgroups SEC(".maps");

/* Sockets by which ztunnel dials out of a pod: attested at connect, gone with the socket. */
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __type(key, int);
  __type(value, meltemi_u32);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} tunnel_sockets SEC(".maps");

/* Node's ends of the veths of enrolled pods. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, MELTEMI_MAX_GUARDS);
  __type(key, meltemi_u32);
  __type(value, struct meltemi_guard);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} guarded SEC(".maps");

/* What the programs did, per CPU; see enum meltemi_counter. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, MELTEMI_COUNTERS);
  __type(key, meltemi_u32);
  __type(value, meltemi_u64);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

/* Whether the pod of this netns reaches `to` uncaptured. `port` in host order. */
static __always_inline int is_excluded(meltemi_u64 netns_cookie, const struct meltemi_address* to,
                                       meltemi_u32 port) {
  struct meltemi_exclusion key = {
      .prefix_bits = MELTEMI_EXCLUSION_FIXED_BITS + 128,
      .port = port,
      .netns_cookie = netns_cookie,
      .address = *to,
  };
  if (bpf_map_lookup_elem(&excluded, &key)) return 1;
  key.port = 0;
  return bpf_map_lookup_elem(&excluded, &key) != 0;
}

static __always_inline void count(enum meltemi_counter counter) {
  meltemi_u32 key = counter;
  meltemi_u64* value = bpf_map_lookup_elem(&counters, &key);
  if (value) ++*value;
}

#endif /* MELTEMI_BPF_MAPS_H */
