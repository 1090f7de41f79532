// See delta_client.h. One thread owns the stream's state and calls the handlers. gRPC's callbacks only
// put events into its inbox; a response is read only after the one before has been handled, so that
// HTTP/2 flow control slows a server that is faster than the handlers.
#include "userspace/xds/delta_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "envoy/service/discovery/v3/ads.grpc.pb.h"
#include "userspace/base/config.h"
#include "userspace/base/log.h"
#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

namespace discovery = ::envoy::service::discovery::v3;
using Request = discovery::DeltaDiscoveryRequest;
using Response = discovery::DeltaDiscoveryResponse;

log::Scope scope("xds");

// A stream that lived this long was a healthy one: the next attempt starts at the first backoff.
constexpr Duration kHealthyStream = std::chrono::seconds(5);
constexpr size_t kMaxNackMessage = 8 * 1024;  // bytes

struct Event {
  enum class Kind { kResponse, kReadEnd, kWritten, kDone } kind;
  grpc::Status status;  // kDone
};

// What both the client's thread and gRPC's threads reach.
struct Inbox {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Event> events;
  bool stopping = false;
  bool names_changed = false;

  void post(Event event) {
    const std::lock_guard lock(mutex);
    events.push_back(std::move(event));
    wake.notify_one();
  }
};

// One stream. The client's thread makes it, keeps it until kDone, which is gRPC's last word on it, and
// ends it: never one of gRPC's threads.
class Stream : public grpc::ClientBidiReactor<Request, Response> {
 public:
  Stream(std::shared_ptr<Inbox> inbox, const std::shared_ptr<grpc::Channel>& channel)
      : inbox_(std::move(inbox)), stub_(discovery::AggregatedDiscoveryService::NewStub(channel)) {}

  grpc::ClientContext& context() { return context_; }
  Response& response() { return response_; }

  void start() {
    stub_->async()->DeltaAggregatedResources(&context_, this);
    // Reads and writes are started by the client's thread, outside of gRPC's reactions: until it lets
    // go the call must not be finished (gRPC would free it under a StartWrite).
    AddHold();
    StartRead(&response_);
    StartCall();
  }
  // The client's thread starts nothing more. Idempotent.
  void let_go() {
    if (std::exchange(held_, false)) RemoveHold();
  }
  void read_next() {
    response_.Clear();
    StartRead(&response_);
  }
  void write(Request request) {
    pending_.push_back(std::move(request));
    if (pending_.size() == 1) StartWrite(&pending_.front());
  }
  // The client's thread was told that the front write is done.
  void written() {
    pending_.pop_front();
    if (!pending_.empty()) StartWrite(&pending_.front());
  }
  void cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    inbox_->post({ok ? Event::Kind::kResponse : Event::Kind::kReadEnd, {}});
  }
  void OnWriteDone(bool ok) override {
    if (ok) inbox_->post({Event::Kind::kWritten, {}});
  }
  void OnDone(const grpc::Status& status) override {
    const auto inbox = inbox_;  // the stream may end as soon as the event is there
    inbox->post({Event::Kind::kDone, status});
  }

 private:
  std::shared_ptr<Inbox> inbox_;
  std::unique_ptr<discovery::AggregatedDiscoveryService::Stub> stub_;
  grpc::ClientContext context_;
  Response response_;
  std::deque<Request> pending_;  // the front one is being written
  bool held_ = true;
};

struct Type {
  std::string type_url;
  bool named = false;
  Handler handler;
  std::set<std::string> wanted;  // named: as last set; under Inbox::mutex

  // The client's thread only.
  std::set<std::string> subscribed;  // on this stream
  bool asked = false;                // a request was sent on this stream
  bool answered = false;             // a response came on this stream
  std::unordered_map<std::string, std::string> versions;  // "" after a rejection
  std::map<std::string, std::string> refused;  // by name, why: until it is accepted, or gone
  ClientStatus::Type shown;          // written under Impl::status_mutex
};

const std::string kUnnamed = "(unnamed)";

