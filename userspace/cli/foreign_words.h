// What users of kubectl and istioctl type, and what serves that purpose here. Pure. Must never name a
// command that does not exist.
#pragma once

#include <string_view>

namespace meltemi::cli {

// A sentence for a word of kubectl's or istioctl's that is no command of ours; "" for any other.
std::string_view advice_for(std::string_view word);

}  // namespace meltemi::cli
