// The statuses of mesh objects, as manifests that the CLI shows: what the translator says (conditions),
// what is wrong with the file that an object stands in, and what only shows when objects are looked at
// together (analysis). Never decides anything itself.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/translate.h"
#include "userspace/control/generated_files.h"

namespace meltemi::control {

class StatusBoard {
 public:
  // `files` must outlive the board.
  StatusBoard(const config::ObjectStore* store, GeneratedFiles* files, std::string root_namespace)
      : store_(*store), files_(*files), root_namespace_(std::move(root_namespace)) {}

  void note(const std::vector<config::ObjectChange>& changes);
  void note(const std::vector<config::StatusChange>& changes);
  // The whole truth each time: problems of files, and findings of the analysis.
  void set_file_problems(config::Problems problems);
  void set_findings(config::Problems findings);
  // A Gateway's status, made by its controller.
  void set_gateway(const config::ObjectKey& key, config::kube::Gateway::Status status);
  const config::kube::Gateway::Status* gateway(const config::ObjectKey& key) const;

  // Writes what changed. `now` in RFC 3339. `provider` tells which file an object stands in.
  void publish(std::string_view now,
               const std::function<std::string(const config::ObjectKey&)>& provider);
  const config::Problems& file_problems() const { return file_problems_; }
  const config::Problems& findings() const { return findings_; }

 private:
  using Conditions = google::protobuf::RepeatedPtrField<config::kube::Condition>;
  void touch_of(const config::Problems& problems);
  void publish_one(const config::ObjectKey& key, std::string_view now, const std::string& file);
  void publish_summary();
  void fill_istio(const config::Object& object, std::string_view now, const std::string& file,
                  config::kube::IstioStatus* status);
  const config::Problem* error_of(const config::Object& object, const std::string& file) const;

  const config::ObjectStore& store_;
  GeneratedFiles& files_;
  const std::string root_namespace_;
  std::map<config::ObjectKey, std::vector<config::Condition>> translated_;
  std::map<config::ObjectKey, config::kube::Gateway::Status> gateways_;
  std::map<config::ObjectKey, Conditions> shown_;  // for the times of transition
  config::Problems file_problems_, findings_;
  std::multimap<std::string, const config::Problem*, std::less<>> findings_by_object_;
  std::set<config::ObjectKey> touched_;
  bool summary_touched_ = true;
};

}  // namespace meltemi::control