bool known_once(std::unordered_set<std::string_view>& seen, std::string_view name) {
  return !seen.insert(name).second;
}

}  // namespace

struct DeltaClient::Impl {
  ChannelOptions channel;
  Node node;
  std::vector<std::unique_ptr<Type>> types;
  std::function<void(StreamState)> state_listener;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  std::thread thread;

  mutable std::mutex status_mutex;
  ClientStatus status;  // without types

  std::unique_ptr<LastGood> last_good;
  std::string notes_kind;
  std::function<void(const SavedResources&)> restore_notes;
  std::optional<SavedTypes> saved;  // loaded, and not handed to the handlers yet
  MonoTime patience_ends{};         // then it is

  // The client's thread only.
  std::map<std::string, std::optional<std::string>, std::less<>> notes;  // not handed to last_good yet
  std::unique_ptr<Stream> stream;
  bool node_sent = false, answered = false;

  Type* find(std::string_view type_url);
  void load_saved();
  void serve_saved();
  void serve_saved(Type& type, const SavedResources& resources);
  void save(const Type& type, const Update& update, const std::vector<Rejection>& rejections);
  void save_new_notes();
  void save_withdrawn_notes();
  void set_state(StreamState state, std::string error);
  void run();
  // Runs one stream to its end; returns why it ended.
  Error run_stream();
  Result<std::unique_ptr<Stream>> open_stream();
  void first_request(Type& type);
  void names_request(Type& type);
  void send_names();
  void send(Request request);
  void handle(Response& response);
  Update to_update(const Type& type, const Response& response, std::vector<Rejection>& rejections);
  void remember(Type& type, const Update& update, const std::vector<Rejection>& rejections);
  void show_refused(Type& type);  // REQUIRES: status_mutex held
  void acknowledge(Type& type, const Response& response, const std::vector<Rejection>& rejections);
  bool wait_backoff(unsigned failures, std::mt19937_64& rng);
};

Type* DeltaClient::Impl::find(std::string_view type_url) {
  const auto it = std::ranges::find_if(
      types, [&](const std::unique_ptr<Type>& type) { return type->type_url == type_url; });
  return it == types.end() ? nullptr : it->get();
}

void DeltaClient::Impl::set_state(StreamState state, std::string error) {
  bool changed;
  {
    const std::lock_guard lock(status_mutex);
    changed = status.state != state;
    const bool was_connected = status.state == StreamState::kConnected;
    status.state = state;
    status.last_error = std::move(error);
    if (state == StreamState::kConnected && changed) ++status.connects;
    if (!status.last_error.empty()) ++status.failures;
    // The keepalive's answers are words too: the stream's end is when the last one was due.
    if (changed && (state == StreamState::kConnected || was_connected)) {
      status.last_word = std::chrono::system_clock::now();
    }
    if (state == StreamState::kConnected) status.serving_saved = false;
  }
  if (changed && last_good) last_good->set_connected(state == StreamState::kConnected);
  if (changed && state_listener) state_listener(state);
}

// The versions go with the first requests, so that the server sends only what changed.
void DeltaClient::Impl::load_saved() {
  if (!last_good) return;
  auto loaded = last_good->load();
  if (!loaded) {
    if (loaded.error().reason == Reason::kNotFound) return;
    const std::lock_guard lock(status_mutex);
    status.saved_refusal = loaded.error().detail;
    return;
  }
  for (const auto& [url, resources] : loaded->types) {
    Type* type = find(url);
    if (type == nullptr || type->named) continue;
    for (const auto& [name, resource] : resources) type->versions[name] = resource->version;
  }
  {
    const std::lock_guard lock(status_mutex);
    if (status.connects == 0) status.last_word = loaded->last_word;
    status.saved_refusal.clear();
  }
  saved = std::move(loaded->types);
  patience_ends = MonoClock::now() + kAnswerPatience;
}

