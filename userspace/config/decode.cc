#include "userspace/config/decode.h"

#include <fmt/format.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/wrappers.pb.h>

#include <charconv>

#include "meltemi/kube/v1/options.pb.h"
#include "userspace/base/config.h"

namespace meltemi::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string join(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

bool is_type(const Message& message, const Descriptor* type) {
  return message.GetDescriptor() == type;
}

// Any shape, kept as it was written.
void copy_any(const Value& value, google::protobuf::Value* out) {
  switch (value.kind) {
    case Value::Kind::kNull:
      out->set_null_value(google::protobuf::NULL_VALUE);
      return;
    case Value::Kind::kBool:
      out->set_bool_value(value.boolean);
      return;
    case Value::Kind::kString:
      out->set_string_value(value.text);
      return;
    case Value::Kind::kNumber: {
      double number = 0;
      std::from_chars(value.text.data(), value.text.data() + value.text.size(), number);
      out->set_number_value(number);
      return;
    }
    case Value::Kind::kList: {
      auto* list = out->mutable_list_value();
      for (const Value& item : value.items) copy_any(item, list->add_values());
      return;
    }
    case Value::Kind::kMap: {
      auto* fields = out->mutable_struct_value()->mutable_fields();
      for (size_t i = 0; i < value.items.size(); ++i) {
        copy_any(value.items[i], &(*fields)[value.keys[i].text]);
      }
      return;
    }
  }
}

std::optional<std::string> decode_base64(std::string_view in) {
  auto digit = [](char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    if (c == '+' || c == '-') return 62;
    if (c == '/' || c == '_') return 63;
    return -1;
  };
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  size_t padding = 0;
  for (char c : in) {
    if (c == '\n' || c == '\r') continue;
    if (c == '=') {
      ++padding;
      continue;
    }
    int d = digit(c);
    if (d < 0 || padding > 0) return {};
    bits = bits << 6 | static_cast<uint32_t>(d);
    if (++count % 4 != 0) continue;
    out += static_cast<char>(bits >> 16);
    out += static_cast<char>(bits >> 8);
    out += static_cast<char>(bits);
    bits = 0;
  }
  if (padding > 2 || count % 4 == 1) return {};
  if (count % 4 == 2) out += static_cast<char>(bits >> 4);
  if (count % 4 == 3) {
    out += static_cast<char>(bits >> 10);
    out += static_cast<char>(bits >> 2);
  }
  return out;
}

}  // namespace

void Decoder::error(int line, const std::string& path, std::string message, std::string fix,
                    std::string_view code) {
  Problem problem =
      about_->problem(Severity::kError, code, path, std::move(message), std::move(fix));
  if (line > 0) problem.line = line;
  problems_->push_back(std::move(problem));
}

void Decoder::wrong_type(const Value& value, const std::string& path, std::string_view wanted,
                         std::string fix) {
  std::string shown = std::string(value.kind_name());
  if (value.kind == Value::Kind::kBool || value.kind == Value::Kind::kNumber) {
    shown += fmt::format(" ({})", value.text);
  } else if (value.is_string() && value.text.size() <= 40) {
    shown += fmt::format(" (\"{}\")", value.text);
  }
  error(value.line, path, fmt::format("expected {}, found {}", wanted, shown), std::move(fix));
}

void Decoder::unknown_field(const std::string& path, const MapKey& key, const Descriptor* type) {
  std::vector<std::string_view> names;
  for (int i = 0; i < type->field_count(); ++i) names.push_back(type->field(i)->json_name());
  std::string_view near = did_you_mean(key.text, names);
  std::string fix;
  if (!near.empty()) {
    fix = fmt::format("Did you mean `{}`?", near);
  } else if (names.empty()) {
    fix = "No field is allowed here";
  } else {
    std::sort(names.begin(), names.end());
    if (names.size() > 16) names.resize(16);
    fix = fmt::format("Known fields: {}", fmt::join(names, ", "));
  }
  error(key.line, join(path, key.text), fmt::format("unknown field \"{}\"", key.text),
        std::move(fix));
}

