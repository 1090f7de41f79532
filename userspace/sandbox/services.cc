#include "userspace/sandbox/services.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "userspace/sandbox/layout.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

// Below are the DNS server's address and others that are fixed; the same hosts of both ranges.
constexpr uint32_t kFirstServiceHost = 256;
constexpr uint32_t kServiceHosts = 65535 - kFirstServiceHost;

uint32_t hash_of(std::string_view text) {
  uint32_t h = 2166136261u;  // FNV-1a: the same in every build, unlike std::hash
  for (const char c : text) h = (h ^ static_cast<uint8_t>(c)) * 16777619u;
  return h;
}

struct Families {
  bool v4 = true;
  bool v6 = false;
  bool v6_first = false;
};

Families families_of(const kube::Service::Spec& spec) {
  Families f;
  if (spec.ip_families_size() > 0) {
    f.v4 = f.v6 = false;
    for (const auto& family : spec.ip_families()) (family == "IPv6" ? f.v6 : f.v4) = true;
    f.v6_first = spec.ip_families(0) == "IPv6";
  }
  if (spec.ip_family_policy() == "PreferDualStack" || spec.ip_family_policy() == "RequireDualStack")
    f.v4 = f.v6 = true;
  return f;
}

bool needs_address(const kube::Service::Spec& spec) {
  return spec.cluster_ip().empty() && spec.cluster_ips_size() == 0 && spec.type() != "ExternalName";
}

class AddressPool {
 public:
  void take(const Object& service) {
    for (const IpAddress& ip : cluster_ips(service)) used_.insert(ip);
  }
  std::optional<AddressPair> allocate(std::string_view name) {
    const uint32_t start = hash_of(name) % kServiceHosts;
    for (uint32_t i = 0; i < kServiceHosts; ++i) {
      const auto host = static_cast<uint16_t>(kFirstServiceHost + (start + i) % kServiceHosts);
      const AddressPair pair = service_address(host);
      if (used_.contains(pair.v4) || used_.contains(pair.v6)) continue;
      used_.insert(pair.v4);
      used_.insert(pair.v6);
      return pair;
    }
    return std::nullopt;
  }

 private:
  std::set<IpAddress> used_;
};

void set_addresses(Object* service, const std::vector<std::string>& ips) {
  service->edit<kube::Service>([&](kube::Service& body) {
    body.mutable_spec()->set_cluster_ip(ips.front());
    for (const std::string& ip : ips) body.mutable_spec()->add_cluster_ips(ip);
  });
}

std::vector<std::string> texts(const AddressPair& pair, const Families& f) {
  std::vector<std::string> out;
  if (f.v4) out.push_back(pair.v4.to_string());
  if (f.v6) out.push_back(pair.v6.to_string());
  if (f.v6_first) std::reverse(out.begin(), out.end());
  return out;
}

// The pair of addresses that `before`, the runtime copy, has; either family may have been assigned.
std::optional<AddressPair> pair_of(const ObjectPtr& before) {
  if (!before) return std::nullopt;
  for (const IpAddress& ip : cluster_ips(*before)) {
    const auto host = static_cast<uint16_t>(ip.bytes()[14] << 8 | ip.bytes()[15]);
    const AddressPair pair = service_address(host);
    if (pair.v4 == ip || pair.v6 == ip) return pair;
  }
  return std::nullopt;
}

// "ip daddr 10.96.0.1 tcp dport 80": what a rule matches.
std::string match_text(const ServiceTarget& t) {
  return fmt::format("{} daddr {} {} dport {}", t.address.is_v4() ? "ip" : "ip6",
                     t.address.to_string(), t.udp ? "udp" : "tcp", t.port);
}

std::string dnat_text(const ServiceTarget& t) {
  const char* family = t.address.is_v4() ? "ip" : "ip6";
  if (t.endpoints.size() == 1)
    return fmt::format("dnat {} to {}", family, t.endpoints.front().to_string());
  std::string map;
  for (size_t i = 0; i < t.endpoints.size(); ++i)
    map += fmt::format("{}{} : {} . {}", i == 0 ? "" : ", ", i, t.endpoints[i].ip.to_string(),
                       t.endpoints[i].port);
  return fmt::format("dnat {} to numgen random mod {} map {{ {} }}", family, t.endpoints.size(),
                     map);
}

void add_targets(const ObjectStore& store, const Object& service, std::vector<ServiceTarget>* out) {
  const auto pods = endpoints_of(store, service);
  for (const IpAddress& vip : cluster_ips(service)) {
    for (const kube::ServicePort& port : service.as<kube::Service>().spec().ports()) {
      if (port.protocol() == "SCTP") continue;
      ServiceTarget target{vip, port.protocol() == "UDP", static_cast<uint16_t>(port.port()), {}};
      for (const ObjectPtr& pod : pods) {
        const uint16_t number = resolve_target_port(port, *pod);
        for (const IpAddress& ip : pod_ips(*pod))
          if (number != 0 && ip.is_v4() == vip.is_v4()) target.endpoints.push_back({ip, number});
      }
      std::sort(target.endpoints.begin(), target.endpoints.end());
      out->push_back(std::move(target));
    }
  }
}

}  // namespace

