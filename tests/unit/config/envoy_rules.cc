#include "tests/unit/config/envoy_rules.h"

#include <fmt/format.h>
#include <google/protobuf/any.pb.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/duration.pb.h>
#include <re2/re2.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>

// Linked in, so that their descriptors are found when an Any names them.
#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/http/router/v3/router.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/filters/network/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.pb.h"
#include "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"

namespace meltemi::config {
namespace {

namespace gp = google::protobuf;
using Field = gp::FieldDescriptor;

struct Rule {
  std::string field;  // or "oneof NAME"
  std::string what;   // "uint32.gte"
  std::string value;
};
using Rules = std::multimap<std::string, Rule, std::less<>>;

[[noreturn]] void give_up(const std::string& why) {
  fmt::print(stderr, "envoy_rules: {}\n", why);
  std::abort();
}

Rules load() {
  const char* root = std::getenv("MELTEMI_SOURCE_DIR");
  std::ifstream file(std::string(root ? root : ".") + "/tests/data/envoy_rules.tsv");
  if (!file) give_up("tests/data/envoy_rules.tsv cannot be read; set MELTEMI_SOURCE_DIR");
  Rules out;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream in(line);
    std::string message;
    Rule rule;
    std::getline(in, message, '\t');
    std::getline(in, rule.field, '\t');
    std::getline(in, rule.what, '=');
    std::getline(in, rule.value);
    out.emplace(message, std::move(rule));
  }
  return out;
}

const Rules& rules() {
  static const Rules loaded = load();
  return loaded;
}

class Checker {
 public:
  std::vector<std::string> take() { return std::move(out_); }

  void message(const gp::Message& message) {
    const gp::Descriptor& type = *message.GetDescriptor();
    if (type.full_name() == gp::Any::descriptor()->full_name()) {
      return any(static_cast<const gp::Any&>(message));
    }
    extension_point(message);
    auto [from, to] = rules().equal_range(type.full_name());
    for (; from != to; ++from) rule(message, from->second);
    std::vector<const Field*> fields;
    const gp::Reflection& r = *message.GetReflection();
    r.ListFields(message, &fields);
    for (const Field* field : fields) {
      if (field->cpp_type() != Field::CPPTYPE_MESSAGE) continue;
      if (!field->is_repeated()) {
        this->message(r.GetMessage(message, field));
        continue;
      }
      for (int i = 0; i < r.FieldSize(message, field); ++i) {
        this->message(r.GetRepeatedMessage(message, field, i));
      }
    }
  }

 private:
  void bad(const gp::Message& message, const Rule& rule) {
    out_.push_back(fmt::format("{}.{}: {}={}", message.GetDescriptor()->full_name(), rule.field,
                               rule.what, rule.value));
  }

  void any(const gp::Any& any) {
    const std::string& url = any.type_url();
    const std::string name = url.substr(url.rfind('/') + 1);
    const gp::Descriptor* type = gp::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
    if (type == nullptr) {
      out_.push_back(fmt::format("Any: unknown type \"{}\"", url));
      return;
    }
    std::unique_ptr<gp::Message> inner(
        gp::MessageFactory::generated_factory()->GetPrototype(type)->New());
    if (!inner->ParseFromString(any.value())) {
      out_.push_back(fmt::format("Any: malformed {}", name));
      return;
    }
    message(*inner);
  }

  // Envoy finds an extension by the type of its configuration: without one there is none.
  void extension_point(const gp::Message& message) {
    const gp::OneofDescriptor* config = message.GetDescriptor()->FindOneofByName("config_type");
    if (config == nullptr || message.GetReflection()->HasOneof(message, config)) return;
    out_.push_back(fmt::format("{}: typed_config is not set", message.GetDescriptor()->full_name()));
  }

  void rule(const gp::Message& message, const Rule& rule) {
    const gp::Descriptor& type = *message.GetDescriptor();
    const gp::Reflection& r = *message.GetReflection();
    if (rule.field.starts_with("oneof ")) {
      const auto* oneof = type.FindOneofByName(rule.field.substr(6));
      if (oneof == nullptr || !r.HasOneof(message, oneof)) bad(message, rule);
      return;
    }
    const Field* field = type.FindFieldByName(rule.field);
    if (field == nullptr) {  // we cannot set it: only a demand for it matters
      if (rule.what.ends_with(".required") || rule.what == "repeated.min_items") bad(message, rule);
      return;
    }
    // A member of a oneof is asked for only where it is the one that was chosen.
    if (field->real_containing_oneof() != nullptr && !r.HasField(message, field)) return;
    if (!holds(message, *field, rule)) bad(message, rule);
  }