void Decoder::message(const Value& value, const std::string& path, Message* message,
                      std::initializer_list<std::string_view> skip) {
  if (!value.is_map()) {
    wrong_type(value, path, "a map");
    return;
  }
  const Descriptor* type = message->GetDescriptor();
  bool outer = quoted_numbers_;
  quoted_numbers_ = type->file()->package().starts_with("istio.");
  for (size_t i = 0; i < value.keys.size(); ++i) {
    const MapKey& key = value.keys[i];
    if (std::find(skip.begin(), skip.end(), key.text) != skip.end()) continue;
    const FieldDescriptor* field = nullptr;
    for (int k = 0; k < type->field_count() && field == nullptr; ++k) {
      if (type->field(k)->json_name() == key.text) field = type->field(k);
    }
    if (field == nullptr) {
      unknown_field(path, key, type);
      continue;
    }
    const Value& item = value.items[i];
    if (item.is_null()) continue;  // as if it were not there
    std::string inner = join(path, key.text);
    if (!check_effect(item, inner, field)) continue;
    const auto* oneof = field->real_containing_oneof();
    if (oneof != nullptr && message->GetReflection()->HasOneof(*message, oneof)) {
      const auto* other = message->GetReflection()->GetOneofFieldDescriptor(*message, oneof);
      error(key.line, inner,
            fmt::format("`{}` and `{}` cannot both be set", other->json_name(), key.text),
            "Remove one of the two");
      continue;
    }
    this->field(item, inner, field, message);
  }
  quoted_numbers_ = outer;
}

bool Decoder::check_effect(const Value& value, const std::string& path, const Field* field) {
  const auto& options = field->options();
  kube::Effect effect = options.GetExtension(kube::effect);
  if (effect == kube::HONOURED) return true;
  bool empty = (value.is_list() || value.is_map()) && value.items.empty();
  if ((value.kind == Value::Kind::kBool && !value.boolean) || empty) return true;
  const std::string& note = options.GetExtension(kube::note);
  if (effect == kube::ACCEPTED) {
    ignored_.push_back({path, note});
    return true;
  }
  if (!refuse_fields_) return true;
  error(value.line, path, fmt::format("`{}` is not supported here", field->json_name()), note,
        kCodeRefusedField);
  return false;
}

void Decoder::field(const Value& value, const std::string& path, const Field* field,
                    Message* message) {
  if (field->is_map()) {
    map(value, path, field, message);
  } else if (field->is_repeated()) {
    repeated(value, path, field, message);
  } else if (field->cpp_type() == Field::CPPTYPE_MESSAGE) {
    submessage(value, path, message->GetReflection()->MutableMessage(message, field));
  } else {
    scalar(value, path, field, message, false);
  }
}

void Decoder::repeated(const Value& value, const std::string& path, const Field* field,
                       Message* message) {
  if (!value.is_list()) {
    wrong_type(value, path, "a list", "Put a `- ` in front of it");
    return;
  }
  for (size_t i = 0; i < value.items.size(); ++i) {
    const Value& item = value.items[i];
    std::string inner = fmt::format("{}[{}]", path, i);
    if (item.is_null()) {
      error(item.line, inner, "a list entry may not be null", "Remove the empty entry");
      continue;
    }
    if (field->cpp_type() == Field::CPPTYPE_MESSAGE) {
      submessage(item, inner, message->GetReflection()->AddMessage(message, field));
    } else {
      scalar(item, inner, field, message, true);
    }
  }
}

