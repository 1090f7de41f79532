// What the streams and the unary services of one server share: hooks, tables, the list of streams and
// the counters. Lock order: streams, then one stream, then tables. Private to xds.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "userspace/xds/resource_table.h"
#include "userspace/xds/server.h"
#include "userspace/xds/subscription.h"

namespace meltemi::xds {

class DeltaStream;

struct ServerCounters {
  std::atomic<uint64_t> streams_opened{0}, refused{0}, responses{0}, response_bytes{0}, resources{0},
      nacks{0}, certificates{0}, certificates_refused{0}, reports{0};
};

class ServerCore {
 public:
  explicit ServerCore(ServerHooks hooks) : hooks(std::move(hooks)) {}

  // By the bearer token of the call. Error: kPermission.
  Result<Caller> authenticate(const grpc::CallbackServerContext& context) const;

  // A subscription joins its table under the tables' lock: the table keeps the list of who reads it.
  std::unique_ptr<Subscription> open_subscription(const std::string& type_url,
                                                  const std::string& scope);
  void update(std::vector<ResourceUpdate> batch);
  void set_ready();
  bool ready() const { return ready_; }

  // False: there are too many, or the server stops.
  bool add(const std::shared_ptr<DeltaStream>& stream);
  void remove(const std::shared_ptr<DeltaStream>& stream);
  std::vector<std::shared_ptr<DeltaStream>> streams() const;
  void end_all(const Error& why);
  // Ends the streams whose token is past its end.
  void end_expired(WallTime now);

  const ServerHooks hooks;
  ServerCounters counters;
  std::shared_mutex tables_mutex;

 private:
  void pump_all();
  std::map<std::pair<std::string, std::string>, std::shared_ptr<ResourceTable>> tables_;
  mutable std::mutex streams_mutex_;
  std::set<std::shared_ptr<DeltaStream>> streams_;
  bool stopping_ = false;
  std::atomic<bool> ready_{false};
};

}  // namespace meltemi::xds