void DeltaClient::Impl::serve_saved() {
  if (!saved) return;
  const SavedTypes kept = *std::exchange(saved, std::nullopt);
  size_t count = 0;
  if (const auto it = kept.find(notes_kind); restore_notes && it != kept.end()) restore_notes(it->second);
  // In the order of registration, as from the server: nothing names what is not there yet.
  for (const auto& type : types) {
    const auto it = kept.find(type->type_url);
    if (it == kept.end()) continue;
    serve_saved(*type, it->second);
    count += it->second.size();
  }
  const std::lock_guard lock(status_mutex);
  if (answered) return;
  status.serving_saved = true;
  scope.warn("the control plane does not answer: serving {} resources of the last good state, {} old",
             count,
             format_duration(std::chrono::floor<std::chrono::seconds>(
                 std::max<Duration>(std::chrono::system_clock::now() - status.last_word, {}))));
}

void DeltaClient::Impl::serve_saved(Type& type, const SavedResources& resources) {
  Update update{.type_url = type.type_url, .resources = {}, .removed = {}, .saved = true};
  for (const auto& [name, resource] : resources) {
    update.resources.push_back({name, resource->version, resource->body});
    type.versions[name] = resource->version;
  }
  const std::vector<Rejection> rejections = type.handler(update);
  for (const Rejection& rejection : rejections) {
    scope.warn("saved {} {} is not used: {}", type.type_url, log::escape(rejection.name),
               log::escape(rejection.reason));
    type.versions[rejection.name].clear();
    last_good->set(type.type_url, rejection.name, nullptr);
    type.refused[rejection.name] = rejection.reason;
  }
  save_new_notes();
  save_withdrawn_notes();
  const std::lock_guard lock(status_mutex);
  type.shown.synced = true;
  type.shown.resources = type.versions.size();
  show_refused(type);
}

// What was refused stays as it was: the last good one.
void DeltaClient::Impl::save(const Type& type, const Update& update,
                             const std::vector<Rejection>& rejections) {
  if (!last_good) return notes.clear();
  save_new_notes();
  std::unordered_set<std::string_view> refused;
  for (const Rejection& rejection : rejections) refused.insert(rejection.name);
  for (const ReceivedResource& r : update.resources) {
    if (refused.contains(r.name)) continue;
    last_good->set(type.type_url, r.name,
                   std::make_shared<SavedResource>(std::string(r.version), std::string(r.body)));
  }
  for (const std::string_view name : update.removed) last_good->set(type.type_url, name, nullptr);
  last_good->answered(type.type_url);
  save_withdrawn_notes();
}

void DeltaClient::Impl::save_new_notes() {
  for (const auto& [name, body] : notes) {
    if (body) last_good->set(notes_kind, name, std::make_shared<SavedResource>(std::string(), *body));
  }
}

void DeltaClient::Impl::save_withdrawn_notes() {
  for (const auto& [name, body] : notes) {
    if (!body) last_good->set(notes_kind, name, nullptr);
  }
  notes.clear();
}

void DeltaClient::Impl::send(Request request) {
  if (!node_sent) {
    node_sent = true;
    request.mutable_node()->set_id(node.id);
    auto& fields = *request.mutable_node()->mutable_metadata()->mutable_fields();
    for (const auto& [key, value] : node.metadata) fields[key].set_string_value(value);
  }
  stream->write(std::move(request));
}

void DeltaClient::Impl::first_request(Type& type) {
  type.asked = type.answered = false;
  type.subscribed.clear();
  if (type.named) return names_request(type);
  Request request;
  request.set_type_url(type.type_url);
  for (const auto& [name, version] : type.versions) {
    (*request.mutable_initial_resource_versions())[name] = version;
  }
  type.asked = true;
  send(std::move(request));
}

