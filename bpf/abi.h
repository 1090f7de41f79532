/* The one contract between Meltemi's BPF programs and its processes: marks, addresses, map keys and
 * values. Included by BPF C, by the agent and by ztunnel; plain C, fixed-width integers, no padding
 * that is not named. Changing any layout below changes MELTEMI_ABI_VERSION, and with it the
 * directory in which maps and links are pinned, so that two versions never share a map.
 *
 * How capture works: nothing is rewritten.
 *
 *   outbound   The connect hook of the node's cgroup marks a TCP socket of an enrolled netns with
 *              MELTEMI_CAPTURE_MARK. Inside the pod, `ip rule` pref 1 sends marked packets to
 *              table MELTEMI_ROUTE_TABLE, whose only route is `local default dev lo src <pod IP>`.
 *              The SYN thus arrives on lo for an address that is not the pod's, and the sk_lookup
 *              program of the pod gives it to the outbound listener. The accepted socket's local
 *              address is the original destination, its remote address the pod.
 *   inbound    A SYN for the pod's own address from the network goes to the inbound listener,
 *              whatever its port; accepted local address = what the client wanted, remote = the
 *              client.
 *   to app     ztunnel dials the app with the capture mark, IP_TRANSPARENT and the client's address
 *              as source: the SYN comes in on lo for an own address and is passed to the app. With
 *              tcp_fwmark_accept the app's socket inherits the mark and answers over lo; with
 *              fwmark_reflect so does the kernel's RST where nobody listens.
 *   own dials  Every other socket of ztunnel in a pod's netns, the inbound listeners included, carries the
 *              tunnel mark (MELTEMI_TUNNEL_MARK or PACKET_MARK). A connect with that mark is let through
 *              only for a process of ztunnel's cgroup (`cgroups`), and its socket is then attested
 *              (`tunnel_sockets`); for anybody else in an enrolled pod it is refused: CAP_NET_RAW is
 *              enough to set a mark.
 *   guard      At the node's end of each of the pod's veths, out of the pod's reach, a tc program drops
 *              every TCP SYN that comes out of an enrolled pod, is for no excluded destination, and
 *              belongs to no attested socket of the pod's netns. Connections, not packets: what was
 *              connected before enrolment flows on, and answers are never touched.
 *
 * A local process can reach the outbound listener's own port by connecting to it on loopback or on
 * the pod's own address: such a flow was not captured. ztunnel recognises it by its local address
 * (loopback or the pod's own; no captured flow has one) and refuses it.
 */
#ifndef MELTEMI_BPF_ABI_H
#define MELTEMI_BPF_ABI_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t meltemi_u8;
typedef uint16_t meltemi_u16;
typedef uint32_t meltemi_u32;
typedef uint64_t meltemi_u64;
#else
typedef __u8 meltemi_u8;
typedef __u16 meltemi_u16;
typedef __u32 meltemi_u32;
typedef __u64 meltemi_u64;
#endif

#ifdef __cplusplus
#define MELTEMI_ABI_ASSERT static_assert
#else
#define MELTEMI_ABI_ASSERT _Static_assert
#endif

#define MELTEMI_ABI_VERSION 2

/* --- marks and routing ----------------------------------------------------------------------- */

/* Set by the connect hook, and by ztunnel on dials to the app. Default of CAPTURE_MARK. */
#define MELTEMI_CAPTURE_MARK 0x6d31u
/* On every other socket of ztunnel in a pod netns. Default of PACKET_MARK; the peer's value. */
#define MELTEMI_TUNNEL_MARK 0x539u
/* Routing table in the pod netns; number of no other well-known user. */
#define MELTEMI_ROUTE_TABLE 0x6d31u
/* ip rule priorities in the pod netns. The kernel's own rule 0 (`lookup local`) is moved to 2, so
 * that marked packets to an own address arrive with iif lo: ingress_ifindex then tells ztunnel's
 * dial from the network, which it does not if `local` is consulted first. */
