// The node's half of probes: the probe addresses on lo, and the routing that keeps everybody else
// from using them as a source. Nothing for IPv4: a packet that arrives from outside with a local
// source is a martian there. IPv6 has no such check, so `from <probe> iif lo` goes on as usual and
// everything else from that address is dropped (measured: without it a spoofed SYN of another pod
// passes).
#pragma once

#include "userspace/base/address.h"
#include "userspace/base/error.h"

namespace meltemi::agent {

struct ProbeAddresses {
  IpAddress v4;
  IpAddress v6;
};

// In the calling thread's namespace, the node's. May be repeated. IPv6 is left out where the node
// has none.
Status set_up_probe_addresses(const ProbeAddresses& addresses);
Status remove_probe_addresses(const ProbeAddresses& addresses);

}  // namespace meltemi::agent
