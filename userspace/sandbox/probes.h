// Kubelet's probes: HTTP, TCP and exec, from the node's namespace (or the machine would not be
// asking as kubelet does), with limits. Blocks the calling thread for at most the probe's timeout.
// Must be called by a process of the node's `system` cgroup: the kernel then gives the probe its
// address.
#pragma once

#include <string>

#include "meltemi/kube/v1/kube.pb.h"
#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::sandbox {

inline constexpr size_t kMaxProbeAnswerBytes = 10 * 1024;  // as kubelet reads of an HTTP body

// Success, or an error whose detail is what kubectl would show as the event's message.
Status http_probe(const SocketAddress& to, const meltemi::kube::v1::HttpGetAction& action,
                  Duration timeout);
Status tcp_probe(const SocketAddress& to, Duration timeout);

// Schedule and thresholds of one probe. Time comes in, decisions come out.
class ProbeState {
 public:
  // `probe` must outlive this; may be null: always successful. `initially`: the result before the
  // first answer.
  ProbeState(const meltemi::kube::v1::Probe* probe, bool initially);

  bool exists() const { return probe_ != nullptr; }
  void restart(MonoTime container_started);
  MonoTime next() const { return next_; }
  Duration timeout() const;
  // Takes one answer; true if result() changed.
  bool take(bool success, MonoTime now);
  bool result() const { return result_; }
  // The last answers were failures, as many as the threshold. A startup probe's end, whose result
  // was false all along.
  bool failures_exceeded() const { return !last_ && streak_ >= failure_threshold(); }
  const meltemi::kube::v1::Probe& probe() const { return *probe_; }

 private:
  int failure_threshold() const;

  const meltemi::kube::v1::Probe* probe_;
  bool initially_, result_;
  int streak_ = 0;
  bool last_ = false;
  MonoTime next_ = MonoTime::max();
};

}  // namespace meltemi::sandbox