std::vector<Object> assign_cluster_ips(const ObjectStore& wanted, const ObjectStore& runtime) {
  AddressPool pool;
  for (const ObjectPtr& service : wanted.list(Kind::kService)) pool.take(*service);
  for (const ObjectPtr& service : runtime.list(Kind::kService)) pool.take(*service);
  std::vector<Object> out;
  for (const ObjectPtr& service : wanted.list(Kind::kService)) {
    const auto& spec = service->as<kube::Service>().spec();
    if (!needs_address(spec)) continue;
    auto pair = pair_of(runtime.find(Kind::kService, service->ns(), service->name()));
    if (!pair) pair = pool.allocate(service->ns() + "/" + service->name());
    if (!pair) continue;
    Object copy = *service;
    set_addresses(&copy, texts(*pair, families_of(spec)));
    out.push_back(std::move(copy));
  }
  return out;
}

bool is_finished(const Object& pod) {
  const auto& phase = pod.as<kube::Pod>().status().phase();
  return phase == "Succeeded" || phase == "Failed";
}

bool is_terminating(const Object& pod) {
  return !pod.meta().deletion_timestamp().empty();
}

bool is_ready(const Object& pod) {
  if (is_finished(pod) || is_terminating(pod)) return false;
  for (const kube::Condition& condition : pod.as<kube::Pod>().status().conditions())
    if (condition.type() == "Ready") return condition.status() == "True";
  return false;
}

std::vector<IpAddress> pod_ips(const Object& pod) {
  const auto& status = pod.as<kube::Pod>().status();
  std::vector<IpAddress> out;
  for (const kube::PodIp& ip : status.pod_ips())
    if (const auto parsed = IpAddress::parse(ip.ip())) out.push_back(*parsed);
  if (out.empty())
    if (const auto parsed = IpAddress::parse(status.pod_ip())) out.push_back(*parsed);
  return out;
}

std::vector<IpAddress> cluster_ips(const Object& service) {
  const auto& spec = service.as<kube::Service>().spec();
  std::vector<IpAddress> out;
  for (const std::string& ip : spec.cluster_ips())
    if (const auto parsed = IpAddress::parse(ip)) out.push_back(*parsed);
  if (out.empty())
    if (const auto parsed = IpAddress::parse(spec.cluster_ip())) out.push_back(*parsed);
  return out;
}

uint16_t resolve_target_port(const kube::ServicePort& port, const Object& pod) {
  using Target = kube::IntOrString;
  switch (port.target_port().value_case()) {
    case Target::kNumber:
      return static_cast<uint16_t>(port.target_port().number());
    case Target::kText:
      for (const auto& container : pod.as<kube::Pod>().spec().containers())
        for (const auto& candidate : container.ports())
          if (candidate.name() == port.target_port().text())
            return static_cast<uint16_t>(candidate.container_port());
      return 0;
    case Target::VALUE_NOT_SET:
      break;
  }
  return static_cast<uint16_t>(port.port());
}

std::vector<ObjectPtr> endpoints_of(const ObjectStore& store, const Object& service) {
  const auto& spec = service.as<kube::Service>().spec();
  std::vector<ObjectPtr> out;
  for (const ObjectPtr& pod : store.pods_selected(service.ns(), spec.selector())) {
    if (pod_ips(*pod).empty()) continue;
    const bool runs = !is_finished(*pod) && !is_terminating(*pod);
    if (spec.publish_not_ready_addresses() ? runs : is_ready(*pod)) out.push_back(pod);
  }
  return out;
}

std::vector<ServiceTarget> service_targets(const ObjectStore& store) {
  std::vector<ServiceTarget> out;
  for (const ObjectPtr& service : store.list(Kind::kService)) add_targets(store, *service, &out);
  std::sort(out.begin(), out.end(), [](const ServiceTarget& a, const ServiceTarget& b) {
    return std::tie(a.address, a.udp, a.port) < std::tie(b.address, b.udp, b.port);
  });
  return out;
}

std::string render_nft(const std::vector<ServiceTarget>& targets) {
  std::string dnat, refuse;
  std::set<IpAddress> endpoints;
  for (const ServiceTarget& t : targets) {
    if (t.endpoints.empty()) {
      refuse +=
          fmt::format("    {} {}\n", match_text(t), t.udp ? "reject" : "reject with tcp reset");
      continue;
    }
    dnat += fmt::format("    {} {}\n", match_text(t), dnat_text(t));
    for (const SocketAddress& endpoint : t.endpoints) endpoints.insert(endpoint.ip);
  }
  // A pod that reaches itself through a Service must see another source, or it would answer itself.
  std::string hairpin;
  for (const IpAddress& ip : endpoints) {
    const char* family = ip.is_v4() ? "ip" : "ip6";
    hairpin += fmt::format("    {0} saddr {1} {0} daddr {1} masquerade\n", family, ip.to_string());
  }
  // "add" before "delete": deleting what is not there would fail, and the whole input is one
  // transaction.
  return fmt::format(
      "add table inet meltemi-sandbox\n"
      "delete table inet meltemi-sandbox\n"
      "table inet meltemi-sandbox {{\n"
      "  chain services {{\n{0}  }}\n"
      "  chain refuse {{\n{1}  }}\n"
      "  chain prerouting {{\n    type nat hook prerouting priority dstnat\n    jump services\n  "
      "}}\n"
      "  chain output-nat {{\n    type nat hook output priority -100\n    jump services\n  }}\n"
      "  chain postrouting {{\n    type nat hook postrouting priority srcnat\n{2}  }}\n"
      "  chain forward {{\n    type filter hook forward priority filter\n    jump refuse\n  }}\n"
      "  chain output {{\n    type filter hook output priority filter\n    jump refuse\n  }}\n"
      "}}\n",
      dnat, refuse, hairpin);
}

}  // namespace meltemi::sandbox
