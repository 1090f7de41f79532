// Which fields of a Pod (and of the kinds that run pods) the sandbox acts on. The table is made
// from options in meltemi/kube/v1/kube.proto, so that it cannot drift from what the decoder does.
#pragma once

#include <string>
#include <vector>

namespace meltemi::config {

enum class FieldEffect : uint8_t { kHonoured, kAccepted, kRefused };

struct PodField {
  std::string path;  // "spec.containers[].image"
  FieldEffect effect = FieldEffect::kHonoured;
  std::string note;  // why, or what happens instead; "" for honoured fields without a twist
};

// All leaf and refused fields of PodSpec, sorted by path.
const std::vector<PodField>& pod_fields();
// The table in Markdown, for the documentation.
std::string pod_fields_markdown();

}  // namespace meltemi::config
