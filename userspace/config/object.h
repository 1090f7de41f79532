// One object: envelope, metadata and typed body, as read from YAML, made by a controller, or
// printed. Value type with a shared immutable body: copying is cheap, changing means set_body().
// Decoding is strict: an unknown field is an error with file, line, path and the nearest known
// name.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "meltemi/kube/v1/kube.pb.h"
#include "userspace/config/kinds.h"
#include "userspace/config/problem.h"
#include "userspace/config/value.h"

namespace meltemi::config {

namespace kube = ::meltemi::kube::v1;
using Labels = google::protobuf::Map<std::string, std::string>;

struct ObjectKey {
  Kind kind = Kind::kNamespace;
  std::string ns;  // "" for cluster-scoped kinds
  std::string name;
  auto operator<=>(const ObjectKey&) const = default;
  std::string to_string() const;  // "VirtualService shop/catalog", "Namespace shop"
};

class Object {
 public:
  // An empty object of `kind` with the kind's own apiVersion. `ns` is ignored for cluster-scoped
  // kinds.
  static Object make(Kind kind, std::string_view ns, std::string_view name);

  Kind kind() const { return kind_; }
  const KindInfo& info() const { return kind_info(kind_); }
  ObjectKey key() const { return {kind_, meta_.namespace_(), meta_.name()}; }
  const std::string& ns() const { return meta_.namespace_(); }
  const std::string& name() const { return meta_.name(); }
  const std::string& api_version() const { return api_version_; }

  const kube::ObjectMeta& meta() const { return meta_; }
  kube::ObjectMeta& mutable_meta() { return meta_; }
  // "" if absent.
  std::string_view label(std::string_view key) const;
  std::string_view annotation(std::string_view key) const;

  // The body, e.g. `object.as<kube::Pod>().spec()`, `object.as<kube::VirtualService>().spec()`.
  // REQUIRES: T is the message of kinds.h for this kind (checked, aborts).
  template <typename T>
  const T& as() const {
    check_body(T::descriptor());
    return static_cast<const T&>(*body_);
  }
  const google::protobuf::Message& body() const { return *body_; }
  // Copies the body, lets `change` edit it, and makes it this object's.
  template <typename T, typename F>
  void edit(F&& change) {
    auto copy = std::make_shared<T>(as<T>());
    change(*copy);
    body_ = std::move(copy);
  }

  // Where it was read from; "" and 0 if it was not.
  const std::string& file() const { return file_; }
  int line() const { return line_; }
  // Line of a field path such as "spec.http[0].match", or of its nearest written ancestor.
  int line_of(std::string_view field) const;
  // Whether the manifest itself has the field, be it empty; false if it was not read from one.
  bool wrote(std::string_view field) const;
  void forget_lines() { lines_.reset(); }

  // A Problem about this object, file and line filled in.
  Problem problem(Severity severity, std::string_view code, std::string field, std::string message,
                  std::string fix) const;

  // The whole object, envelope first, as it would be printed.
  Value to_value() const;
  // Equal in everything but resourceVersion, generation, file and line.
  bool same_content(const Object& other) const;
  bool same_spec(const Object& other) const;

 private:
  friend class ObjectReader;
  void check_body(const google::protobuf::Descriptor* wanted) const;

  Kind kind_ = Kind::kNamespace;
  std::string api_version_;
  kube::ObjectMeta meta_;
  std::shared_ptr<const google::protobuf::Message> body_;
  std::string file_;
  int line_ = 0;
  std::shared_ptr<const std::map<std::string, int, std::less<>>> lines_;
};

struct ReadOptions {
  std::string default_namespace = "default";  // for namespaced objects without one
  bool refuse_pod_fields = true;              // fields that pod_fields.h calls refused are errors
  bool warn_ignored = true;  // fields accepted without effect give a warning (one per object)
  ParseLimits limits;
};

struct ReadResult {
  std::vector<Object> objects;  // those that decoded; kind: List is flattened
  Problems problems;            // errors of those that did not, and warnings
};
// YAML or JSON bytes to objects; schema only, see validate.h for meaning. `file` is for messages
// ("-" for standard input).
ReadResult read_objects(std::string_view bytes, std::string_view file,
                        const ReadOptions& options = {});

// Strict proto3 JSON mapping for one message, with our messages. Paths start with `path`.
void decode_message(const Value& value, std::string_view path, const Object& about,
                    google::protobuf::Message* message, Problems* problems);
Value encode_message(const google::protobuf::Message& message);

// Objects as YAML documents separated by "---", or one JSON (a v1 List if there are several).
std::string objects_to_yaml(const std::vector<Object>& objects);
std::string objects_to_json(const std::vector<Object>& objects);

}  // namespace meltemi::config
