// The names by which an address resource may be asked for on demand, besides its own: network/IP, the
// services that a workload is part of, and its node. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace meltemi::xds {

// Of an encoded istio.workload.Address. What does not decode has none.
std::vector<std::string> address_aliases(std::string_view body);
// What all workloads of a node are part of; no namespace nor network is called so.
std::string alias_of_node(std::string_view node);

}  // namespace meltemi::xds
