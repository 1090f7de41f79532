// See control_plane.h. Start, stop, timers and what gRPC's threads ask for; the way of a change through
// the loop is in control_loop.cc.
#include "userspace/control/control_plane.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/control/monitoring.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

log::Scope scope("control");

constexpr uint32_t kDescriptorsPerConnection = 2;  // gRPC's and the one that is watched
constexpr std::string_view kConfigurationTask = "configuration not read yet";

pki::AuthorityOptions authority_options(const Settings& settings) {
  using std::chrono::duration_cast;
  using std::chrono::seconds;
  pki::AuthorityOptions out;
  out.directory = settings.ca_dir;
  out.trust_domain = settings.trust_domain;
  out.default_ttl = duration_cast<seconds>(settings.cert_ttl);
  out.max_ttl = duration_cast<seconds>(settings.max_cert_ttl);
  return out;
}

AccessRules access_rules(const Settings& settings) {
  return {.trust_domain = settings.trust_domain,
          .node_accounts = {settings.trusted_node_accounts.begin(),
                            settings.trusted_node_accounts.end()},
          .agent_accounts = {settings.agent_accounts.begin(), settings.agent_accounts.end()}};
}

// Who asks, as far as it matters for rates: each node and each pod by itself.
std::string name_of(const xds::Caller& caller) {
  return fmt::format("{}/{} ({}{})", caller.ns, caller.service_account, caller.node_name,
                     caller.pod_uid);
}

WallTime wall_now() { return std::chrono::system_clock::now(); }

config::ReadOptions read_options() {
  config::ReadOptions out;
  out.warn_ignored = false;  // `apply` says it once; repeating it at every read helps nobody
  return out;
}

}  // namespace

Result<std::unique_ptr<ControlPlane>> ControlPlane::create(Settings settings) {
  MELTEMI_TRY(settings.check());
  auto keys = MELTEMI_TRY(pki::TokenKeyFiles::open(settings.token_public_key));
  auto ca = MELTEMI_TRY(pki::CertificateAuthority::open(authority_options(settings), wall_now()));
  auto names = control_plane_names(settings.root_namespace);
  names.insert(names.end(), settings.server_names.begin(), settings.server_names.end());
  auto identity = MELTEMI_TRY(ServerIdentity::create(ca.get(), settings.ca_dir, std::move(names), wall_now()));
  auto source = MELTEMI_TRY(DirectorySource::open(settings.config_dir));
  auto files = MELTEMI_TRY(GeneratedFiles::open(settings.state_dir));
  return std::unique_ptr<ControlPlane>(new ControlPlane(std::move(settings), std::move(keys),
                                                        std::move(ca), std::move(source),
                                                        std::move(files), std::move(identity)));
}

ControlPlane::ControlPlane(Settings settings, std::unique_ptr<pki::TokenKeyFiles> token_keys,
                           std::unique_ptr<pki::CertificateAuthority> ca,
                           std::unique_ptr<DirectorySource> source, GeneratedFiles files,
                           ServerIdentity identity)
    : settings_(std::move(settings)),
      token_keys_(std::move(token_keys)),
      token_policy_{{settings_.token_issuers.begin(), settings_.token_issuers.end()},
                    {settings_.token_audiences.begin(), settings_.token_audiences.end()}},
      signing_rate_({static_cast<int>(settings_.signing_burst), settings_.signing_interval}),
      ca_(std::move(ca)),
      source_(std::move(source)),
      tree_(&store_, read_options(), settings_.names()),
      translator_(&store_, settings_.names()),
      files_(std::move(files)),
      board_(&store_, &files_, settings_.root_namespace),
      enrolled_(settings_.state_dir + "/.enrolled.json"),
      identity_(std::move(identity)),
      accounts_(settings_.state_dir + "/.accounts.json"),
      access_(access_rules(settings_), &pods_, &accounts_),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      door_(settings_.admission.options(rt::raise_descriptor_limit(), kDescriptorsPerConnection)),
      server_(hooks()) {
  readiness_.pending(std::string(kConfigurationTask));
  readiness_.note("configuration", [this] { return source_trouble(); });
  readiness_.note("service accounts", [this] { return accounts_.problem(); });
  readiness_.check("xds", [this] { return server_.trouble(MonoClock::now()); });
}

