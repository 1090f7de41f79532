// Short spellings of model objects for the model's tests.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>

#include "userspace/model/store.h"

namespace meltemi::model::test {

inline Symbol sym(std::string_view text) { return Symbol(text); }
inline IpAddress ip(std::string_view text) { return *IpAddress::parse(text); }
inline SocketAddress at(std::string_view text) { return *SocketAddress::parse(text); }

struct WorkloadSpec {
  std::string name, ns = "shop", address, sa = "default", network, node = "n1", region, zone;
  std::string service;  // namespace/hostname
  std::vector<Port> ports;
  bool hbone = true, healthy = true;
  uint32_t capacity = 1;
  std::string uid;
};

inline std::shared_ptr<Workload> make_workload(const WorkloadSpec& spec) {
  auto w = std::make_shared<Workload>();
  w->uid = sym(spec.uid.empty() ? "Kubernetes//Pod/" + spec.ns + "/" + spec.name : spec.uid);
  w->name = sym(spec.name);
  w->ns = sym(spec.ns);
  w->service_account = sym(spec.sa);
  w->trust_domain = sym("cluster.local");
  w->network = sym(spec.network);
  w->node = sym(spec.node);
  w->cluster = sym("Kubernetes");
  w->locality = {sym(spec.region), sym(spec.zone), Symbol()};
  w->protocol = spec.hbone ? TunnelProtocol::kHbone : TunnelProtocol::kTcp;
  w->healthy = spec.healthy;
  w->capacity = spec.capacity;
  if (!spec.address.empty()) w->addresses = {ip(spec.address)};
  if (!spec.service.empty()) w->services = {{sym(spec.service), spec.ports}};
  if (!w->seal()) std::abort();
  return w;
}

inline std::shared_ptr<Service> make_service(std::string_view ns, std::string_view name,
                                             std::string_view vip, std::vector<Port> ports) {
  auto s = std::make_shared<Service>();
  s->name = sym(name);
  s->ns = sym(ns);
  s->hostname = sym(std::string(name) + "." + std::string(ns) + ".svc.cluster.local");
  if (!vip.empty()) s->vips = {{Symbol(), ip(vip)}};
  s->ports = std::move(ports);
  s->seal();
  return s;
}

}  // namespace meltemi::model::test
