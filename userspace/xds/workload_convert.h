// Protobuf from the wire to the mesh model, with the peer's defaults and its reasons to refuse
// (facts: ztunnel §3.4, §3.5). Pure functions; parses bytes of the control plane. Must never widen
// access: a policy entry that is not understood is marked invalid, not dropped.
#pragma once

#include <string_view>
#include <variant>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/model/policy.h"
#include "userspace/model/store.h"
#include "userspace/model/types.h"
#include "userspace/xds/delta_client.h"

namespace istio::workload {
class Workload;
class Service;
}  // namespace istio::workload
namespace istio::security {
class Authorization;
}

namespace meltemi::xds {

// Error kBadRequest, "field: what is wrong". Results are sealed.
Result<model::WorkloadPtr> to_workload(const istio::workload::Workload& proto);
Result<model::ServicePtr> to_service(const istio::workload::Service& proto);
Result<model::PolicyPtr> to_policy(const istio::security::Authorization& proto);

using AddressResource = std::variant<model::WorkloadPtr, model::ServicePtr>;
// From an Any.value. Error kBadRequest: not the message, or as above.
Result<AddressResource> decode_address(std::string_view body);
Result<model::PolicyPtr> decode_policy(std::string_view body);
// All addresses of an update as one batch; what does not decode goes to `rejected`.
model::Batch decode_addresses(const Update& update, std::vector<Rejection>* rejected);

}  // namespace meltemi::xds
