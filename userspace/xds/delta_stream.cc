// See delta_stream.h. Never more than one response is under way: while the client does not read, changes
// only move the tables on, and the next response tells the newest state of all of them.
#include "userspace/xds/delta_stream.h"

#include <fmt/format.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/xds/address_names.h"
#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

log::Scope scope("ads");

constexpr size_t kMaxNodeId = 1024;  // bytes
constexpr size_t kMaxTypeUrl = 256;  // bytes
constexpr size_t kMaxRefusedTypes = 16;  // of one stream; a stock Envoy asks for fewer

// Make before break: what others refer to by name comes before them and goes after them, or a client
// would see a workload whose policy it has never heard of, or a route to a cluster that is gone. Types
// are told in this order; those that are referred to lose their resources last, in reverse.
struct TypeOrder {
  std::string_view type_url;
  bool referred_to;
};
constexpr TypeOrder kOrder[] = {{kTypeAuthorization, true}, {kTypeAddress, false},
                                {kTypeCluster, true},       {kTypeEndpoints, true},
                                {kTypeListener, false},     {kTypeRoute, false}};

size_t rank_of(std::string_view type_url) {
  return static_cast<size_t>(std::ranges::find(kOrder, type_url, &TypeOrder::type_url) - kOrder);
}

bool referred_to(std::string_view type_url) {
  const size_t rank = rank_of(type_url);
  return rank < std::size(kOrder) && kOrder[rank].referred_to;
}

Result<Subscription::Request> parse(grpc::ByteBuffer& bytes) {
  Subscription::Request request;
  grpc::ProtoBufferReader reader(&bytes);
  if (!reader.status().ok() || !request.ParseFromZeroCopyStream(&reader)) {
    return fail(Reason::kBadRequest, Fault::kDownstream, "not a DeltaDiscoveryRequest");
  }
  return request;
}

}  // namespace

DeltaStream* DeltaStream::begin(std::shared_ptr<ServerCore> core, Caller caller, std::string peer) {
  auto stream = std::make_shared<DeltaStream>(std::move(core), std::move(caller), std::move(peer));
  DeltaStream* const out = stream.get();
  out->start(std::move(stream));
  return out;
}

void DeltaStream::start(std::shared_ptr<DeltaStream> self) {
  const std::lock_guard lock(mutex_);
  if (!core_->add(self)) {
    ++core_->counters.refused;
    self_ = std::move(self);
    return finish_locked({grpc::StatusCode::RESOURCE_EXHAUSTED, "too many streams"});
  }
  ++core_->counters.streams_opened;
  self_ = std::move(self);
  StartRead(&incoming_);
}

void DeltaStream::finish_locked(const grpc::Status& status) {
  if (std::exchange(finished_, true)) return;
  Finish(status);
}

bool DeltaStream::end(const grpc::Status& why) {
  const std::lock_guard lock(mutex_);
  if (finished_) return false;
  scope.info("stream of {} ({}) is ended: {}", log::escape(node_.id), call_.peer(),
             log::escape(why.error_message()));
  finish_locked(why);
  return true;
}

void DeltaStream::OnReadDone(bool ok) {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  if (!ok) return finish_locked(grpc::Status::OK);
  call_.took(incoming_.Length());
  const auto request = parse(incoming_);
  const Status taken = request ? take_request(*request) : Status(fail(request.error()));
  if (!taken) {
    ++core_->counters.refused;
    scope.warn("stream of {} ({}) refused: {}", log::escape(node_.id), call_.peer(),
               log::escape(taken.error().to_string()));
    return finish_locked(to_grpc(taken.error()));
  }
  incoming_.Clear();
  StartRead(&incoming_);
  pump_locked();
}

Status DeltaStream::take_request(const Subscription::Request& request) {
  if (!node_known_) {
    if (!request.has_node() || request.node().id().empty() ||
        request.node().id().size() > kMaxNodeId) {
      return fail(Reason::kBadRequest, Fault::kDownstream, "the first request names no node");
    }
    node_.id = request.node().id();
    for (const auto& [key, value] : request.node().metadata().fields()) {
      if (value.kind_case() == google::protobuf::Value::kStringValue) {
        node_.metadata[key] = value.string_value();
      }
    }
    node_known_ = true;
    scope.info("{} connected from {} as {}/{}", log::escape(node_.id), call_.peer(), caller_.ns,
               caller_.service_account);
  }
  if (refused_.contains(request.type_url())) return {};
  const auto found = std::ranges::find_if(
      subscriptions_, [&](const auto& s) { return s->type_url() == request.type_url(); });
  const bool first = found == subscriptions_.end();
  Subscription* subscription = first ? nullptr : found->get();
  if (first) MELTEMI_TRY(open_subscription(request, &subscription));
  if (subscription == nullptr) return {};
  const uint64_t nacks = subscription->nacked();
  MELTEMI_TRY(subscription->apply(request, first, kMaxNamesPerStream));
  // On demand: a node's own workloads come without being asked for, as from istiod.
  if (first && !subscription->wildcard() && subscription->type_url() == kTypeAddress &&
      !caller_.node_name.empty()) {
    subscription->follow(alias_of_node(caller_.node_name));
  }
  if (total_names() > kMaxNamesPerStream) {
    return fail(Reason::kLimitExceeded, Fault::kDownstream, "too many names on one stream");
  }
  if (subscription->nacked() == nacks) return {};
  ++core_->counters.nacks;
  scope.warn("{} refuses {}: {}", log::escape(node_.id), subscription->type_url(),
             log::escape(subscription->last_nack()));
  if (core_->hooks.nacked) {
    core_->hooks.nacked(caller_, {node_.id, subscription->type_url(), subscription->last_nack()});
  }
  return {};
}

