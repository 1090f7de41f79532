// The status that Kubernetes' controllers report of a Deployment, a ReplicaSet or a Job, computed
// from its pods when somebody looks. Pure; nothing is stored, so that it can never be out of date.
#pragma once

#include <string>

#include "userspace/config/store.h"

namespace meltemi::sandbox {

// `object` with its status filled in; objects of other kinds as they are. `store`: the merged view.
// Pods on their way out count as terminating only, as in Kubernetes.
config::Object with_status(const config::ObjectStore& store, const config::Object& object);

// Name of the ReplicaSet that a Deployment's present pod template would have: its pods' owner.
std::string replica_set_name(const config::Object& deployment);

}  // namespace meltemi::sandbox
