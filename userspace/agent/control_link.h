// The agent's one line to the control plane: PodEnrolments come down the delta xDS stream, the
// report of kernel truth goes up. gRPC stays inside xds. Everything from here reaches the node by
// Loop::post.
#pragma once

#include <memory>

#include "meltemi/node/v1/node.pb.h"
#include "userspace/agent/loop.h"
#include "userspace/agent/options.h"
#include "userspace/base/error.h"
#include "userspace/xds/delta_client.h"
#include "userspace/xds/node_report_client.h"

namespace meltemi::agent {

class ControlLink {
 public:
  // What arrives, on the loop's thread. `saved`: from the last good state in the run directory,
  // because the control plane has not spoken yet.
  using Sink = std::function<void(std::vector<meltemi::node::v1::PodEnrolment> changed,
                                  std::vector<std::string> removed, bool saved)>;

  ControlLink(const Options& options, Loop& loop, Sink sink);
  Status start();
  void report(const meltemi::node::v1::NodeReport& report);
  bool synced() const { return client_.synced(); }  // any thread
  xds::ClientStatus status() const { return client_.status(); }  // any thread

 private:
  std::vector<xds::Rejection> receive(const xds::Update& update);

  Loop& loop_;
  Sink sink_;
  xds::NodeReportClient reports_;
  xds::DeltaClient client_;  // last: its thread calls into the others
};

// One resource, checked: the uid is the resource's name, name and namespace are there.
Result<meltemi::node::v1::PodEnrolment> decode_enrolment(std::string_view name,
                                                         std::string_view body);

}  // namespace meltemi::agent
