// Protobuf resources of tests from JSON, as a control plane's author would write them.
#pragma once

#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <string>

namespace meltemi::waypoint {

template <typename Proto>
Proto from_json(const std::string& json) {
  Proto proto;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &proto);
  EXPECT_TRUE(status.ok()) << status.message().ToString() << "\n" << json;
  return proto;
}

}  // namespace meltemi::waypoint