void DeltaClient::Impl::names_request(Type& type) {
  std::set<std::string> wanted;
  {
    const std::lock_guard lock(inbox->mutex);
    wanted = type.wanted;
  }
  Request request;
  request.set_type_url(type.type_url);
  for (const std::string& name : wanted) {
    if (type.subscribed.contains(name)) continue;
    request.add_resource_names_subscribe(name);
    const auto version = type.versions.find(name);
    if (!type.asked && version != type.versions.end()) {
      (*request.mutable_initial_resource_versions())[name] = version->second;
    }
  }
  for (const std::string& name : type.subscribed) {
    if (!wanted.contains(name)) request.add_resource_names_unsubscribe(name);
  }
  const auto unwanted = [&](const auto& entry) { return !wanted.contains(entry.first); };
  std::erase_if(type.versions, unwanted);
  if (std::erase_if(type.refused, unwanted) > 0) {
    const std::lock_guard lock(status_mutex);
    show_refused(type);
  }
  if (last_good && !saved) {
    last_good->retain(type.type_url, [&](const std::string& name) { return wanted.contains(name); });
  }
  type.subscribed = std::move(wanted);
  // An empty first request would ask for everything.
  if (request.resource_names_subscribe().empty() && request.resource_names_unsubscribe().empty()) {
    return;
  }
  type.asked = true;
  send(std::move(request));
}

void DeltaClient::Impl::send_names() {
  for (const auto& type : types) {
    if (type->named) names_request(*type);
  }
}

Update DeltaClient::Impl::to_update(const Type& type, const Response& response,
                                    std::vector<Rejection>& rejections) {
  Update out{.type_url = type.type_url, .resources = {}, .removed = {},
             .first_of_stream = !type.answered};
  std::unordered_set<std::string_view> seen;
  const auto& resources = response.resources();
  // Backwards: of a name that comes twice the last counts.
  for (auto it = resources.rbegin(); it != resources.rend(); ++it) {
    if (known_once(seen, it->name())) continue;
    if (it->name().empty()) {
      rejections.push_back({kUnnamed, "the resource has no name"});
    } else if (it->resource().type_url() != type.type_url) {
      rejections.push_back({it->name(), fmt::format("is of type {}", it->resource().type_url())});
    } else if (!type.named || type.subscribed.contains(it->name())) {
      out.resources.push_back({it->name(), it->version(), it->resource().value()});
    }
  }
  std::ranges::reverse(out.resources);
  for (const std::string& name : response.removed_resources()) {
    if (!known_once(seen, name)) out.removed.push_back(name);
  }
  return out;
}

void DeltaClient::Impl::remember(Type& type, const Update& update,
                                 const std::vector<Rejection>& rejections) {
  for (const ReceivedResource& resource : update.resources) {
    type.versions[std::string(resource.name)] = resource.version;
  }
  for (const std::string_view name : update.removed) type.versions.erase(std::string(name));
  // The server tells what was refused again only when it changes: another response says nothing of it.
  for (const ReceivedResource& resource : update.resources) type.refused.erase(std::string(resource.name));
  for (const std::string_view name : update.removed) type.refused.erase(std::string(name));
  type.refused.erase(kUnnamed);
  for (const Rejection& rejection : rejections) type.refused[rejection.name] = rejection.reason;
  // An unknown version makes the server send it again on the next stream, or say that it is gone.
  for (const Rejection& rejection : rejections) {
    const auto it = type.versions.find(rejection.name);
    if (it != type.versions.end()) it->second.clear();
  }
}

void DeltaClient::Impl::show_refused(Type& type) {
  type.shown.refused.clear();
  if (type.refused.empty()) return;
  const auto& [name, why] = *type.refused.begin();
  type.shown.refused = fmt::format("{}: {}", name, why);
  if (type.refused.size() > 1) {
    type.shown.refused += fmt::format(" (and {} more)", type.refused.size() - 1);
  }
}

