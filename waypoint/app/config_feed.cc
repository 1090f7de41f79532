#include "waypoint/app/config_feed.h"

#include <fmt/format.h>

#include "userspace/base/log.h"
#include "userspace/telemetry/staleness.h"
#include "userspace/xds/workload_convert.h"
#include "waypoint/app/static_config.h"

namespace meltemi::waypoint {
namespace {

log::Scope scope("xds");

constexpr const char* kConfigTask = "configuration";
constexpr const char* kMeshTask = "workloads";

xds::Node make_own_node(const Settings& s) {
  xds::Node node = s.discovery.node("waypoint", s.service_account, s.cluster_domain);
  node.metadata["GATEWAY_NAME"] = s.gateway_name;
  return node;
}

}  // namespace

ConfigFeed::ConfigFeed(const Settings& settings, model::MeshStore& mesh,
                       telemetry::Registry& registry, telemetry::Readiness& readiness,
                       Publish publish)
    : settings_(settings), mesh_(mesh), readiness_(readiness), publish_(std::move(publish)) {
  readiness_.pending(kConfigTask);
  if (settings_.has_control_plane()) readiness_.pending(kMeshTask);
  readiness_.check("refused configuration", [this] { return refusals_.nothing_accepted(); });
  registry.add([this](telemetry::Exposition& out) { collect(out); });
}

ConfigFeed::~ConfigFeed() { stop(); }

Status ConfigFeed::start() {
  if (!settings_.has_control_plane()) {
    std::lock_guard lock(mutex_);
    MELTEMI_TRY(read_static_config(settings_.static_config, store_));
    for (const std::string& what : store_.missing()) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{}: {} is named and not there", settings_.static_config, what));
    }
    dirty_ = got_listeners_ = got_clusters_ = true;
    publish_if_ready(true);
    return {};
  }
  client_ = std::make_unique<xds::DeltaClient>(settings_.discovery.control_plane(),
                                               make_own_node(settings_));
  // Clusters before endpoints before listeners before routes: nothing names what is not there yet.
  client_->subscribe(xds::kTypeAddress, [this](const xds::Update& u) { return on_addresses(u); });
  client_->subscribe(xds::kTypeCluster, [this](const xds::Update& u) {
    return on_resources(XdsType::kCluster, u);
  });
  client_->subscribe_named(xds::kTypeEndpoints, [this](const xds::Update& u) {
    return on_resources(XdsType::kEndpoints, u);
  });
  client_->subscribe(xds::kTypeListener, [this](const xds::Update& u) {
    return on_resources(XdsType::kListener, u);
  });
  client_->subscribe_named(xds::kTypeRoute, [this](const xds::Update& u) {
    return on_resources(XdsType::kRoute, u);
  });
  if (settings_.discovery.keeps_state()) {
    client_->keep(settings_.discovery.last_good(
        "waypoint.state", fmt::format("waypoint/{}/{}", settings_.discovery.pod_namespace,
                                      settings_.gateway_name)));
  }
  readiness_.note("control plane", [this] {
    return xds::staleness_note(client_->status(), std::chrono::system_clock::now());
  });
  return client_->start();
}

void ConfigFeed::stop() {
  if (client_) client_->stop();
}

std::vector<xds::Rejection> ConfigFeed::on_addresses(const xds::Update& update) {
  std::vector<xds::Rejection> rejected;
  const model::Batch batch = xds::decode_addresses(update, &rejected);
  mesh_.apply(batch);
  readiness_.done(kMeshTask);
  return rejected;
}

