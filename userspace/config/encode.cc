// Messages back to Value trees, as they would be written in YAML: fields and map keys in
// alphabetical order like kubectl's, 64-bit numbers as numbers, durations in Go's form.
#include <fmt/format.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/struct.pb.h>

#include <algorithm>
#include <cmath>

#include "userspace/base/config.h"
#include "userspace/config/object.h"

namespace meltemi::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string encode_base64(std::string_view in) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < in.size(); i += 3) {
    uint32_t bits = 0;
    size_t count = std::min<size_t>(3, in.size() - i);
    for (size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (k < count ? static_cast<uint8_t>(in[i + k]) : 0);
    }
    for (size_t k = 0; k < 4; ++k) {
      out += k <= count ? kDigits[bits >> (18 - 6 * k) & 63] : '=';
    }
  }
  return out;
}

std::string number_text(double number) {
  if (std::nearbyint(number) == number && std::fabs(number) < 9e15) {
    return fmt::format("{}", static_cast<int64_t>(number));
  }
  return fmt::format("{}", number);
}

void sort_keys(Value* map) {
  std::vector<size_t> order(map->keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return map->keys[a].text < map->keys[b].text; });
  Value sorted = Value::map();
  for (size_t i : order) {
    sorted.keys.push_back(std::move(map->keys[i]));
    sorted.items.push_back(std::move(map->items[i]));
  }
  *map = std::move(sorted);
}

Value encode_any(const google::protobuf::Value& value) {
  using Any = google::protobuf::Value;
  switch (value.kind_case()) {
    case Any::kBoolValue:
      return Value::of_bool(value.bool_value());
    case Any::kNumberValue:
      return Value::of_number(number_text(value.number_value()));
    case Any::kStringValue:
      return Value::of_string(value.string_value());
    case Any::kListValue: {
      Value list = Value::list();
      for (const auto& item : value.list_value().values()) list.items.push_back(encode_any(item));
      return list;
    }
    case Any::kStructValue: {
      Value map = Value::map();
      for (const auto& [key, item] : value.struct_value().fields()) map.set(key, encode_any(item));
      sort_keys(&map);
      return map;
    }
    case Any::kNullValue:
    case Any::KIND_NOT_SET:
      break;
  }
  return Value::null();
}

Value encode_single(const Message& message, const FieldDescriptor* field, int index);

Value encode_known(const Message& message) {
  const auto* type = message.GetDescriptor();
  if (type == kube::IntOrString::descriptor()) {
    const auto& either = static_cast<const kube::IntOrString&>(message);
    if (either.value_case() == kube::IntOrString::kText) return Value::of_string(either.text());
    return Value::of_number(std::to_string(either.number()));
  }
  if (type == google::protobuf::Duration::descriptor()) {
    const auto& d = static_cast<const google::protobuf::Duration&>(message);
    return Value::of_string(format_duration(Duration(d.seconds() * 1'000'000'000 + d.nanos())));
  }
  if (type == google::protobuf::Value::descriptor()) {
    return encode_any(static_cast<const google::protobuf::Value&>(message));
  }
  if (type->file()->package() == "google.protobuf") {  // a wrapper
    return encode_single(message, type->FindFieldByNumber(1), -1);
  }
  return encode_message(message);
}

// One element (`index` ≥ 0) or the whole of a singular field.
Value encode_single(const Message& m, const FieldDescriptor* field, int index) {
  const auto* r = m.GetReflection();
  bool many = index >= 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string s = many ? r->GetRepeatedString(m, field, index) : r->GetString(m, field);
      return Value::of_string(field->type() == FieldDescriptor::TYPE_BYTES ? encode_base64(s) : s);
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      return Value::of_bool(many ? r->GetRepeatedBool(m, field, index) : r->GetBool(m, field));
    case FieldDescriptor::CPPTYPE_INT32:
      return Value::of_number(
          std::to_string(many ? r->GetRepeatedInt32(m, field, index) : r->GetInt32(m, field)));
    case FieldDescriptor::CPPTYPE_UINT32:
      return Value::of_number(
          std::to_string(many ? r->GetRepeatedUInt32(m, field, index) : r->GetUInt32(m, field)));
    case FieldDescriptor::CPPTYPE_INT64:
      return Value::of_number(
          std::to_string(many ? r->GetRepeatedInt64(m, field, index) : r->GetInt64(m, field)));
    case FieldDescriptor::CPPTYPE_UINT64:
      return Value::of_number(
          std::to_string(many ? r->GetRepeatedUInt64(m, field, index) : r->GetUInt64(m, field)));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Value::of_number(
          number_text(many ? r->GetRepeatedDouble(m, field, index) : r->GetDouble(m, field)));
    case FieldDescriptor::CPPTYPE_ENUM:
      return Value::of_string(
          (many ? r->GetRepeatedEnum(m, field, index) : r->GetEnum(m, field))->name());
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return encode_known(many ? r->GetRepeatedMessage(m, field, index) : r->GetMessage(m, field));
    case FieldDescriptor::CPPTYPE_FLOAT:
      break;
  }
  return Value::null();
}

Value encode_map(const Message& message, const FieldDescriptor* field) {
  const auto* r = message.GetReflection();
  Value map = Value::map();
  for (int i = 0; i < r->FieldSize(message, field); ++i) {
    const Message& entry = r->GetRepeatedMessage(message, field, i);
    Value key = encode_single(entry, field->message_type()->map_key(), -1);
    map.keys.push_back({key.text, 0});
    map.items.push_back(encode_single(entry, field->message_type()->map_value(), -1));
  }
  sort_keys(&map);
  return map;
}

}  // namespace

Value encode_message(const Message& message) {
  Value out = Value::map();
  const auto* r = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  r->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    Value value;
    if (field->is_map()) {
      value = encode_map(message, field);
    } else if (field->is_repeated()) {
      value = Value::list();
      for (int i = 0; i < r->FieldSize(message, field); ++i) {
        value.items.push_back(encode_single(message, field, i));
      }
    } else {
      value = encode_single(message, field, -1);
    }
    out.keys.push_back({field->json_name(), 0});
    out.items.push_back(std::move(value));
  }
  sort_keys(&out);
  return out;
}

}  // namespace meltemi::config