ControlPlane::~ControlPlane() {
  server_.stop(std::chrono::milliseconds(0));
  monitoring_.stop();
}

// Until the configuration is read nobody can say that a token's pod is gone: "later", not "no".
Status ControlPlane::knows_pods_of(const xds::Caller& caller) const {
  if (ready_ || caller.pod_name.empty()) return {};
  return fail(Reason::kShutdown, Fault::kInternal, "the configuration has not been read yet");
}

xds::ServerHooks ControlPlane::hooks() {
  xds::ServerHooks out;
  out.authenticate = [this](std::string_view token) -> Result<xds::Caller> {
    const auto keys = token_keys_->current(MonoClock::now());
    const auto claims = MELTEMI_TRY(pki::verify_token(*keys, token, wall_now(), token_policy_));
    return xds::Caller{claims.ns, claims.service_account, claims.pod_name, claims.pod_uid,
                       claims.node_name, pki::token_end(claims), claims.account_uid};
  };
  out.scope_of = [this](const xds::Caller& caller, const xds::Node& node,
                        std::string_view type) -> Result<std::string> {
    MELTEMI_TRY(knows_pods_of(caller));
    return access_.scope_of(caller, node, type);
  };
  out.sign = [this](const xds::Caller& caller,
                    const xds::CertificateCall& call) -> Result<std::vector<std::string>> {
    MELTEMI_TRY(knows_pods_of(caller));
    const auto identity = MELTEMI_TRY(access_.grant(caller, call.impersonate));
    const auto request = MELTEMI_TRY(pki::CertificateRequest::parse(call.csr_pem));
    MELTEMI_TRY(signing_rate_.take(fmt::format("{} for {}", name_of(caller), identity.uri()),
                                   MonoClock::now()));
    auto chain = MELTEMI_TRY(ca_->issue(request, identity, call.ttl, wall_now()));
    scope.info("certificate for {} to {}/{}{}{}", identity.uri(), caller.ns,
               caller.service_account, caller.node_name.empty() ? "" : " on ", caller.node_name);
    return chain;
  };
  out.report = [this](const xds::Caller& caller, const node::v1::NodeReport& report) -> Status {
    MELTEMI_TRY(knows_pods_of(caller));
    MELTEMI_TRY(access_.may_report(caller, report.node()));
    Report taken{.node = report.node(),
                 .problems = {report.problems().begin(), report.problems().end()},
                 .pods = {}};
    if (report.pods_size() > kMaxReportedPods) {
      return fail(Reason::kLimitExceeded, Fault::kDownstream,
                  fmt::format("more than {} pods of one node", kMaxReportedPods));
    }
    if (report.problems_size() > kMaxReportedProblems) {
      return fail(Reason::kLimitExceeded, Fault::kDownstream,
                  fmt::format("more than {} problems of one node", kMaxReportedProblems));
    }
    for (const auto& pod : report.pods()) {
      (pod.enrolled() ? taken.pods.enrolled : taken.pods.plain).insert(pod.uid());
    }
    {
      const std::lock_guard lock(reports_mutex_);
      reports_.push_back(std::move(taken));
    }
    ::eventfd_write(wake_.get(), 1);
    return {};
  };
  return out;
}

Status ControlPlane::start_servers() {
  xds::ServerOptions options;
  options.tls_listen = MELTEMI_TRY(parse_listen("xds-listen", settings_.xds_listen));
  options.plaintext_listen =
      MELTEMI_TRY(parse_listen("xds-plaintext-listen", settings_.xds_plaintext_listen));
  options.certificate_file = identity_.certificate_file();
  options.key_file = identity_.key_file();
  options.door = &door_;
  options.max_connection_age = settings_.max_connection_age;
  MELTEMI_TRY(server_.start(options));
  for (const std::string& address : settings_.xds_listen) scope.info("xDS and CA on {}", address);
  return start_monitoring();
}

std::vector<SocketAddress> ControlPlane::monitoring_addresses() const {
  return monitoring_addresses_;
}

