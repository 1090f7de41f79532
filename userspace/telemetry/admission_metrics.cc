// See admission_metrics.h.
#include "userspace/telemetry/admission_metrics.h"

#include <array>

namespace meltemi::telemetry {
namespace {

void collect(const rt::Admission& admission, Exposition& out) {
  static constexpr std::array<std::string_view, 2> kOutcome = {"class", "outcome"};
  static constexpr std::array<std::string_view, 1> kClass = {"class"};
  static constexpr std::array<std::string_view, 1> kKind = {"kind"};
  const auto rows = admission.rows();
  out.family("meltemi_admission_open", MetricType::kGauge, "Accepted connections that are open");
  for (const auto& row : rows) {
    const std::array<std::string_view, 1> values = {row.name};
    out.sample("meltemi_admission_open", kClass, values, row.open);
  }
  out.family("meltemi_admission_total", MetricType::kCounter,
             "Accepted connections by what admission did with them");
  for (const auto& row : rows) {
    for (size_t i = 0; i < rt::kOutcomes; ++i) {
      const std::array<std::string_view, 2> values = {row.name, to_string(rt::Outcome(i))};
      out.sample("meltemi_admission_total", kOutcome, values, row.outcomes[i]);
    }
  }
  out.family("meltemi_admission_descriptors", MetricType::kGauge,
             "Descriptors that connections hold, and may hold");
  const std::array<std::string_view, 1> held = {"held"}, limit = {"limit"};
  out.sample("meltemi_admission_descriptors", kKind, held, admission.held());
  out.sample("meltemi_admission_descriptors", kKind, limit, admission.options().descriptors);
}

}  // namespace

void add_admission_metrics(Registry& registry, const rt::Admission& admission) {
  registry.add([&admission](Exposition& out) { collect(admission, out); });
}

}  // namespace meltemi::telemetry