#define MELTEMI_RULE_PRIORITY_CAPTURE 1u
#define MELTEMI_RULE_PRIORITY_LOCAL 2u

/* --- ports and addresses --------------------------------------------------------------------- */

#define MELTEMI_HBONE_PORT 15008u
/* Source of kubelet's probes of enrolled pods, in the node netns (Istio's addresses). */
#define MELTEMI_PROBE_ADDRESS_V4 "169.254.7.127"
#define MELTEMI_PROBE_ADDRESS_V6 "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"

/* An address of either family: 16 bytes, network order, IPv4 as ::ffff:a.b.c.d. In two halves for
 * comparisons, in four words because that is how the kernel shows addresses. */
struct meltemi_address {
  union {
    meltemi_u32 word[4];
    meltemi_u64 half[2];
  };
};
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_address) == 16, "meltemi_address");

/* --- enrolled pods --------------------------------------------------------------------------- */

/* Local addresses of one pod that are looked at; the agent refuses to enrol a pod with more. Every
 * slot is compared, without branches, which keeps both the run and the verification of each pod's
 * program short; slots that are not used are all zero, an address that no packet has. */
#define MELTEMI_POD_ADDRESSES 8u

enum meltemi_pod_flags {
  /* Inbound plaintext is dropped while no inbound listener exists; otherwise it goes to the app.
   * The sockmap slot stays filled while any process holds the listener, so this decides only when
   * agent and ztunnel are both gone. Outbound without a listener is always dropped: passing it on
   * would hand a SYN for <VIP>:80 to the pod's own port 80. */
  MELTEMI_POD_STRICT = 1u << 0,
  /* Un-enrolment has begun: new inbound connections pass to the app. Flows that ztunnel has
   * accepted go on. */
  MELTEMI_POD_DRAINING = 1u << 1,
  /* `excluded` has entries for this pod; without it the connect hook does not look. */
  MELTEMI_POD_EXCLUSIONS = 1u << 2,
  /* The guard drops what ztunnel did not send. */
  MELTEMI_POD_GUARDED = 1u << 3,
};

/* Value of `enrolled` (key: netns cookie, u64) and of each pod's `pod` array (key: 0). `address`
 * holds every non-loopback address that is local in the netns, the pod's own IPs first, link-local
 * ones of IPv6 last and as far as there is room. Presence in
 * `enrolled` is what turns capture on: written last, deleted first. */
struct meltemi_pod {
  meltemi_u32 flags;
  meltemi_u32 reserved; /* 0 */
  struct meltemi_address address[MELTEMI_POD_ADDRESSES];
};
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_pod) == 8 + 16 * MELTEMI_POD_ADDRESSES, "meltemi_pod");

/* Slots of each pod's SOCKMAP `listeners`. */
enum meltemi_listener_slot {
  MELTEMI_LISTENER_OUTBOUND = 0, /* IP_TRANSPARENT */
  MELTEMI_LISTENER_INBOUND = 1,
  MELTEMI_LISTENER_SLOTS = 2,
};

/* Key of the trie `excluded`: destinations that a pod reaches uncaptured. The prefix covers netns
 * and port exactly, then the leading bits of the address. Port 0 is every port; a port without a
 * CIDR has prefix length MELTEMI_EXCLUSION_FIXED_BITS. Ports are host order. */
struct meltemi_exclusion {
  meltemi_u32 prefix_bits; /* of what follows */
  meltemi_u32 port;
  meltemi_u64 netns_cookie;
  struct meltemi_address address;
};
#define MELTEMI_EXCLUSION_FIXED_BITS 96u
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_exclusion) == 32, "meltemi_exclusion");

/* Key of `probes`: a declared probe port of an enrolled pod of this node. */
struct meltemi_probe {
  struct meltemi_address address;
  meltemi_u32 port;     /* host order */
  meltemi_u32 reserved; /* 0 */
};
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_probe) == 24, "meltemi_probe");

