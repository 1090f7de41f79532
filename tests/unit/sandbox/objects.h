// Objects for the tests of the sandbox, from the YAML that a user would write.
#pragma once

#include <gtest/gtest.h>

#include <string_view>

#include "userspace/config/store.h"

namespace meltemi::sandbox::test {

inline config::ObjectStore store_of(std::string_view yaml) {
  config::ObjectStore store;
  const config::ReadResult read = config::read_objects(yaml, "test.yaml");
  for (const config::Problem& problem : read.problems)
    if (problem.severity == config::Severity::kError) ADD_FAILURE() << problem.to_string();
  for (const config::Object& object : read.objects) store.upsert(object);
  return store;
}

inline config::Object object_of(std::string_view yaml) {
  const config::ReadResult read = config::read_objects(yaml, "test.yaml");
  if (read.objects.size() != 1) ADD_FAILURE() << "not one object: " << yaml;
  return read.objects.at(0);
}

}  // namespace meltemi::sandbox::test
