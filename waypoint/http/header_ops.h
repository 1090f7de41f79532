// Header changes that configuration asks for, validated once. Values are literal text. Must never let
// a name or value through that could end its line or change the message's framing.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "waypoint/http/field.h"

namespace meltemi::waypoint {

struct HeaderOp {
  enum class Action : uint8_t { kAppend, kAddIfAbsent, kOverwrite, kOverwriteIfExists };
  Action action = Action::kAppend;
  std::string name, value;
};

struct HeaderOps {
  std::vector<std::string> remove;  // first
  std::vector<HeaderOp> change;

  bool empty() const { return remove.empty() && change.empty(); }
  void apply(Fields& fields) const;
  void append(const HeaderOps& other);
};

// Error: kBadConfig. Refused names: pseudo headers, Host, and what frames a message (Content-Length,
// Transfer-Encoding, Connection, ...).
Status check_header_change(std::string_view name, std::string_view value);
Status check_header_removal(std::string_view name);
// "%%" is a percent sign; other format commands of Envoy are refused.
Result<std::string> literal_value(std::string_view value);

}  // namespace meltemi::waypoint
