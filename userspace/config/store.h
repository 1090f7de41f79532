// All objects, by kind, namespace and name, with the indexes that translation and analysis need.
// One writer; not thread-safe. Never validates and never reads files: whoever upserts has done so.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/config/object.h"

namespace meltemi::config {

using ObjectPtr = std::shared_ptr<const Object>;

struct ObjectChange {
  ObjectKey key;
  ObjectPtr before;  // null: created
  ObjectPtr after;   // null: deleted
};

class ObjectStore {
 public:
  // Stores the object and assigns resourceVersion (a counter), uid and creationTimestamp if absent
  // is left to the caller, generation (kept if given, else +1 whenever anything but status, labels
  // and annotations changed). nullopt: equal to what is there.
  std::optional<ObjectChange> upsert(Object object);
  std::optional<ObjectChange> erase(const ObjectKey& key);

  ObjectPtr find(const ObjectKey& key) const;
  ObjectPtr find(Kind kind, std::string_view ns, std::string_view name) const;
  // Sorted by namespace and name; `ns` "" = all namespaces.
  std::vector<ObjectPtr> list(Kind kind, std::string_view ns = "") const;
  size_t size(Kind kind) const;
  // Pods of a namespace whose labels contain all of `selector`; empty selector: none.
  std::vector<ObjectPtr> pods_selected(std::string_view ns, const Labels& selector) const;
  // Objects of kind Service, AuthorizationPolicy or PeerAuthentication whose selector is not empty
  // and is contained in `labels`.
  std::vector<ObjectPtr> selecting(Kind kind, std::string_view ns, const Labels& labels) const;

 private:
  using Named = std::map<std::string, ObjectPtr, std::less<>>;
  void index(const ObjectPtr& object, bool add);

  std::map<std::string, Named, std::less<>> by_kind_[kKindCount];
  // "ns\0key=value" -> pods that carry it / objects whose first selector label it is.
  std::unordered_map<std::string, std::set<std::string>> pods_by_label_;
  std::unordered_map<std::string, std::set<std::string>> selectors_by_label_[kKindCount];
  uint64_t resource_version_ = 0;
};

// True if every pair of `selector` is in `labels`. An empty selector matches all.
bool labels_contain(const Labels& labels, const Labels& selector);
// The selector of a Service, AuthorizationPolicy or PeerAuthentication; empty map for other kinds.
const Labels& selector_of(const Object& object);

}  // namespace meltemi::config
