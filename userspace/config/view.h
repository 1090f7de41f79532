// How translation reads: every read of the store or of the kernel's truth is recorded as a
// dependency key, so that the engine knows which units a change touches. Internal to translation.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/validate.h"

namespace meltemi::config {

using EnrolledPods = std::unordered_set<std::string>;  // Kubernetes pod uids, all nodes

class View {
 public:
  View(const ObjectStore* store, const EnrolledPods* enrolled, const MeshNames* names)
      : store_(*store), enrolled_(*enrolled), names_(*names) {}

  const MeshNames& names() const { return names_; }

  ObjectPtr object(Kind kind, std::string_view ns, std::string_view name);
  std::vector<ObjectPtr> list(Kind kind, std::string_view ns);
  std::vector<ObjectPtr> pods_selected(std::string_view ns, const Labels& selector);
  std::vector<ObjectPtr> selecting(Kind kind, std::string_view ns, const Labels& labels);
  bool enrolled(const std::string& pod_uid);

  // What was read since construction.
  std::set<std::string> take_reads() { return std::move(reads_); }

 private:
  const ObjectStore& store_;
  const EnrolledPods& enrolled_;
  const MeshNames& names_;
  std::set<std::string> reads_;
};

// The keys that a change of an object touches: those that View records.
std::set<std::string> keys_of_change(const ObjectChange& change);
std::string key_of_enrolment(std::string_view pod_uid);

}  // namespace meltemi::config
