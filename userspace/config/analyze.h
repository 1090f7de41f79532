// What only shows when objects are looked at together: references to things that are not there, L7
// rules that no proxy enforces, Services without pods. Findings never keep an object out of the
// store (objects arrive in any order); they go to statuses, to `apply`, `get` and `analyze`, each
// with the command or edit that mends it. Severity kError is for what cannot be meant (an unknown
// host, two pods with one address) and makes commands exit with a code other than 0.
#pragma once

#include <optional>

#include "userspace/config/store.h"
#include "userspace/config/translate.h"
#include "userspace/config/validate.h"

namespace meltemi::config {

// Everything in the store, sorted by object.
Problems analyze(const ObjectStore& store, const MeshNames& names = {});
// Only what concerns one object (as subject of the finding). Empty if it is not in the store.
Problems analyze_object(const ObjectStore& store, const ObjectKey& key,
                        const MeshNames& names = {});

// Istio's condition istio.io/WaypointBound of a Service: which waypoint serves it, or why none does
// although one is asked for (WaypointAccepted, WaypointIsNotReady, WaypointMissing, AttachmentDenied,
// UnsupportedTrafficType). Nothing where none is asked for. The store should hold Gateways' statuses.
std::optional<Condition> waypoint_bound(const ObjectStore& store, const Object& service,
                                        const MeshNames& names = {});

}  // namespace meltemi::config
