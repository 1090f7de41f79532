/* Addresses as the programs compare them: one 16-byte form for both families. Pure predicates. */
#ifndef MELTEMI_BPF_ADDRESS_H
#define MELTEMI_BPF_ADDRESS_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

static __always_inline struct meltemi_address from_v4(meltemi_u32 network_order) {
  struct meltemi_address out = {{0, 0, bpf_htonl(0xffff), network_order}};
  return out;
}

static __always_inline int same_address(const struct meltemi_address *a,
                                        const struct meltemi_address *b) {
  return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
         a->word[0] == b->word[0];
}

static __always_inline int is_mapped_v4(const struct meltemi_address *a) {
  return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

/* 127.0.0.0/8, ::1, and the unspecified address, which connect(2) takes for loopback. */
static __always_inline int is_loopback(const struct meltemi_address *a) {
  if (is_mapped_v4(a)) return !a->word[3] || (bpf_ntohl(a->word[3]) >> 24) == 127;
  return !a->word[0] && !a->word[1] && !a->word[2] &&
         (!a->word[3] || a->word[3] == bpf_htonl(1));
}

/* fe80::/10: means nothing without its interface, so it is none of the mesh's business. */
static __always_inline int is_link_local_v6(const struct meltemi_address *a) {
  return (bpf_ntohl(a->word[0]) & 0xffc00000) == 0xfe800000;
}

static __always_inline int is_own_address(const struct meltemi_pod *pod,
                                          const struct meltemi_address *address) {
  for (meltemi_u32 i = 0; i < MELTEMI_POD_ADDRESSES; ++i) {
    if (i >= pod->address_count) break;
    if (same_address(&pod->address[i], address)) return 1;
  }
  return 0;
}

#endif /* MELTEMI_BPF_ADDRESS_H */
