// The rows of every binary's log. Must not know what is logged.
#pragma once

#include <string>

#include "userspace/base/config.h"
#include "userspace/base/error.h"

namespace meltemi::log {

struct Settings {
  std::string levels = "info";
  std::string format = "plain";

  void describe(ConfigTable& table);  // `this` must outlive the table
  // init() of log.h with them. Error: kBadConfig, naming the row.
  Status init() const;
};

}  // namespace meltemi::log
