#include "ztunnel/mesh_feed.h"

#include <fmt/format.h>

#include <charconv>
#include <map>

#include "userspace/base/log.h"
#include "userspace/telemetry/staleness.h"
#include "userspace/xds/workload_convert.h"
#include "ztunnel/local_config.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("xds");

constexpr const char* kReadyTask = "state manager";

// Departed addresses on disk: a note "ADDRESS/NETWORK" each, with its number in the order of departure. They
// must outlive this process as the workloads do, or a restart would send plaintext to what was HBONE.
constexpr const char* kDepartedNotes = "meltemi.io/departed";

std::string name_of(const model::NetworkAddress& at) {
  return fmt::format("{}/{}", at.ip.to_string(), at.network.view());
}

std::optional<model::NetworkAddress> address_of(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto ip = IpAddress::parse(name.substr(0, slash));
  if (!ip) return std::nullopt;
  return model::NetworkAddress{model::Symbol(name.substr(slash + 1)), *ip};
}

}  // namespace

MeshFeed::MeshFeed(const Settings& settings, model::MeshStore& store,
                   telemetry::Registry& registry, telemetry::Readiness& readiness)
    : settings_(settings), store_(store), readiness_(readiness) {
  readiness_.pending(kReadyTask);
  registry.add([this](telemetry::Exposition& out) { collect(out); });
}

MeshFeed::~MeshFeed() { stop(); }

Status MeshFeed::start() {
  if (!settings_.local_xds_path.empty()) {
    store_.apply(MELTEMI_TRY(read_local_config(settings_.local_xds_path)));
    scope.info("{}: {} workloads, {} policies", settings_.local_xds_path,
               store_.snapshot()->workload_count(), store_.snapshot()->policy_count());
  }
  if (settings_.discovery.address.empty()) {
    readiness_.done(kReadyTask);
    return {};
  }
  client_ = std::make_unique<xds::DeltaClient>(
      settings_.discovery.control_plane(),
      settings_.discovery.node("ztunnel", "ztunnel", "cluster.local"));
  // Policies first: a workload that names one which is not there is closed.
  client_->subscribe(xds::kTypeAuthorization,
                     [this](const xds::Update& u) { return on_policies(u); });
  client_->subscribe(xds::kTypeAddress, [this](const xds::Update& u) { return on_addresses(u); });
  if (const std::string directory = settings_.state_directory(); !directory.empty()) {
    xds::ClientSettings discovery = settings_.discovery;
    discovery.state_dir = directory;
    client_->keep(discovery.last_good("ztunnel.state", "ztunnel"));
    client_->on_notes(kDepartedNotes,
                      [this](const xds::SavedResources& notes) { restore_departed(notes); });
    store_.on_departure([this](const model::NetworkAddress& at, uint64_t number) {
      client_->note(name_of(at), number == 0 ? std::nullopt : std::optional(fmt::to_string(number)));
    });
  }
  readiness_.note("control plane", [this] {
    return xds::staleness_note(client_->status(), std::chrono::system_clock::now());
  });
  return client_->start();
}

std::optional<xds::ClientStatus> MeshFeed::control_plane() const {
  if (!client_) return std::nullopt;
  return client_->status();
}

void MeshFeed::stop() {
  if (client_) client_->stop();
}

bool MeshFeed::synced() const {
  return !client_ || (got_addresses_.load() && got_policies_.load());
}

std::vector<xds::Rejection> MeshFeed::on_addresses(const xds::Update& update) {
  std::vector<xds::Rejection> rejected;
  const model::Batch batch = xds::decode_addresses(update, &rejected);
  store_.apply(batch);
  got_addresses_ = true;
  after_update();
  return rejected;
}

std::vector<xds::Rejection> MeshFeed::on_policies(const xds::Update& update) {
  model::Batch batch;
  std::vector<xds::Rejection> rejected;
  for (const xds::ReceivedResource& r : update.resources) {
    auto policy = xds::decode_policy(r.body);
    if (!policy) {
      rejected.push_back({std::string(r.name), policy.error().detail});
    } else {
      batch.policies.push_back(*std::move(policy));
    }
  }
  batch.removed_policies.assign(update.removed.begin(), update.removed.end());
  store_.apply(batch);
  got_policies_ = true;
  after_update();
  return rejected;
}

void MeshFeed::restore_departed(const xds::SavedResources& notes) {
  std::map<uint64_t, model::NetworkAddress> in_order;
  for (const auto& [name, note] : notes) {
    const auto at = address_of(name);
    uint64_t number = 0;
    const char* end = note->body.data() + note->body.size();
    const auto [rest, error] = std::from_chars(note->body.data(), end, number);
    client_->note(name, std::nullopt);  // it gets another number, or is none of ours
    if (at && error == std::errc() && rest == end) in_order.insert_or_assign(number, *at);
  }
  std::vector<model::NetworkAddress> addresses;
  for (const auto& [number, at] : in_order) addresses.push_back(at);
  store_.restore_departed(addresses);
}

void MeshFeed::after_update() {
  if (synced()) readiness_.done(kReadyTask);
}

void MeshFeed::collect(telemetry::Exposition& out) const {
  if (!client_) return;
  static constexpr std::string_view kUrl[] = {"url"};
  const xds::ClientStatus status = client_->status();
  out.family("istio_xds_message_total", telemetry::MetricType::kCounter, "xDS responses received");
  for (const auto& t : status.types) {
    const std::string_view values[] = {t.type_url};
    out.sample("istio_xds_message_total", kUrl, values, t.responses);
  }
  out.family("istio_xds_message_bytes_total", telemetry::MetricType::kCounter,
             "Bytes of xDS responses received");
  for (const auto& t : status.types) {
    const std::string_view values[] = {t.type_url};
    out.sample("istio_xds_message_bytes_total", kUrl, values, t.bytes);
  }
  static constexpr std::string_view kReason[] = {"reason"};
  static constexpr std::string_view kError[] = {"ConnectionError"};
  out.family("istio_xds_connection_terminations_total", telemetry::MetricType::kCounter,
             "xDS streams that failed");
  out.sample("istio_xds_connection_terminations_total", kReason, kError, status.failures);
  telemetry::add_staleness(out, xds::staleness(status, std::chrono::system_clock::now()),
                           status.serving_saved);
}

}  // namespace meltemi::ztunnel