// What is not for the caller stays unanswered: an empty answer would say that there is nothing, no
// policy for example.
Status DeltaStream::refuse_type(const std::string& type_url, const Error& why) {
  if (type_url.size() > kMaxTypeUrl || refused_.size() >= kMaxRefusedTypes) {
    return fail(Reason::kLimitExceeded, Fault::kDownstream, "too many types that are not served");
  }
  refused_[type_url] = why.detail;
  ++core_->counters.refused;
  scope.warn("{} hears nothing of {}: {}", log::escape(node_.id), log::escape(type_url),
             log::escape(why.detail));
  return {};
}

Status DeltaStream::open_subscription(const Subscription::Request& request, Subscription** out) {
  auto allowed = core_->hooks.scope_of(caller_, node_, request.type_url());
  if (!allowed && allowed.error().reason == Reason::kUnsupported) {
    return refuse_type(request.type_url(), allowed.error());
  }
  const std::string wanted = MELTEMI_TRY(std::move(allowed));
  const auto place = std::ranges::upper_bound(
      subscriptions_, rank_of(request.type_url()), {},
      [](const auto& subscription) { return rank_of(subscription->type_url()); });
  *out = subscriptions_.insert(place, core_->open_subscription(request.type_url(), wanted))->get();
  return {};
}

size_t DeltaStream::total_names() const {
  size_t out = 0;
  for (const auto& subscription : subscriptions_) out += subscription->names();
  return out;
}

void DeltaStream::pump() {
  const std::lock_guard lock(mutex_);
  pump_locked();
}

void DeltaStream::pump_locked() {
  if (writing_ || finished_ || !core_->ready()) return;
  std::optional<NextResponse> next;
  {
    const std::shared_lock tables(core_->tables_mutex);
    for (const auto& subscription : subscriptions_) {
      next = subscription->next(kTargetResponseBytes, referred_to(subscription->type_url()));
      if (next) break;
    }
    for (auto it = subscriptions_.rbegin(); !next && it != subscriptions_.rend(); ++it) {
      next = (*it)->next_removals();
    }
  }
  if (!next) return;
  writing_ = true;
  ++core_->counters.responses;
  core_->counters.response_bytes += next->bytes;
  core_->counters.resources += next->resources;
  outgoing_ = grpc::ByteBuffer(next->slices.data(), next->slices.size());
  StartWrite(&outgoing_);
}

void DeltaStream::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  outgoing_.Clear();
  if (ok) pump_locked();
}

void DeltaStream::OnCancel() {
  const std::lock_guard lock(mutex_);
  finish_locked({grpc::StatusCode::CANCELLED, "the client went away"});
}

void DeltaStream::OnDone() {
  const auto self = std::move(self_);
  core_->remove(self);
  scope.info("{} disconnected", log::escape(node_.id));
}

StreamInfo DeltaStream::info() const {
  const std::lock_guard lock(mutex_);
  StreamInfo out{.node_id = node_.id, .peer = call_.peer(),
                 .caller = fmt::format("{}/{}", caller_.ns, caller_.service_account), .types = {}, .refused = refused_};
  const std::shared_lock tables(core_->tables_mutex);
  for (const auto& s : subscriptions_) {
    out.types.push_back({.type_url = s->type_url(), .scope = s->scope(), .names = s->names(),
                         .wildcard = s->wildcard(), .sent = s->sent(), .acked = s->acked(),
                         .nacked = s->nacked(), .current = s->current(),
                         .last_nack = s->last_nack()});
  }
  return out;
}

Status DeltaStream::ask(const std::function<Status(const Caller&, const Node&)>& question) const {
  const std::lock_guard lock(mutex_);
  if (!node_known_) return {};  // it has seen nothing yet; its first request is asked as any
  return question(caller_, node_);
}

}  // namespace meltemi::xds
