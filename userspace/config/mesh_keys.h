// What labels and annotations of the mesh's own domains (istio.io, meltemi.io and below) say, and
// to whom. // Internal to validation.
#pragma once

#include <string>

#include "userspace/config/check.h"

namespace meltemi::config {

// Warns of keys that nobody reads, or not on `kind`, and of values that mean nothing; errors where
// a value would shut something off. `metadata` is the path of `meta`: "metadata", or that of a
// template, whose kind is a Pod.
void check_mesh_keys(Check& check, Kind kind, const std::string& metadata,
                     const kube::ObjectMeta& meta);

}  // namespace meltemi::config
