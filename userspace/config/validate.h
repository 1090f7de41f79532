// What one object must satisfy by itself, with istiod's messages where istiod has one, plus a fix.
// Pure functions; no other object is looked at (analyze.h does that).
#pragma once

#include "userspace/config/object.h"

namespace meltemi::config {

struct MeshNames {
  std::string trust_domain = "cluster.local";
  std::string root_namespace = "istio-system";
  std::string cluster_id = "Kubernetes";
  std::string cluster_domain = "cluster.local";
  std::string network;  // topology.istio.io/network of this cluster
};

// Errors refuse the object, warnings go along with it.
Problems validate(const Object& object, const MeshNames& names = {});

// Reads, validates, and keeps only objects without errors. What `apply`, the admission webhook and
// the directory source call.
ReadResult read_and_validate(std::string_view bytes, std::string_view file,
                             const ReadOptions& options = {}, const MeshNames& names = {});

}  // namespace meltemi::config