  static bool holds(const gp::Message& message, const Field& field, const Rule& rule) {
    const gp::Reflection& r = *message.GetReflection();
    const std::string& what = rule.what;
    if (what.ends_with(".strict")) return true;  // with well_known_regex
    if (what == "repeated.min_items") return r.FieldSize(message, &field) >= number(rule);
    if (what == "repeated.max_items") return r.FieldSize(message, &field) <= number(rule);
    if (what == "map.keys.string.min_len") {
      for (int i = 0; i < r.FieldSize(message, &field); ++i) {
        const gp::Message& entry = r.GetRepeatedMessage(message, &field, i);
        if (entry.GetReflection()
                ->GetString(entry, field.message_type()->map_key())
                .empty()) {
          return false;
        }
      }
      return true;
    }
    constexpr std::string_view kItems = "repeated.items.";
    if (what.starts_with(kItems)) {
      Rule item = rule;
      item.what = what.substr(kItems.size());
      for (int i = 0; i < r.FieldSize(message, &field); ++i) {
        if (field.cpp_type() != Field::CPPTYPE_STRING) give_up("items of " + field.full_name());
        if (!text_holds(r.GetRepeatedString(message, &field, i), item)) return false;
      }
      return true;
    }
    if (what.ends_with(".required")) return r.HasField(message, &field);
    // A rule for a value holds for what is not there, if its absence can be told.
    if (field.has_presence() && !r.HasField(message, &field)) return true;
    if (what == "enum.defined_only") {
      return field.enum_type()->FindValueByNumber(r.GetEnumValue(message, &field)) != nullptr;
    }
    if (what == "bool.const") return r.GetBool(message, &field) == (rule.value == "true");
    if (what.starts_with("string.") || what.starts_with("bytes.")) {
      return text_holds(r.GetString(message, &field), rule);
    }
    return number_holds(value_of(message, field), rule);
  }

  static double number(const Rule& rule) { return std::stod(rule.value); }

  // Of a number, a wrapper, or a Duration (in nanoseconds).
  static double value_of(const gp::Message& message, const Field& field) {
    const gp::Reflection& r = *message.GetReflection();
    switch (field.cpp_type()) {
      case Field::CPPTYPE_UINT32:
        return r.GetUInt32(message, &field);
      case Field::CPPTYPE_DOUBLE:
        return r.GetDouble(message, &field);
      case Field::CPPTYPE_MESSAGE: {
        const gp::Message& inner = r.GetMessage(message, &field);
        if (inner.GetDescriptor() == gp::Duration::descriptor()) {
          const auto& d = static_cast<const gp::Duration&>(inner);
          return static_cast<double>(d.seconds()) * 1e9 + d.nanos();
        }
        const Field* value = inner.GetDescriptor()->FindFieldByName("value");
        if (value != nullptr) return value_of(inner, *value);
        [[fallthrough]];
      }
      default:
        give_up("no number: " + field.full_name());
    }
  }

  static bool number_holds(double value, const Rule& rule) {
    const std::string_view op = std::string_view(rule.what).substr(rule.what.find('.') + 1);
    if (op == "gt") return value > number(rule);
    if (op == "gte") return value >= number(rule);
    if (op == "lt") return value < number(rule);
    if (op == "lte") return value <= number(rule);
    give_up("unknown rule " + rule.what);
  }

  static bool text_holds(const std::string& text, const Rule& rule) {
    const std::string_view op = std::string_view(rule.what).substr(rule.what.find('.') + 1);
    if (op == "min_len") return static_cast<double>(text.size()) >= number(rule);
    if (op == "max_len" || op == "max_bytes") return static_cast<double>(text.size()) <= number(rule);
    if (op == "pattern") return RE2::PartialMatch(text, rule.value);
    if (op == "in") return true;  // several lines, one each: only for what is never emitted
    // "not strict": anything but NUL, CR and LF.
    if (op == "well_known_regex") return text.find_first_of(std::string("\0\r\n", 3)) == text.npos;
    if (op == "strict") return true;
    give_up("unknown rule " + rule.what);
  }

  std::vector<std::string> out_;
};

}  // namespace

std::vector<std::string> envoy_violations(const gp::Message& message) {
  Checker checker;
  checker.message(message);
  return checker.take();
}

}  // namespace meltemi::config
