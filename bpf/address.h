/* Addresses as the programs compare them: one 16-byte form for both families. Pure predicates. */
#ifndef MELTEMI_BPF_ADDRESS_H
#define MELTEMI_BPF_ADDRESS_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

static __always_inline void set_v4(struct meltemi_address* out, meltemi_u32 network_order) {
  out->half[0] = 0;
  out->word[2] = bpf_htonl(0xffff);
  out->word[3] = network_order;
}

static __always_inline int same_address(const struct meltemi_address* a,
                                        const struct meltemi_address* b) {
  return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

static __always_inline int is_mapped_v4(const struct meltemi_address* a) {
  return !a->half[0] && a->word[2] == bpf_htonl(0xffff);
}

/* 127.0.0.0/8, ::1, and the unspecified address, which connect(2) takes for loopback. */
static __always_inline int is_loopback(const struct meltemi_address* a) {
  if (is_mapped_v4(a)) return !a->word[3] || (bpf_ntohl(a->word[3]) >> 24) == 127;
  return !a->half[0] && !a->word[2] && (!a->word[3] || a->word[3] == bpf_htonl(1));
}

/* fe80::/10: means nothing without its interface. */
static __always_inline int is_link_local_v6(const struct meltemi_address* a) {
  return (bpf_ntohl(a->word[0]) & 0xffc00000) == 0xfe800000;
}

/* 1 if x is 0, else 0, without a branch: every branch in the loop below would multiply the states
 * that the verifier walks, and it walks them for each pod. */
static __always_inline meltemi_u64 is_zero(meltemi_u64 x) {
  return ~(x | -x) >> 63;
}

static __always_inline int is_own_address(const struct meltemi_pod* pod,
                                          const struct meltemi_address* address) {
  meltemi_u64 found = 0;
#pragma unroll
  for (meltemi_u32 i = 0; i < MELTEMI_POD_ADDRESSES; ++i)
    found |= is_zero((pod->address[i].half[0] ^ address->half[0]) |
                     (pod->address[i].half[1] ^ address->half[1]));
  return found != 0;
}

#endif /* MELTEMI_BPF_ADDRESS_H */
