// The kinds of objects that Meltemi knows: their names in YAML and on the command line, their API
// versions, and the message that holds their body. The one place to touch when a kind is added.
#pragma once

#include <google/protobuf/message.h>

#include <span>
#include <string_view>
#include <vector>

namespace meltemi::config {

enum class Kind : uint8_t {
  kNamespace,
  kNode,
  kServiceAccount,
  kPod,
  kDeployment,
  kReplicaSet,
  kJob,
  kService,
  kConfigMap,
  kSecret,
  kVirtualService,
  kDestinationRule,
  kAuthorizationPolicy,
  kPeerAuthentication,
  kGateway,       // gateway.networking.k8s.io
  kGatewayClass,  // gateway.networking.k8s.io
};
inline constexpr size_t kKindCount = 16;

struct KindInfo {
  Kind kind;
  std::string_view name;   // "VirtualService"
  std::string_view group;  // "networking.istio.io"; "" is core
  std::span<const std::string_view>
      versions;               // accepted, the first is the one we print for new ones
  std::string_view singular;  // "virtualservice"
  std::string_view plural;    // "virtualservices"
  std::span<const std::string_view> short_names;  // "vs"
  bool namespaced = true;
  const google::protobuf::Message* body = nullptr;  // prototype: what stands beside metadata

  std::string api_version() const;  // "networking.istio.io/v1"
};

const KindInfo& kind_info(Kind kind);
std::span<const KindInfo> all_kinds();
// By apiVersion and kind of a document; nullptr if unknown.
const KindInfo* find_kind(std::string_view api_version, std::string_view kind);
// By any word of the command line, any case: "po", "pods", "Pod", "vs",
// "gateways.gateway.networking.k8s.io".
const KindInfo* find_kind_word(std::string_view word);
// True if the kind is one of Istio's, Gateway API's or Kubernetes' that we know but do not act on.
bool is_known_unsupported(std::string_view api_version, std::string_view kind);

}  // namespace meltemi::config
