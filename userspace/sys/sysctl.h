// /proc/sys. Keys of net.* belong to the namespace of the calling thread: wrap calls in Netns::run.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::sys {

// `key` is a path below /proc/sys with slashes ("net/ipv4/tcp_fwmark_accept"): interface names may
// contain dots. The value comes without its newline. kNotFound if the kernel has no such key.
Result<std::string> read_sysctl(std::string_view key);
Status write_sysctl(std::string_view key, std::string_view value);

}  // namespace meltemi::sys
