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

/* Declared probe ports of the node's enrolled pods: probe -> 1. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, MELTEMI_MAX_PROBES);
  __type(key, struct meltemi_probe);
  __type(value, meltemi_u8);
  __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} probes SEC(".maps");

/* What the programs did, per CPU; see enum meltemi_counter. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, MELTEMI_COUNTERS);
  __type(key, meltemi_u32);
  __type(value, meltemi_u64);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

static __always_inline void count(enum meltemi_counter counter) {
  meltemi_u32 key = counter;
  meltemi_u64* value = bpf_map_lookup_elem(&counters, &key);
  if (value) ++*value;
}

#endif /* MELTEMI_BPF_MAPS_H */
