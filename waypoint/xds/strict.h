// Refuses what this proxy would otherwise ignore: unknown fields and unknown enum values anywhere in a
// resource, by name. A security rule that silently has no effect is worse than one that is refused.
#pragma once

#include <string>

#include "userspace/base/error.h"

namespace google::protobuf {
class Message;
class Any;
}  // namespace google::protobuf

namespace meltemi::waypoint {

// kUnsupported: "filter_chains[0].filters[1]: envoy.config.listener.v3.Filter.config_discovery is not
// supported". Does not look into Any: see unpack().
Status check_supported(const google::protobuf::Message& message);

// Unpacks `any` into `out` and checks it. kUnsupported when it holds another type.
Status unpack(const google::protobuf::Any& any, google::protobuf::Message& out);

}  // namespace meltemi::waypoint
