// The parsed form of ChannelOptions::address. Private to xds.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::xds {

struct Target {
  std::string host_port;
  bool plaintext = false;
};
Result<Target> parse_target(std::string_view address);

}  // namespace meltemi::xds