/* Value of `probes`. */
struct meltemi_probe_use {
  meltemi_u64 passed; /* connections that policy was not asked about */
};
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_probe_use) == 8, "meltemi_probe_use");

/* --- who is who ------------------------------------------------------------------------------ */

/* Value of `cgroups` (u32, bits; key: cgroup id, u64): what processes of a cgroup may do. A cgroup is
 * what no process of a pod can change about itself. */
enum meltemi_cgroup_role {
  MELTEMI_CGROUP_TUNNEL = 1u << 0, /* exactly this cgroup: a ztunnel */
  MELTEMI_CGROUP_PROBER = 1u << 1, /* this cgroup and below: the kubelet */
};
#define MELTEMI_MAX_CGROUPS 64u /* ztunnels that come and go, one kubelet */
/* Depth of the cgroup hierarchy down to which a prober is looked for. */
#define MELTEMI_CGROUP_DEPTH 16

/* --- guard ----------------------------------------------------------------------------------- */

/* Value of `guarded` (key: ifindex of the node's end of a pod's veth, u32). Written by the agent once;
 * then the guard counts in it. */
struct meltemi_guard {
  meltemi_u64 netns_cookie; /* of the pod */
  meltemi_u64 dropped;      /* SYNs that ztunnel did not send */
  meltemi_u64 unreadable;   /* packets whose TCP header cannot be told: see guard.bpf.c */
  struct meltemi_address last_to; /* of the last one dropped */
  meltemi_u32 last_port;          /* host order; 0 with `unreadable` */
  meltemi_u32 netns_id;           /* the pod's netns, as the node's netns numbers it (rtnetlink) */
};
MELTEMI_ABI_ASSERT(sizeof(struct meltemi_guard) == 48, "meltemi_guard");

/* --- counters -------------------------------------------------------------------------------- */

/* Index into the per-CPU array `counters` (u64). */
enum meltemi_counter {
  MELTEMI_COUNT_CAPTURED = 0, /* connects that were marked */
  MELTEMI_COUNT_EXCLUDED = 1, /* connects let through by `excluded` */
  MELTEMI_COUNT_CAPTURE_FAILED =
      2, /* mark or device binding refused by the kernel: EPERM to the app */
  MELTEMI_COUNT_PROBE_BOUND = 3,      /* host connects that became probes */
  MELTEMI_COUNT_PROBE_FAILED = 4,     /* bind to the probe address refused: sent as it was */
  MELTEMI_COUNT_OUTBOUND_DROPPED = 5, /* no outbound listener */
  MELTEMI_COUNT_INBOUND_DROPPED = 6,  /* no inbound listener, STRICT */
  MELTEMI_COUNT_INBOUND_PASSED = 7,   /* no inbound listener, not STRICT: plaintext to the app */
  MELTEMI_COUNT_LINK_LOCAL_REFUSED = 8,  /* connects to fe80::/10 that no exclusion allows: EPERM */
  MELTEMI_COUNT_MARK_REFUSED = 9,        /* ztunnel's mark, another process: EPERM */
  MELTEMI_COUNT_PROBE_PASSED = 10,       /* connections to probe ports that policy was not asked about */
  MELTEMI_COUNT_PROBE_REFUSED = 11,      /* not the kubelet's: sent as they were, policy is asked */
  MELTEMI_COUNT_GUARD_DROPPED = 12,      /* meltemi_guard.dropped of all */
  MELTEMI_COUNT_GUARD_UNREADABLE = 13,   /* meltemi_guard.unreadable of all */
  MELTEMI_COUNTERS = 14,
};

/* --- limits ---------------------------------------------------------------------------------- */

#define MELTEMI_MAX_PODS 4096u        /* of one node */
#define MELTEMI_MAX_EXCLUSIONS 65536u /* of one node */
#define MELTEMI_MAX_PROBES 65536u     /* of one node */
#define MELTEMI_MAX_GUARDS 8192u      /* of one node: two interfaces a pod */

#endif /* MELTEMI_BPF_ABI_H */