std::vector<xds::Rejection> ConfigFeed::on_resources(XdsType type, const xds::Update& update) {
  std::vector<xds::Rejection> rejected;
  std::lock_guard lock(mutex_);
  for (const xds::ReceivedResource& r : update.resources) {
    const std::string name(r.name);
    const Status ok = store_.put(type, name, r.body);
    if (ok) leaving_.erase({type, name});
    refusals_.note(type, name, ok ? "" : ok.error().detail);
    if (!ok) {
      scope.error("{} refused, the last good one stays: {}", type_url(type), ok.error().detail);
      rejected.push_back({name, ok.error().detail});
    }
  }
  for (const std::string_view name : update.removed) {
    take_away(type, std::string(name));
    refusals_.forget(type, std::string(name));
  }
  if (type == XdsType::kListener) got_listeners_ = true;
  if (type == XdsType::kCluster) got_clusters_ = true;
  changed();
  return rejected;
}

void ConfigFeed::take_away(XdsType type, const std::string& name) {
  if (settings_.destination_drain == Duration::zero()) return store_.remove(type, name);
  store_.leave(type, name);
  leaving_[{type, name}] = MonoClock::now() + settings_.destination_drain;
}

void ConfigFeed::changed() {
  if (!dirty_) dirty_since_ = MonoClock::now();
  dirty_ = true;
  subscribe_to_named();
  publish_if_ready(false);
}

void ConfigFeed::subscribe_to_named() {
  if (!client_) return;
  client_->set_names(xds::kTypeRoute, store_.wanted_routes());
  client_->set_names(xds::kTypeEndpoints, store_.wanted_endpoints());
}

void ConfigFeed::publish_if_ready(bool force) {
  if (!dirty_ || !got_listeners_ || !got_clusters_) return;
  const std::vector<std::string> missing = store_.missing();
  if (!missing.empty()) {
    if (!force) return;
    scope.warn("configuration is used without what has not come: {}", fmt::join(missing, ", "));
  }
  dirty_ = false;
  const SnapshotPtr snapshot = store_.build();
  scope.info("configuration {}: {} listeners, {} clusters", snapshot->version,
             snapshot->virtual_listeners.size() + snapshot->bound_listeners.size(),
             snapshot->clusters.size());
  publish_(snapshot);
  if (!published_) readiness_.done(kConfigTask);
  published_ = true;
}

void ConfigFeed::poll() {
  std::lock_guard lock(mutex_);
  const auto gone = std::erase_if(leaving_, [this, now = MonoClock::now()](const auto& item) {
    if (now < item.second) return false;
    store_.remove(item.first.first, item.first.second);
    return true;
  });
  if (gone > 0) changed();
  if (dirty_ && MonoClock::now() >= dirty_since_ + settings_.config_patience) {
    publish_if_ready(true);
  }
}

std::optional<xds::ClientStatus> ConfigFeed::control_plane() const {
  if (!client_) return std::nullopt;
  return client_->status();
}

std::string ConfigFeed::dump_json() const {
  std::lock_guard lock(mutex_);
  return store_.dump_json();
}

void ConfigFeed::collect(telemetry::Exposition& out) const {
  if (!client_) return;
  static constexpr std::string_view kUrl[] = {"url"};
  const xds::ClientStatus status = client_->status();
  const auto family = [&](std::string_view name, std::string_view help, auto&& value) {
    out.family(name, telemetry::MetricType::kCounter, help);
    for (const auto& t : status.types) {
      const std::string_view values[] = {t.type_url};
      out.sample(name, kUrl, values, static_cast<uint64_t>(value(t)));
    }
  };
  family("istio_xds_message_total", "xDS responses received",
         [](const auto& t) { return t.responses; });
  family("meltemi_xds_rejections_total", "xDS responses refused in part",
         [](const auto& t) { return t.nacks; });
  out.family("istio_xds_connection_terminations_total", telemetry::MetricType::kCounter,
             "xDS streams that failed");
  static constexpr std::string_view kReason[] = {"reason"};
  static constexpr std::string_view kError[] = {"ConnectionError"};
  out.sample("istio_xds_connection_terminations_total", kReason, kError, status.failures);
  telemetry::add_staleness(out, xds::staleness(status, std::chrono::system_clock::now()),
                           status.serving_saved);
}

}  // namespace meltemi::waypoint