Status ControlPlane::start_monitoring() {
  add_monitoring_routes(pages_, registry_, *this);
  telemetry::add_server_metrics(registry_, monitoring_);
  for (const SocketAddress& address :
       MELTEMI_TRY(parse_listen("monitoring-listen", settings_.monitoring_listen))) {
    monitoring_addresses_.push_back(MELTEMI_TRY(monitoring_.listen(pages_, address)));
  }
  return monitoring_.start();
}

Status ControlPlane::run(int stop_fd) {
  {
    const std::lock_guard lock(mutex_);
    const MonoTime now = MonoClock::now();
    next_identity_ = now + kIdentityCheck;
    next_rotation_ = now + kRotationCheck;
  }
  MELTEMI_TRY(start_servers());
  loop(stop_fd);
  scope.info("going away");
  server_.stop(std::chrono::duration_cast<std::chrono::milliseconds>(settings_.drain));
  monitoring_.stop();
  const std::lock_guard lock(mutex_);
  if (!loaded_) return {};
  const Status enrolled = enrolled_.save(pods_.uids());
  MELTEMI_TRY(accounts_.save());
  return enrolled;
}

Duration ControlPlane::next_wake(MonoTime now) const {
  MonoTime next = std::min(next_identity_, next_rotation_);
  if (!ready_ && empty_since_ != MonoTime{}) next = std::min(next, empty_since_ + kConfirm);
  if (analyze_due_) next = std::min(next, next_analysis_);
  if (loaded_ && (enrolled_.dirty() || (ready_ && accounts_.dirty()))) next = std::min(next, next_save_);
  if (files_.owes()) next = std::min(next, retry_files_);
  if (retry_source_ != MonoTime{}) next = std::min(next, retry_source_);
  for (const auto& [path, when] : held_) next = std::min(next, when);
  return std::max<Duration>(next - now, Duration(0));
}

