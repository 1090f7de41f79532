// Strict proto3 JSON mapping from Value trees to messages, driven by descriptors: unknown fields,
// wrong types and refused fields become Problems with file, line, path and fix. Never throws, never
// logs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/object.h"

namespace meltemi::config {

class Decoder {
 public:
  // `about` names the object in problems; `problems` receives them.
  Decoder(const Object* about, Problems* problems, bool refuse_fields)
      : about_(about), problems_(problems), refuse_fields_(refuse_fields) {}

  // Fills `message` from a map. Keys in `skip` are left to the caller.
  void message(const Value& value, const std::string& path, google::protobuf::Message* message,
               std::initializer_list<std::string_view> skip = {});

  // Paths of fields that were given and have no effect, with the reason.
  struct Ignored {
    std::string path;
    std::string note;
  };
  const std::vector<Ignored>& ignored() const { return ignored_; }

 private:
  using Field = google::protobuf::FieldDescriptor;

  void field(const Value& value, const std::string& path, const Field* field,
             google::protobuf::Message* message);
  void repeated(const Value& value, const std::string& path, const Field* field,
                google::protobuf::Message* message);
  void map(const Value& value, const std::string& path, const Field* field,
           google::protobuf::Message* message);
  void scalar(const Value& value, const std::string& path, const Field* field,
              google::protobuf::Message* message, bool add);
  void submessage(const Value& value, const std::string& path, google::protobuf::Message* message);
  bool well_known(const Value& value, const std::string& path, google::protobuf::Message* message);
  void duration(const Value& value, const std::string& path, google::protobuf::Message* message);
  void int_or_string(const Value& value, const std::string& path,
                     google::protobuf::Message* message);
  template <typename T>
  bool integer(const Value& value, const std::string& path, T* out);
  bool real(const Value& value, const std::string& path, double* out);
  bool text(const Value& value, const std::string& path, std::string* out);
  bool enum_number(const Value& value, const std::string& path,
                   const google::protobuf::EnumDescriptor* type, int* out);
  bool check_effect(const Value& value, const std::string& path, const Field* field);
  void wrong_type(const Value& value, const std::string& path, std::string_view wanted,
                  std::string fix = {});
  void unknown_field(const std::string& path, const MapKey& key,
                     const google::protobuf::Descriptor* type);
  void error(int line, const std::string& path, std::string message, std::string fix,
             std::string_view code = kCodeSchema);

  const Object* about_;
  Problems* problems_;
  bool refuse_fields_;
  // Numbers may be written as strings in proto JSON, but not in Kubernetes' own kinds.
  bool quoted_numbers_ = false;
  std::vector<Ignored> ignored_;
};

}  // namespace meltemi::config
