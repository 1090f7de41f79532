// What one stream wants of one type, what it has, and what it must be told next (the server's half of
// delta xDS). No I/O. Private to xds; not thread-safe: the stream's lock covers it.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "envoy/service/discovery/v3/discovery.pb.h"
#include "userspace/base/error.h"
#include "userspace/xds/resource_table.h"

namespace meltemi::xds {

struct NextResponse {
  std::vector<grpc::Slice> slices;  // of one DeltaDiscoveryResponse
  size_t resources = 0, removed = 0, bytes = 0;
};

class Subscription {
 public:
  using Request = envoy::service::discovery::v3::DeltaDiscoveryRequest;

  // REQUIRES: nobody else uses the table meanwhile (it notes the reader).
  Subscription(std::string type_url, std::string scope, std::shared_ptr<ResourceTable> table);

  // Subscribes by an alias that no client can know, without ever telling that it is no name.
  void follow(const std::string& alias);
  // The type's first request on the stream, or a later one. Error kLimitExceeded: too many names.
  Status apply(const Request& request, bool first, size_t max_names);

  // The next response, or nothing if the stream has been told all. REQUIRES: table may be read.
  // `keep_removals`: what is gone is left to next_removals().
  std::optional<NextResponse> next(size_t target_bytes, bool keep_removals = false);
  // The names that next() kept and that are still gone, or nothing. REQUIRES: table may be read.
  std::optional<NextResponse> next_removals();

  const std::string& type_url() const { return type_url_; }
  const std::string& scope() const { return scope_; }
  bool wildcard() const { return wildcard_; }
  size_t names() const { return names_.size(); }
  uint64_t sent() const { return sent_; }
  uint64_t acked() const { return acked_; }
  uint64_t nacked() const { return nacked_; }
  const std::string& last_nack() const { return last_nack_; }
  bool current() const;

 private:
  class Builder;
  void subscribe(const std::string& name, bool first);
  void answer_names(Builder& out);
  bool answer_name(const std::string& name, const ResourceTable::Row& row, Builder& out);
  void answer_members(const std::string& alias, bool told, Builder& out);
  bool wants(const std::string& name, const ResourceTable::Row& row) const;
  void walk(Builder& out, size_t target_bytes);
  void finish_initial(Builder& out);

  const std::string type_url_, scope_;
  const std::shared_ptr<ResourceTable> table_;
  const ResourceTable::Cursor position_;
  bool wildcard_ = false;
  std::set<std::string> names_;
  std::set<std::string> followed_;    // of these, those that no client has asked for
  std::set<std::string> unanswered_;  // just subscribed
  std::set<std::string> gone_;        // for next_removals()
  // What the client said it has, until the first pass through the table is done.
  std::unordered_map<std::string, std::string> initial_;
  bool initial_done_ = false;
  bool owes_first_ = false;  // a wildcard's first answer goes out even if it says nothing
  uint64_t sent_ = 0, acked_ = 0, nacked_ = 0;
  std::string last_nack_;
};

}  // namespace meltemi::xds
