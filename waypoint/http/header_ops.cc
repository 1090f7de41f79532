#include "waypoint/http/header_ops.h"

#include <fmt/format.h>

namespace meltemi::waypoint {
namespace {

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

bool frames_message(FieldId id) {
  switch (id) {
    case FieldId::kHost:
    case FieldId::kConnection:
    case FieldId::kContentLength:
    case FieldId::kTransferEncoding:
    case FieldId::kTe:
    case FieldId::kTrailer:
    case FieldId::kUpgrade:
    case FieldId::kKeepAlive:
    case FieldId::kProxyConnection:
    case FieldId::kHttp2Settings: return true;
    default: return false;
  }
}

Status check_name(std::string_view name) {
  if (!codec::valid_header_name(name)) {
    return bad(fmt::format("header \"{}\": not a valid header name", name));
  }
  if (frames_message(field_id(name))) {
    return bad(fmt::format("header \"{}\": the proxy sets it and configuration may not", name));
  }
  return {};
}

}  // namespace

Status check_header_change(std::string_view name, std::string_view value) {
  MELTEMI_TRY(check_name(name));
  if (!codec::valid_header_value(value)) {
    return bad(fmt::format("header \"{}\": not a valid header value", name));
  }
  return {};
}

Status check_header_removal(std::string_view name) { return check_name(name); }

Result<std::string> literal_value(std::string_view value) {
  std::string out;
  for (size_t i = 0; i < value.size(); ++i) {
    if (value[i] == '%') {
      if (i + 1 == value.size() || value[i + 1] != '%') {
        return fail(Reason::kUnsupported, Fault::kConfig,
                    fmt::format("header value \"{}\": format commands are not supported", value));
      }
      ++i;
    }
    out += value[i];
  }
  return out;
}

void HeaderOps::apply(Fields& fields) const {
  for (const std::string& name : remove) fields.remove(name);
  for (const HeaderOp& op : change) {
    switch (op.action) {
      case HeaderOp::Action::kAppend: fields.add(op.name, op.value); break;
      case HeaderOp::Action::kAddIfAbsent:
        if (!fields.has(op.name)) fields.add(op.name, op.value);
        break;
      case HeaderOp::Action::kOverwrite: fields.set(op.name, op.value); break;
      case HeaderOp::Action::kOverwriteIfExists:
        if (fields.has(op.name)) fields.set(op.name, op.value);
        break;
    }
  }
}

void HeaderOps::append(const HeaderOps& other) {
  remove.insert(remove.end(), other.remove.begin(), other.remove.end());
  change.insert(change.end(), other.change.begin(), other.change.end());
}

}  // namespace meltemi::waypoint
