// What all validators share: where problems go and the checks that many fields have. Internal to
// validation.
#pragma once

#include <google/protobuf/duration.pb.h>

#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/object.h"
#include "userspace/config/validate.h"

namespace meltemi::config {

class Check {
 public:
  Check(const Object& object, Problems* problems) : object_(object), problems_(problems) {}

  const Object& object() const { return object_; }

  void error(std::string field, std::string message, std::string fix,
             std::string_view code = kCodeInvalid) {
    add(Severity::kError, code, std::move(field), std::move(message), std::move(fix));
  }
  void warn(std::string field, std::string message, std::string fix,
            std::string_view code = "IST0133") {
    add(Severity::kWarning, code, std::move(field), std::move(message), std::move(fix));
  }
  // A field of the API that nothing acts on yet and whose loss would change what the object means.
  void unsupported(std::string field, std::string_view what) {
    error(std::move(field), std::string(what) + " is not supported yet",
          "Remove the field; it would be ignored otherwise", kCodeUnsupported);
  }
  // The same for fields that only tune: the object is accepted without them.
  void untuned(std::string field, std::string_view what) {
    warn(std::move(field), std::string(what) + " has no effect yet", "Do not rely on it",
         kCodeUnsupported);
  }

  // "port number %d must be in the range 1..65535"
  bool port(const std::string& field, int64_t number);
  // At least 1 ms and whole milliseconds.
  void duration(const std::string& field, const google::protobuf::Duration& value);
  void labels(const std::string& field, const google::protobuf::Map<std::string, std::string>& map);
  void export_to(const google::protobuf::RepeatedPtrField<std::string>& entries);
  // Pod selector of a policy: no empty keys, no wildcards.
  void selector(const std::string& field,
                const google::protobuf::Map<std::string, std::string>& labels);

 private:
  void add(Severity severity, std::string_view code, std::string field, std::string message,
           std::string fix) {
    problems_->push_back(
        object_.problem(severity, code, std::move(field), std::move(message), std::move(fix)));
  }
  const Object& object_;
  Problems* problems_;
};

void validate_pod(Check& check);
void validate_deployment(Check& check);
void validate_replica_set(Check& check);
void validate_job(Check& check);
void validate_service(Check& check);
void validate_gateway(Check& check);
void validate_virtual_service(Check& check);
void validate_http_route(Check& check, const std::string& field,
                         const ::istio::networking::v1alpha3::HTTPRoute& route);
// `present` false: the message has no destination at all.
void validate_destination(Check& check, const std::string& field, bool present,
                          const ::istio::networking::v1alpha3::Destination& destination);
// Weights of the destinations of one route, in order.
void validate_weights(Check& check, const std::string& field, const std::vector<int32_t>& weights);
void validate_destination_rule(Check& check);
void validate_authorization_policy(Check& check);
void validate_peer_authentication(Check& check, const MeshNames& names);

}  // namespace meltemi::config
