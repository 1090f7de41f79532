// What is wrong with an object: which one, where in which file, which field, and how to mend it.
// One type for syntax, schema, validation and cross-object findings, so that CLI, control plane and
// statuses say the same words. Messages follow istiod's where istiod has one. Must never hold the
// values of Secrets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"

namespace meltemi::config {

enum class Severity : uint8_t {
  kError,    // the object is refused
  kWarning,  // the object is accepted, but does not do what its author hopes
  kInfo,
};
std::string_view severity_name(Severity severity);  // "error", "warning", "info"

struct Problem {
  Severity severity = Severity::kError;
  std::string code;    // IST0101 and the like where istioctl has one, else MLT....; never empty
  std::string object;  // "VirtualService shop/catalog", or "" when the bytes are no object at all
  std::string file;    // as given by the caller; "" if unknown
  int line = 0;        // 1-based; 0 if unknown
  std::string field;   // "spec.http[0].route", "" for the whole object
  std::string message;
  std::string fix;  // what to do, imperative; may be a command; "" only if the message says it

  // "error: VirtualService shop/catalog (web.yaml:12): spec.http[0]: HTTP route cannot contain both
  // route and redirect. Remove one of the two. [IST0106]"
  std::string to_string() const;
};

using Problems = std::vector<Problem>;

bool has_errors(const Problems& problems);
// All errors as one Error (kBadConfig, Fault::kConfig). REQUIRES: has_errors(problems).
Error to_error(const Problems& problems);

// Codes without an istioctl twin.
inline constexpr std::string_view kCodeSyntax = "MLT0001";        // not YAML
inline constexpr std::string_view kCodeUnknownKind = "MLT0002";   // no such kind
inline constexpr std::string_view kCodeUnsupported = "MLT0003";   // known, not implemented yet
inline constexpr std::string_view kCodeSchema = "IST0106";        // unknown field, wrong type
inline constexpr std::string_view kCodeInvalid = "IST0106";       // fails validation
inline constexpr std::string_view kCodeRefusedField = "MLT0004";  // pod_fields.h says refused
inline constexpr std::string_view kCodeIgnoredField = "MLT0005";  // accepted without effect
inline constexpr std::string_view kCodeReference = "IST0101";     // referenced thing is not there
inline constexpr std::string_view kCodeNoPods = "IST0127";        // selector matches nothing
inline constexpr std::string_view kCodeDuplicateIp = "MLT0101";   // two pods, one address
inline constexpr std::string_view kCodeNoWaypoint = "MLT0102";    // L7 rule that nobody enforces
inline constexpr std::string_view kCodeDuplicateObject = "MLT0103";
inline constexpr std::string_view kCodeUnreachableRule = "IST0130";
inline constexpr std::string_view kCodeIneffectivePolicy = "IST0167";
inline constexpr std::string_view kCodeUnknownRuleHost = "IST0174";
inline constexpr std::string_view kCodeEmptySubset = "IST0173";
inline constexpr std::string_view kCodeDeprecated = "IST0002";

// The candidate nearest to `word` (edit distance ≤ 2, or ≤ a third of its length), else "".
std::string_view did_you_mean(std::string_view word,
                              const std::vector<std::string_view>& candidates);

}  // namespace meltemi::config
