#include "userspace/model/types.h"

#include <fmt/format.h>

namespace meltemi::model {

std::string_view to_string(WorkloadType type) {
  switch (type) {
    case WorkloadType::kDeployment: return "deployment";
    case WorkloadType::kCronJob: return "cronjob";
    case WorkloadType::kPod: return "pod";
    case WorkloadType::kJob: return "job";
  }
  return "deployment";
}

std::string_view to_string(TunnelProtocol protocol) {
  return protocol == TunnelProtocol::kHbone ? "HBONE" : "TCP";
}

std::string GatewayAddress::to_string() const {
  if (!address) return fmt::format("{}:{}", hostname.view(), hbone_port);
  return fmt::format("{}/{}:{}", address->network.view(), address->ip.to_string(), hbone_port);
}

Status Workload::seal() {
  auto made = Identity::make(trust_domain, ns, service_account);
  if (!made) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("workload {}: {}", uid.view(), made.error().detail));
  }
  identity = *std::move(made);
  return {};
}

void Service::seal() { key = Symbol(fmt::format("{}/{}", ns.view(), hostname.view())); }

const Port* Service::port(uint16_t service_port) const {
  for (const Port& p : ports) {
    if (p.service == service_port) return &p;
  }
  return nullptr;
}

uint64_t Random::next() {
  uint64_t z = (state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint64_t Random::below(uint64_t bound) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
}

}  // namespace meltemi::model
