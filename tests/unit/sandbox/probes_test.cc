// Thresholds and times of probes, without a network.
#include "userspace/sandbox/probes.h"

#include <gtest/gtest.h>

namespace meltemi::sandbox {
namespace {

using std::chrono::seconds;

meltemi::kube::v1::Probe probe(int success, int failure, int period, int delay) {
  meltemi::kube::v1::Probe p;
  p.set_success_threshold(success);
  p.set_failure_threshold(failure);
  p.set_period_seconds(period);
  p.set_initial_delay_seconds(delay);
  return p;
}

TEST(Probe, AbsentIsAlwaysSuccessful) {
  EXPECT_TRUE(ProbeState(nullptr, false).result());
  EXPECT_FALSE(ProbeState(nullptr, false).exists());
}

TEST(Probe, ReadinessNeedsOneSuccessAndThreeFailures) {
  const auto p = probe(0, 0, 0, 0);
  ProbeState state(&p, false);
  const MonoTime start{seconds(100)};
  state.restart(start);
  EXPECT_EQ(state.next(), start);
  EXPECT_FALSE(state.result());
  EXPECT_TRUE(state.take(true, start));
  EXPECT_TRUE(state.result());
  EXPECT_EQ(state.next(), start + seconds(10));
  EXPECT_FALSE(state.take(false, start));
  EXPECT_FALSE(state.take(false, start));
  EXPECT_TRUE(state.result()) << "two failures are not three";
  EXPECT_TRUE(state.take(false, start));
  EXPECT_FALSE(state.result());
}

TEST(Probe, ASuccessInBetweenStartsTheCountAnew) {
  const auto p = probe(2, 2, 1, 0);
  ProbeState state(&p, true);
  state.restart(MonoTime{});
  state.take(false, MonoTime{});
  state.take(true, MonoTime{});
  state.take(false, MonoTime{});
  EXPECT_TRUE(state.result());
  state.take(false, MonoTime{});
  EXPECT_FALSE(state.result());
  state.take(true, MonoTime{});
  EXPECT_FALSE(state.result());
  state.take(true, MonoTime{});
  EXPECT_TRUE(state.result());
}

TEST(Probe, WaitsItsInitialDelayAtEveryStart) {
  const auto p = probe(1, 1, 5, 7);
  ProbeState state(&p, true);
  state.restart(MonoTime{seconds(50)});
  EXPECT_EQ(state.next(), MonoTime{seconds(57)});
  state.take(false, MonoTime{seconds(57)});
  EXPECT_FALSE(state.result());
  EXPECT_TRUE(state.failures_exceeded());
  state.restart(MonoTime{seconds(60)});
  EXPECT_TRUE(state.result()) << "a new start has not failed yet";
  EXPECT_FALSE(state.failures_exceeded());
}

}  // namespace
}  // namespace meltemi::sandbox
