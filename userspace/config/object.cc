#include "userspace/config/object.h"

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstdlib>

namespace meltemi::config {

using google::protobuf::util::MessageDifferencer;

std::string ObjectKey::to_string() const {
  std::string_view kind_name = kind_info(kind).name;
  if (ns.empty()) return fmt::format("{} {}", kind_name, name);
  return fmt::format("{} {}/{}", kind_name, ns, name);
}

Object Object::make(Kind kind, std::string_view ns, std::string_view name) {
  Object object;
  const KindInfo& info = kind_info(kind);
  object.kind_ = kind;
  object.api_version_ = info.api_version();
  object.meta_.set_name(std::string(name));
  if (info.namespaced) object.meta_.set_namespace_(std::string(ns));
  object.body_.reset(info.body->New());
  return object;
}

std::string_view Object::label(std::string_view key) const {
  auto found = meta_.labels().find(std::string(key));
  return found == meta_.labels().end() ? std::string_view() : std::string_view(found->second);
}

std::string_view Object::annotation(std::string_view key) const {
  auto found = meta_.annotations().find(std::string(key));
  return found == meta_.annotations().end() ? std::string_view() : std::string_view(found->second);
}

void Object::check_body(const google::protobuf::Descriptor* wanted) const {
  // A wrong type here is a defect of the caller, never of the input: going on would read garbage.
  if (body_ == nullptr || body_->GetDescriptor() != wanted) std::abort();
}

bool Object::wrote(std::string_view field) const {
  return lines_ && lines_->contains(field);
}

int Object::line_of(std::string_view field) const {
  if (!lines_) return line_;
  while (!field.empty()) {
    auto found = lines_->find(field);
    if (found != lines_->end()) return found->second;
    size_t cut = field.find_last_of(".[");
    field = cut == std::string_view::npos ? std::string_view() : field.substr(0, cut);
  }
  return line_;
}

Problem Object::problem(Severity severity, std::string_view code, std::string field,
                        std::string message, std::string fix) const {
  Problem problem;
  problem.severity = severity;
  problem.code = code;
  problem.object = key().to_string();
  problem.file = file_;
  problem.line = line_of(field);
  problem.field = std::move(field);
  problem.message = std::move(message);
  problem.fix = std::move(fix);
  return problem;
}

Value Object::to_value() const {
  Value out = Value::map();
  out.set("apiVersion", Value::of_string(api_version_));
  Value body = encode_message(*body_);
  // kubectl prints alphabetically, so a ConfigMap's data stands between apiVersion and kind.
  bool kind_done = false;
  auto envelope = [&] {
    if (kind_done) return;
    kind_done = true;
    out.set("kind", Value::of_string(info().name));
    out.set("metadata", encode_message(meta_));
  };
  for (size_t i = 0; i < body.keys.size(); ++i) {
    if (body.keys[i].text > "kind") envelope();
    out.keys.push_back(std::move(body.keys[i]));
    out.items.push_back(std::move(body.items[i]));
  }
  envelope();
  return out;
}

bool Object::same_content(const Object& other) const {
  if (kind_ != other.kind_ || api_version_ != other.api_version_) return false;
  kube::ObjectMeta a = meta_;
  kube::ObjectMeta b = other.meta_;
  for (kube::ObjectMeta* meta : {&a, &b}) {
    meta->clear_resource_version();
    meta->clear_generation();
  }
  return MessageDifferencer::Equals(a, b) && MessageDifferencer::Equals(*body_, *other.body_);
}

bool Object::same_spec(const Object& other) const {
  if (kind_ != other.kind_) return false;
  // Everything of the body but status, which is not the author's.
  auto without_status = [](const google::protobuf::Message& body) {
    std::unique_ptr<google::protobuf::Message> copy(body.New());
    copy->CopyFrom(body);
    if (const auto* status = copy->GetDescriptor()->FindFieldByName("status")) {
      copy->GetReflection()->ClearField(copy.get(), status);
    }
    return copy;
  };
  return MessageDifferencer::Equals(*without_status(*body_), *without_status(*other.body_));
}

std::string objects_to_yaml(const std::vector<Object>& objects) {
  std::string out;
  for (const Object& object : objects) {
    if (!out.empty()) out += "---\n";
    out += to_yaml(object.to_value());
  }
  return out;
}

std::string objects_to_json(const std::vector<Object>& objects) {
  if (objects.size() == 1) return to_json(objects[0].to_value());
  Value list = Value::map();
  list.set("apiVersion", Value::of_string("v1"));
  Value items = Value::list();
  for (const Object& object : objects) items.items.push_back(object.to_value());
  list.set("items", std::move(items));
  list.set("kind", Value::of_string("List"));
  return to_json(list);
}

}  // namespace meltemi::config