void DeltaClient::Impl::acknowledge(Type& type, const Response& response,
                                    const std::vector<Rejection>& rejections) {
  Request request;
  request.set_type_url(type.type_url);
  request.set_response_nonce(response.nonce());
  if (!rejections.empty()) {
    std::string message;
    for (const Rejection& rejection : rejections) {
      if (message.size() > kMaxNackMessage) {
        message += "...";
        break;
      }
      message += fmt::format("{}{}: {}", message.empty() ? "" : "; ", rejection.name, rejection.reason);
    }
    scope.warn("{}: {} of {} resources refused: {}", type.type_url, rejections.size(),
               response.resources_size(), log::escape(message));
    request.mutable_error_detail()->set_code(static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
    request.mutable_error_detail()->set_message(std::move(message));
  }
  send(std::move(request));
}

void DeltaClient::Impl::handle(Response& response) {
  if (!answered) {
    answered = true;
    scope.info("connected to {}", channel.address);
    set_state(StreamState::kConnected, "");
  }
  serve_saved();  // a change is told on top of what it changes
  Type* type = find(response.type_url());
  if (type == nullptr) {  // not ours to judge; acknowledged so that the server goes on
    Request ack;
    ack.set_type_url(response.type_url());
    ack.set_response_nonce(response.nonce());
    send(std::move(ack));
    return;
  }
  std::vector<Rejection> rejections;
  const Update update = to_update(*type, response, rejections);
  for (Rejection& rejection : type->handler(update)) rejections.push_back(std::move(rejection));
  type->answered = true;
  remember(*type, update, rejections);
  save(*type, update, rejections);
  acknowledge(*type, response, rejections);
  const std::lock_guard lock(status_mutex);
  type->shown.synced = true;
  type->shown.resources = type->versions.size();
  ++type->shown.responses;
  if (!rejections.empty()) ++type->shown.nacks;
  show_refused(*type);
  type->shown.bytes += response.ByteSizeLong();
}

Result<std::unique_ptr<Stream>> DeltaClient::Impl::open_stream() {
  auto opened = std::make_unique<Stream>(inbox, MELTEMI_TRY(make_channel(channel)));
  MELTEMI_TRY(add_metadata(channel, opened->context()));
  return opened;
}

Error DeltaClient::Impl::run_stream() {
  node_sent = answered = false;
  auto opened = open_stream();
  if (!opened) return opened.error();
  stream = std::move(*opened);
  stream->start();
  for (const auto& type : types) first_request(*type);

  std::unique_lock lock(inbox->mutex);
  bool cancelled = false, ended = false;
  for (;;) {
    const auto something = [&] {
      return !inbox->events.empty() || inbox->names_changed || (inbox->stopping && !cancelled);
    };
    if (!saved) {
      inbox->wake.wait(lock, something);
    } else if (!inbox->wake.wait_for(lock, patience_ends - MonoClock::now(), something)) {
      lock.unlock();
      serve_saved();
      lock.lock();
      continue;
    }
    if (inbox->stopping && !cancelled) {
      cancelled = true;
      stream->cancel();
    }
    const bool names = std::exchange(inbox->names_changed, false);
    auto events = std::exchange(inbox->events, {});
    lock.unlock();
    if (names && !cancelled && !ended) send_names();
    for (Event& event : events) {
      if (event.kind == Event::Kind::kDone) {
        stream = nullptr;
        return to_error(event.status, channel.address);
      }
      // Cancelled: the stream only waits for its end. A read that is not started again, or failed,
      // is the last thing that comes.
      ended |= event.kind == Event::Kind::kReadEnd ||
               (cancelled && event.kind == Event::Kind::kResponse);
      if (ended) stream->let_go();
      if (cancelled || ended) continue;
      if (event.kind == Event::Kind::kWritten) stream->written();
      if (event.kind == Event::Kind::kResponse) {
        handle(stream->response());
        stream->read_next();
      }
    }
    lock.lock();
  }
}

bool DeltaClient::Impl::wait_backoff(unsigned failures, std::mt19937_64& rng) {
  const Duration delay = backoff(failures, std::uniform_real_distribution<double>(0, 1)(rng));
  std::unique_lock lock(inbox->mutex);
  inbox->wake.wait_for(lock, delay, [&] { return inbox->stopping; });
  return !inbox->stopping;
}

void DeltaClient::Impl::run() {
  std::mt19937_64 rng(std::random_device{}());
  unsigned failures = 0;
  load_saved();
  do {
    const MonoTime began = MonoClock::now();
    if (last_good && last_good->unread()) load_saved();
    const Error why = run_stream();
    // Only a stream that answered and lasted clears the count, so that a server which accepts and
    // closes at once is not called in a hot loop.
    if (answered && MonoClock::now() - began >= kHealthyStream) failures = 0;
    ++failures;
    {
      const std::lock_guard lock(inbox->mutex);
      if (inbox->stopping) break;
    }
    if (failures == 1 || failures == 8) scope.warn("no stream: {}", why.to_string());
    set_state(StreamState::kConnecting, why.to_string());
    serve_saved();
  } while (wait_backoff(failures, rng));
  set_state(StreamState::kStopped, "");
}

DeltaClient::DeltaClient(ChannelOptions channel, Node node) : impl_(std::make_shared<Impl>()) {
  impl_->channel = std::move(channel);
  impl_->node = std::move(node);
}

DeltaClient::~DeltaClient() { stop(); }

void DeltaClient::subscribe(std::string_view type_url, Handler handler) {
  auto type = std::make_unique<Type>();
  type->type_url = type->shown.type_url = type_url;
  type->handler = std::move(handler);
  impl_->types.push_back(std::move(type));
}

void DeltaClient::subscribe_named(std::string_view type_url, Handler handler) {
  subscribe(type_url, std::move(handler));
  impl_->types.back()->named = impl_->types.back()->shown.named = true;
}

void DeltaClient::set_names(std::string_view type_url, std::set<std::string> names) {
  Type* type = impl_->find(type_url);
  if (type == nullptr || !type->named) return;
  const std::lock_guard lock(impl_->inbox->mutex);
  if (type->wanted == names) return;
  type->wanted = std::move(names);
  impl_->inbox->names_changed = true;
  impl_->inbox->wake.notify_one();
}

void DeltaClient::keep(LastGoodOptions options) {
  impl_->last_good = std::make_unique<LastGood>(std::move(options));
}

void DeltaClient::on_notes(std::string kind, std::function<void(const SavedResources&)> restore) {
  impl_->notes_kind = std::move(kind);
  impl_->restore_notes = std::move(restore);
}

void DeltaClient::note(std::string_view name, std::optional<std::string> body) {
  impl_->notes[std::string(name)] = std::move(body);
}

void DeltaClient::on_state(std::function<void(StreamState)> listener) {
  impl_->state_listener = std::move(listener);
}

Status DeltaClient::start() {
  MELTEMI_TRY(check_address(impl_->channel.address));
  init_grpc();
  impl_->status.last_word = std::chrono::system_clock::now();
  impl_->set_state(StreamState::kConnecting, "");
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
  return {};
}

void DeltaClient::stop() {
  {
    const std::lock_guard lock(impl_->inbox->mutex);
    impl_->inbox->stopping = true;
    impl_->inbox->wake.notify_all();
  }
  if (!impl_->thread.joinable()) return;
  impl_->thread.join();
  close_dropped_channels();
}

Duration staleness(const ClientStatus& status, WallTime now) {
  if (status.state == StreamState::kConnected) return Duration::zero();
  return std::max<Duration>(now - status.last_word, Duration::zero());
}

std::string staleness_note(const ClientStatus& status, WallTime now) {
  if (status.state == StreamState::kConnected) return {};
  const std::string age =
      format_duration(std::chrono::floor<std::chrono::seconds>(staleness(status, now)));
  std::string out = fmt::format("no word of the control plane for {}", age);
  if (status.serving_saved) out += ", serving the last good state on disk";
  if (!status.saved_refusal.empty()) out += "; the one on disk is refused: " + status.saved_refusal;
  return out;
}

ClientStatus DeltaClient::status() const {
  const std::lock_guard lock(impl_->status_mutex);
  ClientStatus out = impl_->status;
  for (const auto& type : impl_->types) out.types.push_back(type->shown);
  return out;
}

bool DeltaClient::synced() const {
  const std::lock_guard lock(impl_->status_mutex);
  return std::ranges::all_of(impl_->types, [](const std::unique_ptr<Type>& type) {
    return type->named || type->shown.synced;
  });
}

}  // namespace meltemi::xds
