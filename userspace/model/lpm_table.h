// Longest prefix match over CIDRs of several networks: one hash probe per prefix length that is in
// use, longest first, instead of a scan over all prefixes. Shares structure like PersistentMap, with
// the same rule: edit only your own copy.
#pragma once

#include <array>

#include "userspace/base/address.h"
#include "userspace/model/persistent_map.h"
#include "userspace/model/types.h"

namespace meltemi::model {

struct NetworkCidrHash {
  size_t operator()(const NetworkCidr& k) const {
    return (std::hash<IpAddress>()(k.cidr.address) * 31 + k.cidr.length) * 31 + k.network.hash();
  }
};
struct NetworkAddressHash {
  size_t operator()(const NetworkAddress& k) const {
    return std::hash<IpAddress>()(k.ip) * 31 + k.network.hash();
  }
};

template <typename V>
class LpmTable {
 public:
  const V* find(const NetworkCidr& key) const { return entries_.find(key); }
  size_t size() const { return entries_.size(); }

  void set(const NetworkCidr& key, V value) {
    if (!entries_.find(key)) ++lengths(key.cidr)[key.cidr.length];
    entries_.set(key, std::move(value));
  }
  bool erase(const NetworkCidr& key) {
    if (!entries_.erase(key)) return false;
    --lengths(key.cidr)[key.cidr.length];
    return true;
  }

  // Calls fn(const V&, length) for every prefix that contains `ip`, longest first, until it returns
  // true. Returns whether it did.
  template <typename F>
  bool match(const Symbol& network, const IpAddress& ip, F&& fn) const {
    const bool v4 = ip.is_v4();
    const auto& used = v4 ? v4_ : v6_;
    for (int length = v4 ? 32 : 128; length >= 0; --length) {
      if (used[length] == 0) continue;
      const V* value = entries_.find(NetworkCidr{network, *Cidr::make(ip, length)});
      if (value && fn(*value, static_cast<uint8_t>(length))) return true;
    }
    return false;
  }

 private:
  std::array<uint32_t, 129>& lengths(const Cidr& cidr) { return cidr.address.is_v4() ? v4_ : v6_; }
  PersistentMap<NetworkCidr, V, NetworkCidrHash> entries_;
  std::array<uint32_t, 129> v4_{}, v6_{};  // how many prefixes of each length
};

}  // namespace meltemi::model
