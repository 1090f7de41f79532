#include "waypoint/xds/strict.h"

#include <fmt/format.h>
#include <google/protobuf/any.pb.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>
#include <vector>

namespace meltemi::waypoint {
namespace {

namespace gp = google::protobuf;

struct KnownName {
  std::string_view message;
  int number;
  std::string_view field;
};
constexpr KnownName kNames[] = {
#define X(message, number, field) {message, number, field},
#include "waypoint/xds/field_names.inc"
#undef X
};

std::string field_text(std::string_view message, int number) {
  for (const KnownName& n : kNames) {
    if (n.message == message && n.number == number) return fmt::format("{}.{}", message, n.field);
  }
  return fmt::format("field {} of {}", number, message);
}

std::unexpected<Error> refuse(const std::string& place, const std::string& what) {
  return fail(Reason::kUnsupported, Fault::kConfig,
              place.empty() ? what : fmt::format("{}: {}", place, what));
}

// A struct is data for people, and an Any is looked at by who unpacks it.
bool opaque(const gp::Descriptor& type) {
  return type.full_name() == "google.protobuf.Struct" || type.full_name() == "google.protobuf.Any";
}

Status check(const gp::Message& message, const std::string& place);

Status check_field(const gp::Message& message, const gp::FieldDescriptor& field,
                   const std::string& place) {
  const gp::Reflection& r = *message.GetReflection();
  const std::string name = place.empty() ? field.name() : place + "." + field.name();
  const int count = field.is_repeated() ? r.FieldSize(message, &field) : 1;
  for (int i = 0; i < count; ++i) {
    const std::string item = field.is_repeated() ? fmt::format("{}[{}]", name, i) : name;
    if (field.cpp_type() == gp::FieldDescriptor::CPPTYPE_MESSAGE) {
      MELTEMI_TRY(check(field.is_repeated() ? r.GetRepeatedMessage(message, &field, i)
                                            : r.GetMessage(message, &field),
                        item));
    } else if (field.cpp_type() == gp::FieldDescriptor::CPPTYPE_ENUM) {
      const int value = field.is_repeated() ? r.GetRepeatedEnumValue(message, &field, i)
                                            : r.GetEnumValue(message, &field);
      if (!field.enum_type()->FindValueByNumber(value)) {
        return refuse(item, fmt::format("value {} of {} is not supported", value,
                                        field.enum_type()->full_name()));
      }
    }
  }
  return {};
}

Status check(const gp::Message& message, const std::string& place) {
  const gp::Descriptor& type = *message.GetDescriptor();
  if (opaque(type)) return {};
  const gp::Reflection& r = *message.GetReflection();
  const gp::UnknownFieldSet& unknown = r.GetUnknownFields(message);
  if (unknown.field_count() > 0) {
    return refuse(place, field_text(type.full_name(), unknown.field(0).number()) +
                             " is not supported");
  }
  std::vector<const gp::FieldDescriptor*> fields;
  r.ListFields(message, &fields);
  for (const gp::FieldDescriptor* field : fields) MELTEMI_TRY(check_field(message, *field, place));
  return {};
}

}  // namespace

Status check_supported(const gp::Message& message) { return check(message, ""); }

Status unpack(const gp::Any& any, gp::Message& out) {
  const std::string& wanted = out.GetDescriptor()->full_name();
  const size_t slash = any.type_url().rfind('/');
  const std::string_view have =
      std::string_view(any.type_url()).substr(slash == std::string::npos ? 0 : slash + 1);
  if (have != wanted) {
    return refuse("", fmt::format("type \"{}\" is not supported here, only {}", have, wanted));
  }
  if (!out.ParseFromString(any.value())) {
    return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("{}: malformed bytes", wanted));
  }
  return check_supported(out);
}

}  // namespace meltemi::waypoint
