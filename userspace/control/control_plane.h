// meltemid's one loop: manifests in, validated objects, generated objects, translated resources out to
// every stream. One thread owns configuration and translation; gRPC's threads only ask the pod index and
// post the agents' reports; operators' pages read under the lock. It must never serve before it has read
// its configuration, nor take back what it serves because files have become bad or are gone for a moment.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "userspace/base/fd.h"
#include "userspace/config/analyze.h"
#include "userspace/config/store.h"
#include "userspace/config/translate.h"
#include "userspace/config/tree.h"
#include "userspace/control/access.h"
#include "userspace/control/account_index.h"
#include "userspace/control/directory_source.h"
#include "userspace/control/enrolled_pods.h"
#include "userspace/control/gateway_controller.h"
#include "userspace/control/generated_files.h"
#include "userspace/control/pod_index.h"
#include "userspace/control/server_identity.h"
#include "userspace/control/settings.h"
#include "userspace/control/signing_rate.h"
#include "userspace/control/status_board.h"
#include "userspace/pki/authority.h"
#include "userspace/pki/token.h"
#include "userspace/rt/admission.h"
#include "userspace/telemetry/pages.h"
#include "userspace/xds/server.h"
#include "userspace/xds/status_page.h"

namespace meltemi::control {

// Changes are applied at once when it is quiet; under churn they are gathered for this long.
inline constexpr std::chrono::milliseconds kGather{10};
inline constexpr std::chrono::milliseconds kChurn{100};
// A loss of at least this many files that is also half of all, or an empty start, is looked at again
// after kConfirm before it is believed.
inline constexpr size_t kShrinkFiles = 20;
inline constexpr std::chrono::milliseconds kConfirm{1000};
inline constexpr std::chrono::milliseconds kAnalyzeEvery{1000};
inline constexpr std::chrono::milliseconds kSaveEvery{200};
inline constexpr std::chrono::milliseconds kSaveRetry{5000};  // after a save that failed
inline constexpr int kMaxReportedProblems = 16;  // of one node; an agent knows of two kinds
inline constexpr int kMaxReportedPods = 10'000;  // of one node; a kubelet runs 110 unless told otherwise
inline constexpr std::chrono::seconds kIdentityCheck{30};
inline constexpr std::chrono::hours kRotationCheck{1};
inline constexpr std::chrono::seconds kSourceRetry{1};

struct ControlStats {
  uint64_t batches = 0, events = 0, changes = 0, resource_changes = 0, recomputed_units = 0,
           rejected_files = 0, held_removals = 0;
  Duration last_batch{};     // from the first event seen to everything handed to the streams
  Duration last_analysis{};
};

class ControlPlane {
 public:
  // Opens CA, source and generated files; reads nothing yet. Error: what is missing and where.
  static Result<std::unique_ptr<ControlPlane>> create(Settings settings);
  ~ControlPlane();

  // Starts the servers, then runs until `stop_fd` is readable. Error: a port in use, and the like.
  Status run(int stop_fd);
  // Ports of xDS as bound; for tests, once ready() or so.
  std::vector<uint16_t> xds_ports() const { return server_.ports(); }
  std::vector<SocketAddress> monitoring_addresses() const;
  bool ready() const { return ready_; }

  // For operators' pages; thread safe.
  ControlStats stats() const;
  std::string config_dump() const;
  std::string syncz() const;
  xds::ProcessStatus status() const;
  std::string problems_text() const;
  size_t objects(config::Kind kind) const;
  const xds::Server& server() const { return server_; }
  const rt::Admission& door() const { return door_; }
  const SigningRate& signing_rate() const { return signing_rate_; }
  const AccountIndex& accounts() const { return accounts_; }
  const telemetry::Readiness& readiness() const { return readiness_; }
  const pki::CertificateAuthority& ca() const { return *ca_; }

 private:
  struct Report {
    std::string node;
    std::vector<std::string> problems;
    ReportedPods pods;  // which of them count depends on the pods known and on what is decided
  };

  ControlPlane(Settings settings, std::unique_ptr<pki::TokenKeyFiles> token_keys,
               std::unique_ptr<pki::CertificateAuthority> ca,
               std::unique_ptr<DirectorySource> source, GeneratedFiles files,
               ServerIdentity identity);
  xds::ServerHooks hooks();
  Status knows_pods_of(const xds::Caller& caller) const;
  Status start_servers();
  Status start_monitoring();
  void loop(int stop_fd);
  Duration next_wake(MonoTime now) const;

  // The loop's steps. REQUIRE the lock.
  void read_source(MonoTime now);
  void note_trouble(std::string trouble);
  std::string source_trouble() const;  // any thread
  void take_reports();
  void count_enrolled(const std::string& node);
  void count_enrolled_again(const std::vector<config::ObjectChange>& pods);
  void end_decided_enrolments();
  void timers(MonoTime now);
  void apply(const FileEvent& event, std::vector<config::ObjectChange>* changes);
  void release_held(MonoTime now, std::vector<config::ObjectChange>* changes);
  void settle(std::vector<config::ObjectChange> changes);
  void generate(const std::set<std::string>& namespaces, std::vector<config::ObjectChange>* changes);
  void generate_for(const config::Object& gateway, std::set<std::string>* wanted,
                    std::vector<config::ObjectChange>* changes);
  void gateway_statuses(const std::set<std::string>& namespaces);
  void publish(const config::TranslationResult& result);
  void publish_statuses();
  void become_ready();
  void end_unwelcome();  // streams whose pod, account or right is gone
  void check_identity(MonoTime now);
  WaypointSettings waypoint_settings() const;

  const Settings settings_;
  const std::unique_ptr<pki::TokenKeyFiles> token_keys_;
  const pki::TokenPolicy token_policy_;
  SigningRate signing_rate_;
  std::unique_ptr<pki::CertificateAuthority> ca_;
  std::unique_ptr<DirectorySource> source_;

  mutable std::mutex mutex_;  // of everything below, as far as not said otherwise
  config::ObjectStore store_;
  config::ManifestTree tree_;
  config::Translator translator_;
  GeneratedFiles files_;
  StatusBoard board_;
  EnrolledPods enrolled_;
  std::map<std::string, std::vector<std::string>> node_problems_;  // as last reported
  ServerIdentity identity_;
  std::set<std::string> known_files_;        // of the source, layers 0 and 2
  std::map<std::string, MonoTime> held_;     // removals to be confirmed: path -> when
  std::map<std::string, std::string> unreadable_;
  std::set<std::string> troubled_;           // files with problems
  std::set<std::string> generated_;          // files of generated objects
  ControlStats stats_;
  bool loaded_ = false, problems_changed_ = true, analyze_due_ = true;
  MonoTime last_batch_{}, empty_since_{}, next_analysis_{}, next_save_{}, next_identity_{},
      next_rotation_{}, retry_source_{}, retry_files_{};

  PodIndex pods_;   // thread safe
  AccountIndex accounts_;  // thread safe
  Access access_;   // immutable, over the two
  mutable std::mutex trouble_mutex_;
  std::string source_trouble_;  // under trouble_mutex_
  std::mutex reports_mutex_;
  std::vector<Report> reports_;  // under reports_mutex_
  UniqueFd wake_;                // eventfd
  std::atomic<bool> ready_{false};
  rt::Admission door_;  // of all ports
  telemetry::Readiness readiness_;
  telemetry::Registry registry_;
  http::Router pages_;
  http::Server monitoring_{&door_};
  std::vector<SocketAddress> monitoring_addresses_;
  xds::Server server_;  // last: its threads use all of the above
};

}  // namespace meltemi::control