void Decoder::map(const Value& value, const std::string& path, const Field* field,
                  Message* message) {
  if (!value.is_map()) {
    wrong_type(value, path, "a map");
    return;
  }
  const FieldDescriptor* key_field = field->message_type()->map_key();
  const FieldDescriptor* value_field = field->message_type()->map_value();
  for (size_t i = 0; i < value.items.size(); ++i) {
    const MapKey& key = value.keys[i];
    const Value& item = value.items[i];
    std::string inner = fmt::format("{}[{}]", path, key.text);
    if (item.is_null() && value_field->cpp_type() != Field::CPPTYPE_MESSAGE) {
      error(item.line, inner, "expected a string, found null", "Write \"\" for an empty one");
      continue;
    }
    Message* entry = message->GetReflection()->AddMessage(message, field);
    Value key_value = Value::of_string(key.text);
    key_value.line = key.line;
    if (key_field->cpp_type() == Field::CPPTYPE_UINT32) {
      key_value.kind = Value::Kind::kNumber;
    }
    scalar(key_value, inner, key_field, entry, false);
    if (value_field->cpp_type() == Field::CPPTYPE_MESSAGE) {
      Message* sub = entry->GetReflection()->MutableMessage(entry, value_field);
      if (!item.is_null()) submessage(item, inner, sub);
    } else {
      scalar(item, inner, value_field, entry, false);
    }
  }
}

template <typename T>
bool Decoder::integer(const Value& value, const std::string& path, T* out) {
  bool shape = value.kind == Value::Kind::kNumber || (value.is_string() && quoted_numbers_);
  if (!shape) {
    std::string fix;
    if (value.is_string()) {
      const bool digits = !value.text.empty() &&
                          value.text.find_first_not_of("0123456789") == std::string::npos;
      fix = digits ? "Remove the quotes" : "Write a number";
    }
    wrong_type(value, path, "a whole number", fix);
    return false;
  }
  std::string_view digits = value.text;
  if (digits.size() > 2 && digits.ends_with(".0")) digits.remove_suffix(2);
  auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), *out);
  if (problem == std::errc() && end == digits.data() + digits.size()) return true;
  error(value.line, path,
        fmt::format("{} is not a whole number between {} and {}", value.text,
                    std::numeric_limits<T>::min(), std::numeric_limits<T>::max()),
        "Give a number in that range");
  return false;
}

bool Decoder::real(const Value& value, const std::string& path, double* out) {
  if (value.kind == Value::Kind::kNumber || (value.is_string() && quoted_numbers_)) {
    const char* end = value.text.data() + value.text.size();
    auto [stop, problem] = std::from_chars(value.text.data(), end, *out);
    if (problem == std::errc() && stop == end) return true;
  }
  wrong_type(value, path, "a number");
  return false;
}

bool Decoder::text(const Value& value, const std::string& path, std::string* out) {
  if (!value.is_string()) {
    std::string fix;
    if (value.kind == Value::Kind::kBool || value.kind == Value::Kind::kNumber) {
      fix = fmt::format("Quote it: \"{}\"", value.text);
    }
    wrong_type(value, path, "a string", fix);
    return false;
  }
  *out = value.text;
  return true;
}

bool Decoder::enum_number(const Value& value, const std::string& path,
                          const google::protobuf::EnumDescriptor* type, int* out) {
  if (value.is_string()) {
    if (const auto* found = type->FindValueByName(value.text)) {
      *out = found->number();
      return true;
    }
  }
  std::vector<std::string_view> names;
  for (int i = 0; i < type->value_count(); ++i) names.push_back(type->value(i)->name());
  std::string fix = fmt::format("One of: {}", fmt::join(names, ", "));
  if (value.is_string()) {
    if (auto near = did_you_mean(value.text, names); !near.empty()) {
      fix = fmt::format("Did you mean `{}`?", near);
    }
    error(value.line, path, fmt::format("unknown value \"{}\"", value.text), fix);
  } else {
    wrong_type(value, path, "a name", fix);
  }
  return false;
}

