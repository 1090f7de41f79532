// What a command line names: objects by kind and name, and objects by label. Pure; kubectl's
// spellings and words. Must never take a spelling that it does not understand for one that matches
// something else.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/config/object.h"
#include "userspace/config/store.h"

namespace meltemi::cli {

struct Target {
  const config::KindInfo* kind = nullptr;
  std::vector<std::string> names;  // empty: all of the kind
};
// "pods", "pods,svc", "pod a b", "pod/a svc/b"; "all" is what kubectl means by it. Error names the
// word.
Result<std::vector<Target>> parse_targets(const std::vector<std::string>& words);
// The same where exactly one object is meant: "pod/x".
Result<Target> parse_target(const std::string& word);

// One part of a label selector. As in Kubernetes, kNotIn also matches objects without the label.
struct Requirement {
  enum class Operator : uint8_t { kIn, kNotIn, kExists, kNotExists };
  Operator op = Operator::kExists;
  std::string key;
  std::vector<std::string> values;  // of kIn and kNotIn
};
using Selector = std::vector<Requirement>;
// "a=b,c!=d,e,!f,g in (h,i),j notin (k)". Error names the part.
Result<Selector> parse_selector(std::string_view text);
bool selected(const config::Object& object, const Selector& selector);

// What a target means in `ns` ("" for all): the named objects, or all of the kind that the selector
// picks. A name that is not there becomes one of `missing`; the others are found all the same.
std::vector<config::ObjectPtr> find_objects(const config::ObjectStore& store, const Target& target,
                                            const std::string& ns, const Selector& selector,
                                            std::vector<Error>* missing);

}  // namespace meltemi::cli
