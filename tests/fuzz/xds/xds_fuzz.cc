// Bytes of a control plane that is wrong or hostile: whatever comes out of the conversion is sealed,
// complete, and does not widen access.
#include <cstdlib>

#include "userspace/base/bytes.h"
#include "userspace/xds/workload_convert.h"

namespace {

void check(const meltemi::model::Workload& w) {
  if (w.uid.empty() || !w.identity.present() || w.service_account.empty()) std::abort();
  for (const auto& membership : w.services) {
    if (membership.service.view().find('/') == std::string_view::npos) std::abort();
  }
}

// An ALLOW whose match was not understood must admit nobody.
void check(const meltemi::model::Policy& policy) {
  using namespace meltemi;
  model::PolicyInput input;
  input.source_ip = *IpAddress::parse("10.0.0.1");
  const int rule = model::first_matching_rule(policy, input);
  if (policy.action != model::PolicyAction::kAllow || rule < 0) return;
  for (const auto& clause : policy.rules[static_cast<size_t>(rule)].clauses) {
    bool sound = false;
    for (const auto& match : clause.matches) sound |= !match.invalid;
    if (!sound && !clause.matches.empty()) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi;
  if (size == 0) return 0;
  const std::string_view body = as_text({data + 1, size - 1});
  if (data[0] % 2 == 0) {
    const auto decoded = xds::decode_address(body);
    if (decoded && std::holds_alternative<model::WorkloadPtr>(*decoded)) {
      check(*std::get<model::WorkloadPtr>(*decoded));
    }
  } else if (const auto policy = xds::decode_policy(body)) {
    check(**policy);
  }
  return 0;
}
