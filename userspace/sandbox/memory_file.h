// Text for a child's standard input and from its standard output, without a file system.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sandbox {

inline constexpr size_t kMaxMemoryFileBytes = 16 << 20;  // what is read back at most

// A memfd that holds `content`, positioned at its start.
Result<UniqueFd> memory_file(std::string_view content);
// All that was written to it.
Result<std::string> memory_file_content(const UniqueFd& file);

}  // namespace meltemi::sandbox
