// Reading for who wants every finding at once: also the objects that did not decode. Internal to
// validation.
#pragma once

#include <vector>

#include "userspace/config/object.h"

namespace meltemi::config {

// As read_objects() of object.h. `broken` (may be null) receives what was refused for fields of a wrong
// type or name, with all that could be read of it: to be looked at further, never to be used.
ReadResult read_objects(std::string_view bytes, std::string_view file, const ReadOptions& options,
                        std::vector<Object>* broken);

}  // namespace meltemi::config