void ControlPlane::loop(int stop_fd) {
  bool first = true;
  for (;;) {
    pollfd fds[] = {{stop_fd, POLLIN, 0}, {source_->fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    Duration wait{};
    MonoTime last;
    {
      const std::lock_guard lock(mutex_);
      wait = first ? Duration(0) : next_wake(MonoClock::now());
      last = last_batch_;
    }
    const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(wait).count();
    ::poll(fds, std::size(fds), static_cast<int>(std::min<int64_t>(milliseconds, 60'000)));
    if (fds[0].revents != 0) return;
    const bool files = fds[1].revents != 0 || first;
    // Under churn, one batch for what comes within a moment; a lone change goes out at once.
    if (files && !first && MonoClock::now() - last < kChurn) ::poll(fds, 1, kGather.count());
    if (fds[0].revents != 0) return;
    eventfd_t woken = 0;
    if (fds[2].revents != 0) ::eventfd_read(wake_.get(), &woken);

    const std::lock_guard lock(mutex_);
    const MonoTime now = MonoClock::now();
    const bool retry = retry_source_ != MonoTime{} && now >= retry_source_;
    const bool due = std::ranges::any_of(held_, [&](const auto& h) { return now >= h.second; });
    if (files || retry || due) read_source(now);
    take_reports();
    timers(now);
    first = false;
  }
}

void ControlPlane::take_reports() {
  std::vector<Report> reports;
  {
    const std::lock_guard lock(reports_mutex_);
    reports.swap(reports_);
  }
  for (Report& report : reports) {
    if (std::vector<std::string>& known = node_problems_[report.node]; known != report.problems) {
      for (const std::string& problem : report.problems)
        scope.warn("node {}: {}", report.node, log::escape(problem));
      known = std::move(report.problems);
    }
    const size_t enrolled = report.pods.enrolled.size();
    if (!enrolled_.set(report.node, std::move(report.pods))) continue;
    scope.info("node {} reports {} enrolled pods", report.node, enrolled);
    next_save_ = MonoClock::now() + kSaveEvery;
    count_enrolled(report.node);
  }
}

// An agent speaks for the pods of its own node only.
void ControlPlane::count_enrolled(const std::string& node) {
  if (enrolled_.lost(node)) {
    std::set<std::string> decided;
    for (const PodEntry& pod : pods_.on_node(node)) {
      if (translator_.wants_enrolment(pod.ns, pod.name)) decided.insert(pod.uid);
    }
    enrolled_.presume(node, std::move(decided));
  }
  std::set<std::string> counted = enrolled_.count(node, [this](const std::string& uid) {
    const auto pod = pods_.find_uid(uid);
    return pod && translator_.wants_enrolment(pod->ns, pod->name);
  });
  std::erase_if(counted, [&](const std::string& uid) {
    const auto pod = pods_.find_uid(uid);
    return !pod || pod->node != node;
  });
  pods_.report(node, counted);
  publish(translator_.set_enrolled(node, std::move(counted)));
}

// The agent's word may have come before the decision that it follows from here.
void ControlPlane::end_decided_enrolments() {
  for (const std::string& node : enrolled_.disputed()) count_enrolled(node);
}

// A report may come before the objects of its pods are read, above all after a start: they count from
// their first translation on.
void ControlPlane::count_enrolled_again(const std::vector<config::ObjectChange>& changes) {
  std::set<std::string> nodes;
  for (const config::ObjectChange& change : changes) {
    if (change.key.kind != config::Kind::kPod) continue;
    for (const auto& pod : {change.before, change.after}) {
      if (pod != nullptr) nodes.insert(pod->as<config::kube::Pod>().spec().node_name());
    }
  }
  std::erase_if(nodes, [this](const std::string& node) {
    return node.empty() || (!enrolled_.lost(node) && !enrolled_.knows(node));
  });
  if (nodes.empty()) return;
  for (const std::string& node : nodes) count_enrolled(node);
  enrolled_.save_again();
  next_save_ = MonoClock::now() + kSaveEvery;
}

void ControlPlane::timers(MonoTime now) {
  if (!ready_ && loaded_ && (empty_since_ == MonoTime{} || now >= empty_since_ + kConfirm)) {
    become_ready();
  }
  if (analyze_due_ && now >= next_analysis_) {
    analyze_due_ = false;
    next_analysis_ = now + kAnalyzeEvery;
    board_.set_findings(config::analyze(store_, settings_.names()));
    stats_.last_analysis = MonoClock::now() - now;
    publish_statuses();
  }
  if (files_.owes() && now >= retry_files_) {
    retry_files_ = now + kSourceRetry;
    files_.retry();
  }
  // Before the pods are known nobody can say which of them are alive.
  if (loaded_ && (enrolled_.dirty() || (ready_ && accounts_.dirty())) && now >= next_save_) {
    // What goes wrong is logged there.
    const bool kept = enrolled_.save(pods_.uids()).has_value();
    if (accounts_.read_late()) end_unwelcome();
    next_save_ = now + (accounts_.save() && kept ? kSaveEvery : kSaveRetry);
  }
  if (now >= next_identity_) check_identity(now);
}

void ControlPlane::check_identity(MonoTime now) {
  next_identity_ = now + kIdentityCheck;
  bool rotated = false;
  if (now >= next_rotation_) {
    next_rotation_ = now + kRotationCheck;
    const auto changed = ca_->rotate(wall_now());
    if (changed) {
      rotated = *changed;
    } else {
      scope.error("CA rotation: {}", changed.error().to_string());
    }
  }
  if (const Status fresh = identity_.refresh(wall_now(), rotated); !fresh) {
    scope.error("server certificate: {}", fresh.error().to_string());
  }
  if (!rotated) return;
  // Waypoints mount the root: the generated ConfigMaps follow it.
  std::set<std::string> namespaces;
  for (const auto& gateway : store_.list(config::Kind::kGateway)) namespaces.insert(gateway->ns());
  std::vector<config::ObjectChange> changes;
  generate(namespaces, &changes);
  settle(std::move(changes));
  publish_statuses();
}

void ControlPlane::become_ready() {
  files_.sweep();
  if (accounts_.complete()) end_unwelcome();
  ready_ = true;
  readiness_.done(std::string(kConfigurationTask));
  server_.set_ready();
  scope.info("serving {} objects from {}", known_files_.size(), source_->root());
}

ControlStats ControlPlane::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

size_t ControlPlane::objects(config::Kind kind) const {
  const std::lock_guard lock(mutex_);
  return store_.size(kind);
}

}  // namespace meltemi::control
