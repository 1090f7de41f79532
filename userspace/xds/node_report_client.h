// Client of meltemi.node.v1.NodeStatus: an agent tells the kernel's truth of its node. Reports are
// whole states, so only the newest matters: one is in flight, one may wait, and older waiting ones
// are dropped. A report that failed is sent again with backoff until a newer one takes its place.
#pragma once

#include <functional>
#include <memory>

#include "meltemi/node/v1/node.pb.h"
#include "userspace/base/error.h"
#include "userspace/xds/channel.h"

namespace meltemi::xds {

inline constexpr std::chrono::seconds kReportDeadline{5};
// A control plane that restarted has forgotten: the last report is repeated this often.
inline constexpr std::chrono::seconds kReportRepeat{10};

class NodeReportClient {
 public:
  explicit NodeReportClient(ChannelOptions channel);
  ~NodeReportClient();  // stops
  NodeReportClient(const NodeReportClient&) = delete;
  NodeReportClient& operator=(const NodeReportClient&) = delete;

  // Any thread; returns at once.
  void report(meltemi::node::v1::NodeReport report);
  // True when the newest report was acknowledged.
  bool acknowledged() const;
  std::string last_error() const;  // "" after a success

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::xds
