// See server_core.h.
#include "userspace/xds/server_core.h"

#include "userspace/xds/delta_stream.h"

namespace meltemi::xds {

Result<Caller> ServerCore::authenticate(const grpc::CallbackServerContext& context) const {
  constexpr std::string_view kBearer = "Bearer ";
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end() || metadata.count("authorization") != 1) {
    return fail(Reason::kPermission, Fault::kDownstream, "no bearer token");
  }
  const std::string_view value(found->second.data(), found->second.size());
  if (!value.starts_with(kBearer)) {
    return fail(Reason::kPermission, Fault::kDownstream, "authorization is not a bearer token");
  }
  return hooks.authenticate(value.substr(kBearer.size()));
}

std::unique_ptr<Subscription> ServerCore::open_subscription(const std::string& type_url,
                                                            const std::string& scope) {
  const std::unique_lock lock(tables_mutex);
  auto& table = tables_[{type_url, scope}];
  if (table == nullptr) table = std::make_shared<ResourceTable>();
  return std::make_unique<Subscription>(type_url, scope, table);
}

void ServerCore::update(std::vector<ResourceUpdate> batch) {
  // Encoding is the costly part and needs no lock.
  std::vector<EncodedResource> encoded(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const ResourceUpdate& update = batch[i];
    if (update.removed) continue;
    encoded[i] = encode_resource(update.type_url, update.name, update.version, update.body);
  }
  bool changed = false;
  {
    const std::unique_lock lock(tables_mutex);
    std::set<ResourceTable*> touched;
    for (size_t i = 0; i < batch.size(); ++i) {
      auto& table = tables_[{batch[i].type_url, batch[i].scope}];
      if (table == nullptr) table = std::make_shared<ResourceTable>();
      touched.insert(table.get());
      changed |= batch[i].removed ? table->remove(batch[i].name)
                                  : table->set(batch[i].name, std::move(encoded[i]),
                                             std::move(batch[i].aliases));
    }
    for (ResourceTable* table : touched) table->trim();
  }
  if (changed) pump_all();
}

void ServerCore::pump_all() {
  for (const auto& stream : streams()) stream->pump();
}

void ServerCore::set_ready() {
  ready_ = true;
  pump_all();
}

bool ServerCore::add(const std::shared_ptr<DeltaStream>& stream) {
  const std::lock_guard lock(streams_mutex_);
  if (stopping_ || streams_.size() >= kMaxStreams) return false;
  streams_.insert(stream);
  return true;
}

void ServerCore::remove(const std::shared_ptr<DeltaStream>& stream) {
  const std::lock_guard lock(streams_mutex_);
  streams_.erase(stream);
}

std::vector<std::shared_ptr<DeltaStream>> ServerCore::streams() const {
  const std::lock_guard lock(streams_mutex_);
  return {streams_.begin(), streams_.end()};
}

void ServerCore::end_expired(WallTime now) {
  for (const auto& stream : streams()) {
    if (now < stream->expires()) continue;
    const grpc::Status why(grpc::StatusCode::UNAUTHENTICATED, "the token of this stream has expired");
    if (stream->end(why)) ++counters.ended_expired;
  }
}

void ServerCore::end_all(const grpc::Status& why) {
  {
    const std::lock_guard lock(streams_mutex_);
    stopping_ = true;
  }
  for (const auto& stream : streams()) stream->end(why);
}

}  // namespace meltemi::xds
