// A CONNECT's authority: whatever a peer writes, the connection goes to a port of the workload itself
// and never to one of the proxy's.
#include <cstdlib>

#include "userspace/model/routing.h"

using namespace meltemi;
using namespace meltemi::model;

namespace {

struct Mesh {
  Mesh() {
    auto w = std::make_shared<Workload>();
    w->uid = Symbol("Kubernetes//Pod/shop/c");
    w->name = Symbol("c");
    w->ns = Symbol("shop");
    w->service_account = Symbol("c");
    w->trust_domain = Symbol("td");
    w->addresses = {*IpAddress::parse("10.0.0.2")};
    w->services = {{Symbol("shop/catalog.h"), {{80, 8080}}}};
    if (!w->seal()) std::abort();
    auto s = std::make_shared<Service>();
    s->name = Symbol("catalog");
    s->ns = Symbol("shop");
    s->hostname = Symbol("catalog.h");
    s->ports = {{80, 8080}, {90, 15008}};
    s->seal();
    store.apply({.workloads = {w}, .services = {s}});
    local = w;
  }
  MeshStore store;
  WorkloadPtr local;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Mesh mesh;
  const std::string_view authority(reinterpret_cast<const char*>(data), size);
  const auto snapshot = mesh.store.snapshot();
  const auto target =
      validate_inbound(*snapshot, *mesh.local, mesh.local->addresses.front(), authority);
  if (!target) {
    const int status = connect_status(target.error().reason);
    if (status != 400 && status != 401 && status != 503) std::abort();
    return 0;
  }
  if (target->port == 0 || target->port == 15008 || target->port == 15001 || target->port == 15006) {
    std::abort();
  }
  // By name it is the service that we are an endpoint of; by address it must be ours.
  const auto parts = split_host_port(authority);
  if (!target->service && (!parts || IpAddress::parse(parts->host) != mesh.local->addresses[0])) {
    std::abort();
  }
  return 0;
}
