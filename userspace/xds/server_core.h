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

#include "userspace/xds/acceptor.h"
#include "userspace/xds/resource_table.h"
#include "userspace/xds/server.h"
#include "userspace/xds/subscription.h"

namespace meltemi::xds {

class DeltaStream;

struct ServerCounters {
  std::atomic<uint64_t> streams_opened{0}, refused{0}, responses{0}, response_bytes{0}, resources{0},
      nacks{0}, certificates{0}, certificates_refused{0}, reports{0}, ended_expired{0},
      ended_unwelcome{0};
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
  void end_all(const grpc::Status& why);
  // Ends the streams whose token is past its end.
  void end_expired(WallTime now);

  const ServerHooks hooks;
  std::unique_ptr<Acceptor> acceptor;  // set before the first call, and lives as long as this
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

// A call of an authenticated caller, from its headers to its end: its connection is at work meanwhile.
class OpenCall {
 public:
  OpenCall(std::shared_ptr<ServerCore> core, std::string peer)
      : core_(std::move(core)), peer_(std::move(peer)) {
    core_->acceptor->call_began(peer_);
  }
  ~OpenCall() { core_->acceptor->call_ended(peer_); }
  OpenCall(const OpenCall&) = delete;
  OpenCall& operator=(const OpenCall&) = delete;
  // A message of so many bytes was read.
  void took(size_t bytes) const { core_->acceptor->took(peer_, bytes); }
  ServerCore& core() const { return *core_; }
  const std::string& peer() const { return peer_; }

 private:
  const std::shared_ptr<ServerCore> core_;
  const std::string peer_;
};

}  // namespace meltemi::xds
