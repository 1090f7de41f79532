/* The guard: at the node's end of an enrolled pod's veth, drops TCP connections that ztunnel did not
 * open. Whoever has CAP_NET_RAW or CAP_NET_ADMIN in a pod can make packets by hand, take a mark off a
 * socket after its connect, delete the rule and the route that capture uses, or add interfaces; here,
 * outside of its reach, the SYN still has to come from a socket that the connect hook attested
 * (abi.h), or be for an excluded destination.
 *
 * By connection: only a SYN without ACK is looked up (in the pod's netns, by its addresses and ports).
 * Everything else passes at sight: segments of connections, so that those from before enrolment
 * survive; answers of the inbound side, which `lookup` decided about; UDP and other protocols, which
 * are not captured. Parsing follows what a receiver would do: VLAN tags, IPv4 options and fragments,
 * IPv6 extension headers, IP in IP. What could hide a SYN from it is dropped as unreadable: a first
 * fragment without the TCP header, a later one that would overlay it, more headers than kMaxHeaders.
 *
 * Must never pass anything because it could not be read, nor drop anything of a pod that is not
 * enrolled. */
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "abi.h"
#include "address.h"
#include "maps.h"

#define kMaxTags 2    /* in the payload: the kernel has taken the outermost tag off already */
#define kMaxHeaders 8 /* IP headers and extension headers before TCP */
#define kTcpHeader 20
/* Later fragments from here on cannot reach the headers behind extension headers or another IP header,
 * except by overlapping, which receivers refuse (RFC 5722). */
#define kHeaderReach 128

#define FLAG_SYN 0x02
#define FLAG_ACK 0x10

enum finding { kPass, kSyn, kUnreadable };

struct connection {
  struct meltemi_address from, to;
  __be16 from_port, to_port;
  meltemi_u32 v4; /* else v6 */
};

static __always_inline int opens(meltemi_u8 flags) {
  return (flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN;
}

/* The common cases, read in place: no connection is opened here. */
static __always_inline int passes_at_sight(const struct __sk_buff* skb) {
  const meltemi_u8* data = (void*)(long)skb->data;
  const meltemi_u8* end = (void*)(long)skb->data_end;
  const meltemi_u8* ip = data + ETH_HLEN;
  if (skb->protocol == bpf_htons(ETH_P_IP)) {
    if (ip + sizeof(struct iphdr) + kTcpHeader > end) return 0;
    /* No options, no fragment. */
    if (ip[0] != 0x45 || (ip[6] & 0x3f) || ip[7]) return 0;
    return ip[9] == IPPROTO_UDP ||
           (ip[9] == IPPROTO_TCP && !opens(ip[sizeof(struct iphdr) + 13]));
  }
  if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
    if (ip + sizeof(struct ipv6hdr) + kTcpHeader > end) return 0;
    return ip[6] == IPPROTO_UDP ||
           (ip[6] == IPPROTO_TCP && !opens(ip[sizeof(struct ipv6hdr) + 13]));
  }
  return 0;
}

/* A fragment that does not begin the datagram. */
static __always_inline enum finding later_fragment(meltemi_u8 protocol, meltemi_u32 offset) {
  switch (protocol) {
    case IPPROTO_TCP:
      return offset < kTcpHeader ? kUnreadable : kPass;
    case IPPROTO_IPIP:
    case IPPROTO_IPV6:
    case IPPROTO_HOPOPTS:
    case IPPROTO_ROUTING:
    case IPPROTO_DSTOPTS:
    case IPPROTO_MH:
    case IPPROTO_AH:
      return offset < kHeaderReach ? kUnreadable : kPass;
    default:
      return kPass;
  }
}

static __always_inline enum finding read_tcp(struct __sk_buff* skb, meltemi_u32 at,
                                             struct connection* out) {
  meltemi_u8 tcp[14];
  if (bpf_skb_load_bytes(skb, at, tcp, sizeof(tcp))) return kUnreadable;
  if (!opens(tcp[13])) return kPass;
  __builtin_memcpy(&out->from_port, tcp, 2);
  __builtin_memcpy(&out->to_port, tcp + 2, 2);
  return kSyn;
}

struct cursor {
  meltemi_u32 at;
  meltemi_u8 next; /* protocol number of what is there */
};

