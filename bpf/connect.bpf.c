/* Outbound capture: marks the TCP connects of enrolled pods, so that the pod's routing sends them
 * to lo and its sk_lookup program to ztunnel (abi.h). Attached to the node's cgroup; acts on
 * sockets by their netns, so a socket stays what it was born as. Must never rewrite an address, nor
 * touch another protocol than TCP: replies to the pod's UDP sockets would be lost. */
#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "address.h"
#include "maps.h"

const volatile meltemi_u32 capture_mark = MELTEMI_CAPTURE_MARK;
const volatile meltemi_u32 tunnel_mark = MELTEMI_TUNNEL_MARK;

/* A socket bound to a device would skip the route over lo and leave the pod as plaintext wherever
 * the host answers ARP for everything (proxy_arp), so the binding is lifted first. */
static __always_inline int capture(struct bpf_sock_addr* ctx, const struct bpf_sock* sk) {
  int mark = capture_mark;
  int no_device = 0;
  if (sk->bound_dev_if &&
      bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &no_device, sizeof(no_device)))
    return DENY;
  if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark))) return DENY;
  return ALLOW;
}

/* A socket with ztunnel's mark. The mark proves nothing, CAP_NET_RAW is enough to set it: the process
 * does, by its cgroup. Refused, not captured: should the agent ever take ztunnel for somebody else, its
 * dials must not come back to it. */
static __always_inline int on_tunnel_mark(struct bpf_sock_addr* ctx, struct bpf_sock* sk) {
  meltemi_u64 cgroup = bpf_get_current_cgroup_id();
  const meltemi_u32* roles = bpf_map_lookup_elem(&cgroups, &cgroup);
  if (roles && (*roles & MELTEMI_CGROUP_TUNNEL)) {
    if (bpf_sk_storage_get(&tunnel_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE)) return ALLOW;
    count(MELTEMI_COUNT_CAPTURE_FAILED); /* no memory: the guard would drop it */
    return DENY;
  }
  meltemi_u64 cookie = bpf_get_netns_cookie(ctx);
  if (!bpf_map_lookup_elem(&enrolled, &cookie)) return ALLOW;
  count(MELTEMI_COUNT_MARK_REFUSED);
  return DENY;
}

static __always_inline int on_connect(struct bpf_sock_addr* ctx, const struct meltemi_address* to) {
  /* An MPTCP subflow shows as TCP, on the socket that sends the SYN. */
  if (ctx->protocol != IPPROTO_TCP) return ALLOW;
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return ALLOW;
  if (sk->mark == tunnel_mark) return on_tunnel_mark(ctx, sk);
  if (is_loopback(to)) return ALLOW;

  meltemi_u64 cookie = bpf_get_netns_cookie(ctx);
  const struct meltemi_pod* pod = bpf_map_lookup_elem(&enrolled, &cookie);
  if (!pod || is_own_address(pod, to)) return ALLOW;
  if ((pod->flags & MELTEMI_POD_EXCLUSIONS) && is_excluded(cookie, to, bpf_ntohs(ctx->user_port))) {
    count(MELTEMI_COUNT_EXCLUDED);
    return ALLOW;
  }
  /* Its route is bound to the interface after this hook, so that it cannot be led to lo, and ztunnel
   * could not dial it: the address means nothing without that interface. */
  if (is_link_local_v6(to)) {
    count(MELTEMI_COUNT_LINK_LOCAL_REFUSED);
    return DENY;
  }
  /* Rather no connection than a plaintext one. */
  int verdict = capture(ctx, sk);
  count(verdict == ALLOW ? MELTEMI_COUNT_CAPTURED : MELTEMI_COUNT_CAPTURE_FAILED);
  return verdict;
}

SEC("cgroup/connect4")
int capture_v4(struct bpf_sock_addr* ctx) {
  struct meltemi_address to;
  set_v4(&to, ctx->user_ip4);
  return on_connect(ctx, &to);
}

/* Also v4-mapped destinations: their connect never reaches the connect4 hook. */
SEC("cgroup/connect6")
int capture_v6(struct bpf_sock_addr* ctx) {
  struct meltemi_address to = {
      {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}};
  return on_connect(ctx, &to);
}

char LICENSE[] SEC("license") = "GPL";
