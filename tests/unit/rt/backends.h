// Every rt test runs on each way the loop can work on this kernel: io_uring with incremental, plain
// and cooperative settings, and epoll.
#pragma once

#include <gtest/gtest.h>

#include "userspace/rt/loop.h"

namespace meltemi::rt {

struct BackendCase {
  const char* name;
  LoopOptions options;
};

inline std::vector<BackendCase> backend_cases() {
  LoopOptions uring{.backend = Backend::kUring};
  LoopOptions plain = uring;
  plain.allow_incremental = false;
  LoopOptions coop = uring;
  coop.allow_defer_taskrun = false;
  return {{"uring", uring}, {"uring_plain", plain}, {"uring_coop", coop},
          {"epoll", {.backend = Backend::kEpoll}}};
}

class BackendTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    auto made = Loop::create(GetParam().options);
    if (!made && made.error().reason == Reason::kUnsupported)
      GTEST_SKIP() << made.error().to_string();
    ASSERT_TRUE(made) << made.error().to_string();
    loop_ = std::move(*made);
  }
  Loop& loop() { return *loop_; }
  bool run_until(const std::function<bool()>& done, int seconds = 60) {
    return loop_->run_until(done, MonoClock::now() + std::chrono::seconds(seconds));
  }
  std::unique_ptr<Loop> loop_;
};

#define MELTEMI_ALL_BACKENDS(fixture)                                              \
  INSTANTIATE_TEST_SUITE_P(All, fixture, testing::ValuesIn(::meltemi::rt::backend_cases()),       \
                           [](const auto& info) { return std::string(info.param.name); })

}  // namespace meltemi::rt
