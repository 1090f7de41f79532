// MeshConfig: the ConfigMap `istio` of the root namespace, key `mesh`, as Istio's installation has it.
// Only what acts on the data path is read from here; names and identities of the mesh are options
// of the control plane (MeshNames). Never fails: what cannot be read is the default, and validation
// has refused or named it before.
#pragma once

#include <cstdint>
#include <string_view>

#include "userspace/config/check.h"
#include "userspace/config/view.h"

namespace meltemi::config {

inline constexpr std::string_view kMeshConfigMap = "istio";
inline constexpr std::string_view kMeshConfigKey = "mesh";

// Which form of a request's path rules and policies see, and endpoints receive.
enum class PathNormalization : uint8_t {
  kBase,  // RFC 3986 without merging slashes: the default
  kNone,
  kMergeSlashes,
  kDecodeAndMergeSlashes,  // %2F and %5C too
};

struct MeshConfig {
  PathNormalization paths = PathNormalization::kBase;
};
MeshConfig mesh_config(View& view);

// Of the ConfigMap that holds it; every other ConfigMap passes.
void validate_mesh_config(Check& check, const MeshNames& names);

}  // namespace meltemi::config
