// The metrics of a process's admission: how many connections are open, and what happened to those
// that came. Labels come from closed sets only.
#pragma once

#include "userspace/rt/admission.h"
#include "userspace/telemetry/exposition.h"

namespace meltemi::telemetry {

// meltemi_admission_open{class}, meltemi_admission_total{class,outcome} and
// meltemi_admission_descriptors{kind}. `admission` must outlive the registry.
void add_admission_metrics(Registry& registry, const rt::Admission& admission);

}  // namespace meltemi::telemetry