void Decoder::scalar(const Value& value, const std::string& path, const Field* field,
                     Message* message, bool add) {
  const auto* r = message->GetReflection();
  switch (field->cpp_type()) {
    case Field::CPPTYPE_STRING: {
      std::string s;
      if (!text(value, path, &s)) return;
      if (field->type() == Field::TYPE_BYTES) {
        auto bytes = decode_base64(s);
        if (!bytes) {
          error(value.line, path, "not base64", "Encode it with `base64 -w0`, or use stringData");
          return;
        }
        s = std::move(*bytes);
      }
      add ? r->AddString(message, field, s) : r->SetString(message, field, s);
      return;
    }
    case Field::CPPTYPE_BOOL:
      if (value.kind != Value::Kind::kBool) {
        wrong_type(value, path, "true or false");
        return;
      }
      add ? r->AddBool(message, field, value.boolean) : r->SetBool(message, field, value.boolean);
      return;
    case Field::CPPTYPE_INT32: {
      int32_t n = 0;
      if (!integer(value, path, &n)) return;
      add ? r->AddInt32(message, field, n) : r->SetInt32(message, field, n);
      return;
    }
    case Field::CPPTYPE_UINT32: {
      uint32_t n = 0;
      if (!integer(value, path, &n)) return;
      add ? r->AddUInt32(message, field, n) : r->SetUInt32(message, field, n);
      return;
    }
    case Field::CPPTYPE_INT64: {
      int64_t n = 0;
      if (!integer(value, path, &n)) return;
      add ? r->AddInt64(message, field, n) : r->SetInt64(message, field, n);
      return;
    }
    case Field::CPPTYPE_UINT64: {
      uint64_t n = 0;
      if (!integer(value, path, &n)) return;
      add ? r->AddUInt64(message, field, n) : r->SetUInt64(message, field, n);
      return;
    }
    case Field::CPPTYPE_DOUBLE: {
      double n = 0;
      if (!real(value, path, &n)) return;
      add ? r->AddDouble(message, field, n) : r->SetDouble(message, field, n);
      return;
    }
    case Field::CPPTYPE_ENUM: {
      int n = 0;
      if (!enum_number(value, path, field->enum_type(), &n)) return;
      add ? r->AddEnumValue(message, field, n) : r->SetEnumValue(message, field, n);
      return;
    }
    case Field::CPPTYPE_FLOAT:
    case Field::CPPTYPE_MESSAGE:
      break;  // no float fields; messages come through submessage()
  }
  error(value.line, path, "field type without a JSON mapping here", "");
}

void Decoder::submessage(const Value& value, const std::string& path, Message* message) {
  if (!well_known(value, path, message)) this->message(value, path, message);
}

void Decoder::duration(const Value& value, const std::string& path, Message* message) {
  auto parsed = value.is_string() ? parse_duration(value.text) : std::nullopt;
  if (!parsed) {
    std::string fix = "Write it like \"10s\", \"1.5s\", \"250ms\" or \"1m\"";
    wrong_type(value, path, "a duration", fix);
    return;
  }
  auto* out = static_cast<google::protobuf::Duration*>(message);
  out->set_seconds(parsed->count() / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(parsed->count() % 1'000'000'000));
}

void Decoder::int_or_string(const Value& value, const std::string& path, Message* message) {
  auto* out = static_cast<kube::IntOrString*>(message);
  if (value.is_string()) {
    out->set_text(value.text);
    return;
  }
  int32_t number = 0;
  if (value.kind != Value::Kind::kNumber) {
    wrong_type(value, path, "a number or a name");
  } else if (integer(value, path, &number)) {
    out->set_number(number);
  }
}

// Messages whose JSON form is not a map of their fields.
bool Decoder::well_known(const Value& value, const std::string& path, Message* message) {
  using namespace google::protobuf;
  if (is_type(*message, kube::IntOrString::descriptor())) {
    int_or_string(value, path, message);
    return true;
  }
  if (message->GetDescriptor()->file()->package() != "google.protobuf") return false;
  if (is_type(*message, google::protobuf::Duration::descriptor())) {
    duration(value, path, message);
  } else if (is_type(*message, google::protobuf::Value::descriptor())) {
    copy_any(value, static_cast<google::protobuf::Value*>(message));
  } else {
    // A wrapper: its one field.
    bool outer = quoted_numbers_;
    quoted_numbers_ = true;
    scalar(value, path, message->GetDescriptor()->FindFieldByNumber(1), message, false);
    quoted_numbers_ = outer;
  }
  return true;
}

void decode_message(const Value& value, std::string_view path, const Object& about,
                    Message* message, Problems* problems) {
  Decoder(&about, problems, true).message(value, std::string(path), message);
}

}  // namespace meltemi::config
