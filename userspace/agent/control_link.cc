// xDS batches to the loop, reports to gRPC; see control_link.h.
#include "userspace/agent/control_link.h"

#include <fmt/format.h>

namespace meltemi::agent {
namespace {

xds::ChannelOptions channel_of(const Options& o) {
  xds::ChannelOptions c;
  c.address = o.xds_address;
  c.root_ca = o.xds_root_ca;
  c.token_file = o.auth_token;
  c.cluster_id = o.cluster_id;
  return c;
}

xds::Node node_of(const Options& o) {
  const std::string ip = o.node_ip.empty() ? "127.0.0.1" : o.node_ip;
  xds::Node node = xds::make_node("agent", ip, o.pod_name, o.pod_namespace, o.trust_domain);
  node.metadata = {{"NODE_NAME", o.node_name},
                   {"NAME", o.pod_name},
                   {"NAMESPACE", o.pod_namespace},
                   {"SERVICE_ACCOUNT", "meltemi-agent"},
                   {"CLUSTER_ID", o.cluster_id}};
  return node;
}

}  // namespace

Result<meltemi::node::v1::PodEnrolment> decode_enrolment(std::string_view name,
                                                         std::string_view body) {
  meltemi::node::v1::PodEnrolment e;
  const auto bad = [](std::string what) {
    return fail(Reason::kBadRequest, Fault::kUpstream, std::move(what));
  };
  if (!e.ParseFromArray(body.data(), static_cast<int>(body.size()))) return bad("malformed");
  if (e.uid() != name)
    return bad(fmt::format("field uid: \"{}\" is not the resource's name", e.uid()));
  if (e.name().empty()) return bad("field name: empty");
  if (e.namespace_().empty()) return bad("field namespace: empty");
  return e;
}

ControlLink::ControlLink(const Options& options, Loop& loop, Sink sink)
    : loop_(loop),
      sink_(std::move(sink)),
      reports_(channel_of(options)),
      client_(channel_of(options), node_of(options)) {
  client_.subscribe(xds::kTypePodEnrolment,
                    [this](const xds::Update& update) { return receive(update); });
  client_.keep({.path = options.run_dir + "/agent.state",
                .owner = {"meltemi-agent", options.node_name, options.cluster_id,
                          options.trust_domain},
                .max_age = options.max_stale_age});
}

Status ControlLink::start() {
  return client_.start();
}

void ControlLink::report(const meltemi::node::v1::NodeReport& report) {
  reports_.report(report);
}

// On the client's thread.
std::vector<xds::Rejection> ControlLink::receive(const xds::Update& update) {
  std::vector<xds::Rejection> rejected;
  std::vector<meltemi::node::v1::PodEnrolment> changed;
  for (const xds::ReceivedResource& resource : update.resources) {
    Result<meltemi::node::v1::PodEnrolment> e = decode_enrolment(resource.name, resource.body);
    if (e)
      changed.push_back(std::move(*e));
    else
      rejected.push_back({std::string(resource.name), e.error().detail});
  }
  std::vector<std::string> removed(update.removed.begin(), update.removed.end());
  loop_.post([this, saved = update.saved, changed = std::move(changed),
              removed = std::move(removed)]() mutable {
    sink_(std::move(changed), std::move(removed), saved);
  });
  return rejected;
}

}  // namespace meltemi::agent
