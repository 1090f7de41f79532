/* Probes: binds a socket of the node's own netns that connects to a declared probe port of an
 * enrolled pod to the probe address, which the pod's sk_lookup lets through to the app (abi.h). No
 * NAT, no ipset, no conntrack. Attached to the node's cgroup beside connect.bpf.c. Must never touch
 * a socket of another netns, nor of another process than the kubelet's, so that no pod can become a
 * prober. */
#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "address.h"
#include "maps.h"

const volatile meltemi_u64 node_netns_cookie = 0;
const volatile struct meltemi_address probe_v4 = {};
const volatile struct meltemi_address probe_v6 = {};

/* The kubelet's cgroup or one below it: a pod of the node's network cannot borrow its pass. The depth of
 * that cgroup is not known where the agent sees a part of the hierarchy only, so all are looked at; this
 * happens for probes alone. */
static __always_inline int is_prober(void) {
  for (int level = 1; level < MELTEMI_CGROUP_DEPTH; ++level) {
    meltemi_u64 id = bpf_get_current_ancestor_cgroup_id(level);
    if (!id) return 0; /* below the process's own */
    const meltemi_u32* roles = bpf_map_lookup_elem(&cgroups, &id);
    if (roles && (*roles & MELTEMI_CGROUP_PROBER)) return 1;
  }
  return 0;
}

static __always_inline int is_probed(struct bpf_sock_addr* ctx, const struct meltemi_address* to) {
  if (ctx->protocol != IPPROTO_TCP || bpf_get_netns_cookie(ctx) != node_netns_cookie) return 0;
  struct meltemi_probe key = {.address = *to, .port = bpf_ntohs(ctx->user_port)};
  if (!bpf_map_lookup_elem(&probes, &key)) return 0;
  if (is_prober()) return 1;
  count(MELTEMI_COUNT_PROBE_REFUSED);
  return 0;
}

/* A socket that is bound already stays so: it is then an ordinary client, and policy applies. */
static __always_inline void count_bind(long error) {
  count(error ? MELTEMI_COUNT_PROBE_FAILED : MELTEMI_COUNT_PROBE_BOUND);
}

SEC("cgroup/connect4")
int probe_from_v4(struct bpf_sock_addr* ctx) {
  struct meltemi_address to;
  set_v4(&to, ctx->user_ip4);
  if (!is_probed(ctx, &to)) return ALLOW;
  struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr = {probe_v4.word[3]}};
  count_bind(bpf_bind(ctx, (struct sockaddr*)&source, sizeof(source)));
  return ALLOW;
}

SEC("cgroup/connect6")
int probe_from_v6(struct bpf_sock_addr* ctx) {
  struct meltemi_address to = {
      {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}};
  if (!is_probed(ctx, &to)) return ALLOW;
  struct sockaddr_in6 source = {.sin6_family = AF_INET6};
  struct meltemi_address address = probe_v6;
  if (is_mapped_v4(&to)) address = probe_v4;
  __builtin_memcpy(&source.sin6_addr, &address, sizeof(address));
  count_bind(bpf_bind(ctx, (struct sockaddr*)&source, sizeof(source)));
  return ALLOW;
}

char LICENSE[] SEC("license") = "GPL";