/* The IPv4 header at the cursor. kSyn: go on with what follows. */
static __always_inline enum finding read_v4(struct __sk_buff* skb, struct cursor* c,
                                            struct connection* out) {
  struct iphdr ip;
  if (bpf_skb_load_bytes(skb, c->at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
    return kPass; /* no receiver takes it */
  out->v4 = 1;
  set_v4(&out->from, ip.saddr);
  set_v4(&out->to, ip.daddr);
  c->at += ip.ihl * 4u;
  c->next = ip.protocol;
  meltemi_u32 offset = (bpf_ntohs(ip.frag_off) & 0x1fff) * 8u;
  return offset ? later_fragment(c->next, offset) : kSyn;
}

static __always_inline enum finding read_v6(struct __sk_buff* skb, struct cursor* c,
                                            struct connection* out) {
  struct ipv6hdr ip;
  if (bpf_skb_load_bytes(skb, c->at, &ip, sizeof(ip)) || ip.version != 6) return kPass;
  out->v4 = 0;
  __builtin_memcpy(&out->from, &ip.saddr, 16);
  __builtin_memcpy(&out->to, &ip.daddr, 16);
  c->at += sizeof(ip);
  c->next = ip.nexthdr;
  return kSyn;
}

static __always_inline enum finding read_extension(struct __sk_buff* skb, struct cursor* c) {
  meltemi_u8 header[4];
  if (bpf_skb_load_bytes(skb, c->at, header, sizeof(header))) return kUnreadable;
  meltemi_u8 kind = c->next;
  c->next = header[0];
  if (kind == IPPROTO_AH) {
    c->at += (header[1] + 2u) * 4u;
  } else if (kind == IPPROTO_FRAGMENT) {
    c->at += 8;
    meltemi_u32 offset = ((meltemi_u32)header[2] << 8 | header[3]) & 0xfff8;
    if (offset) return later_fragment(c->next, offset);
  } else {
    c->at += (header[1] + 1u) * 8u;
  }
  return kSyn;
}

static __always_inline enum finding read_headers(struct __sk_buff* skb, struct connection* out) {
  struct cursor c = {.at = ETH_HLEN};
  meltemi_u16 type = skb->protocol;
  for (int i = 0; i < kMaxTags && (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD));
       ++i) {
    if (bpf_skb_load_bytes(skb, c.at + 2, &type, sizeof(type))) return kPass;
    c.at += 4;
  }
  switch (type) {
    case bpf_htons(ETH_P_IP): c.next = IPPROTO_IPIP; break;
    case bpf_htons(ETH_P_IPV6): c.next = IPPROTO_IPV6; break;
    case bpf_htons(ETH_P_8021Q):
    case bpf_htons(ETH_P_8021AD): return kUnreadable;
    default: return kPass;
  }
  for (int i = 0; i < kMaxHeaders; ++i) {
    enum finding found;
    switch (c.next) {
      case IPPROTO_TCP: return read_tcp(skb, c.at, out);
      case IPPROTO_IPIP: found = read_v4(skb, &c, out); break;
      case IPPROTO_IPV6: found = read_v6(skb, &c, out); break;
      case IPPROTO_HOPOPTS:
      case IPPROTO_ROUTING:
      case IPPROTO_DSTOPTS:
      case IPPROTO_MH:
      case IPPROTO_AH:
      case IPPROTO_FRAGMENT: found = read_extension(skb, &c); break;
      default: return kPass;
    }
    if (found != kSyn) return found;
  }
  return kUnreadable;
}

/* Whether the SYN is of a socket in the pod that ztunnel dialled with. */
static __always_inline int is_tunnels(struct __sk_buff* skb, const struct connection* c,
                                      meltemi_u32 netns_id) {
  /* As the pod sees it: the remote end is the source. */
  struct bpf_sock_tuple tuple = {};
  meltemi_u32 size;
  if (c->v4) {
    tuple.ipv4.saddr = c->to.word[3];
    tuple.ipv4.daddr = c->from.word[3];
    tuple.ipv4.sport = c->to_port;
    tuple.ipv4.dport = c->from_port;
    size = sizeof(tuple.ipv4);
  } else {
    __builtin_memcpy(tuple.ipv6.saddr, &c->to, 16);
    __builtin_memcpy(tuple.ipv6.daddr, &c->from, 16);
    tuple.ipv6.sport = c->to_port;
    tuple.ipv6.dport = c->from_port;
    size = sizeof(tuple.ipv6);
  }
  struct bpf_sock* sk = bpf_sk_lookup_tcp(skb, &tuple, size, netns_id, 0);
  if (!sk) return 0;
  int attested = bpf_sk_storage_get(&tunnel_sockets, sk, 0, 0) != 0;
  bpf_sk_release(sk);
  return attested;
}

static __always_inline int drop(struct meltemi_guard* guard, const struct connection* c,
                                enum finding found) {
  guard->last_to = c->to;
  if (found == kSyn) {
    guard->last_port = bpf_ntohs(c->to_port);
    __sync_fetch_and_add(&guard->dropped, 1);
    count(MELTEMI_COUNT_GUARD_DROPPED);
  } else {
    guard->last_port = 0;
    __sync_fetch_and_add(&guard->unreadable, 1);
    count(MELTEMI_COUNT_GUARD_UNREADABLE);
  }
  return TC_ACT_SHOT;
}

SEC("tc")
int guard_pod(struct __sk_buff* skb) {
  /* UNSPEC: other programs at this hook have their say. */
  if (passes_at_sight(skb)) return TC_ACT_UNSPEC;
  struct connection c = {};
  enum finding found = read_headers(skb, &c);
  if (found == kPass) return TC_ACT_UNSPEC;
  meltemi_u32 device = skb->ifindex;
  struct meltemi_guard* guard = bpf_map_lookup_elem(&guarded, &device);
  if (!guard) return TC_ACT_UNSPEC;
  const struct meltemi_pod* pod = bpf_map_lookup_elem(&enrolled, &guard->netns_cookie);
  if (!pod || !(pod->flags & MELTEMI_POD_GUARDED)) return TC_ACT_UNSPEC;
  if (found == kUnreadable) return drop(guard, &c, found);
  if ((pod->flags & MELTEMI_POD_EXCLUSIONS) &&
      is_excluded(guard->netns_cookie, &c.to, bpf_ntohs(c.to_port)))
    return TC_ACT_UNSPEC;
  return is_tunnels(skb, &c, guard->netns_id) ? TC_ACT_UNSPEC : drop(guard, &c, found);
}

char LICENSE[] SEC("license") = "GPL";
