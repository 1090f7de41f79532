/* Steering inside a pod's netns: decides for each new TCP connection whether one of ztunnel's
 * listeners gets it, or whoever is bound to the port. Loaded once a node, cloned once a pod with
 * maps of its own (agent/bpf_store.cc), attached to the pod's netns. It runs once per connection,
 * before binds are looked at; established flows never come here. Must never pass a captured SYN to
 * the pod's own listeners: the port may be taken by something else. */
#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "address.h"
#include "maps.h"

/* Addresses and policy of the one pod that this clone serves. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, meltemi_u32);
  __type(value, struct meltemi_pod);
  __uint(map_flags, BPF_F_RDONLY_PROG);
} pod_config SEC(".maps");

/* ztunnel's listeners in the pod's netns. The kernel empties a slot when the last holder of the
 * socket is gone, so an empty slot means that agent and ztunnel are both dead. */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, MELTEMI_LISTENER_SLOTS);
  __type(key, meltemi_u32);
  __type(value, meltemi_u64);
} listeners SEC(".maps");

/* The probe source of each family; the host's routing lets nobody else send from it. */
const volatile struct meltemi_address probe_v4 = {};
const volatile struct meltemi_address probe_v6 = {};

static __always_inline int assign(struct bpf_sk_lookup* ctx, meltemi_u32 slot) {
  struct bpf_sock* listener = bpf_map_lookup_elem(&listeners, &slot);
  if (!listener) return 0;
  long error = bpf_sk_assign(ctx, listener, BPF_SK_LOOKUP_F_REPLACE);
  bpf_sk_release(listener);
  return error == 0;
}

static __always_inline int to_outbound(struct bpf_sk_lookup* ctx) {
  if (assign(ctx, MELTEMI_LISTENER_OUTBOUND)) return SK_PASS;
  count(MELTEMI_COUNT_OUTBOUND_DROPPED);
  return SK_DROP;
}

static __always_inline int to_inbound(struct bpf_sk_lookup* ctx, meltemi_u32 flags) {
  if (assign(ctx, MELTEMI_LISTENER_INBOUND)) return SK_PASS;
  if (flags & MELTEMI_POD_STRICT) {
    count(MELTEMI_COUNT_INBOUND_DROPPED);
    return SK_DROP;
  }
  count(MELTEMI_COUNT_INBOUND_PASSED);
  return SK_PASS;
}

/* Only for declared ports: the address alone opens nothing. */
static __always_inline int is_probe(const struct meltemi_address* remote,
                                    const struct meltemi_address* local, meltemi_u32 port) {
  struct meltemi_address v4 = probe_v4;
  struct meltemi_address v6 = probe_v6;
  if (!same_address(remote, &v4) && !same_address(remote, &v6)) return 0;
  struct meltemi_probe key = {.address = *local, .port = port};
  struct meltemi_probe_use* use = bpf_map_lookup_elem(&probes, &key);
  if (!use) return 0;
  __sync_fetch_and_add(&use->passed, 1);
  count(MELTEMI_COUNT_PROBE_PASSED);
  return 1;
}

static __always_inline int steer(struct bpf_sk_lookup* ctx, const struct meltemi_address* local,
                                 const struct meltemi_address* remote) {
  meltemi_u32 key = 0;
  const struct meltemi_pod* pod = bpf_map_lookup_elem(&pod_config, &key);
  if (!pod) return SK_PASS;

  int from_lo = ctx->ingress_ifindex == LOOPBACK_IFINDEX;
  /* Loopback is the pod's own affair as long as it is loopback: with route_localnet a neighbour's
   * packet may carry such an address, and meets the policy like any other. */
  if (from_lo && is_loopback(local)) return SK_PASS;
  /* Came by the marked route: an address that is not the pod's, over lo. The same from the network
   * is an address added since the pod was enrolled, hence inbound: nobody outside may ever speak as
   * the pod. */
  if (from_lo && !is_own_address(pod, local)) return to_outbound(ctx);
  if (is_own_address(pod, remote)) return SK_PASS; /* self call; from the network it is a martian */
  if (from_lo) return SK_PASS;                     /* ztunnel dials the app */
  if (is_probe(remote, local, ctx->local_port)) return SK_PASS;
  if (ctx->local_port == MELTEMI_HBONE_PORT) return SK_PASS; /* an ordinary bind */
  if (pod->flags & MELTEMI_POD_DRAINING) return SK_PASS;
  return to_inbound(ctx, pod->flags);
}

SEC("sk_lookup")
int steer_pod(struct bpf_sk_lookup* ctx) {
  struct meltemi_address local, remote;
  if (ctx->protocol != IPPROTO_TCP) return SK_PASS;
  /* One path for both families: the verifier walks `steer` once. */
  if (ctx->family == AF_INET) {
    set_v4(&local, ctx->local_ip4);
    set_v4(&remote, ctx->remote_ip4);
  } else {
    for (int i = 0; i < 4; ++i) {
      local.word[i] = ctx->local_ip6[i];
      remote.word[i] = ctx->remote_ip6[i];
    }
  }
  return steer(ctx, &local, &remote);
}

char LICENSE[] SEC("license") = "GPL";
