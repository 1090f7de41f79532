// See tunnel_pool.h. A bucket holds what belongs to one target: its tunnels (dialled or being
// dialled) and the calls that wait for one.
#include "userspace/net/tunnel_pool.h"

#include <algorithm>
#include <unordered_map>

#include "userspace/net/tunnel.h"

namespace meltemi::net {
namespace {

bool same_set(const std::vector<model::Identity>& a, const std::vector<model::Identity>& b) {
  if (a.size() != b.size()) return false;
  if (a == b) return true;
  return std::is_permutation(a.begin(), a.end(), b.begin());
}

struct TargetHash {
  size_t operator()(const TunnelTarget& t) const {
    size_t h = std::hash<std::string_view>()(t.source) * 31 + std::hash<SocketAddress>()(t.address);
    size_t ids = 0;  // a sum: the order does not matter
    for (const auto& id : t.expected) ids += id.hash();
    return h * 31 + ids;
  }
};
struct TargetEqual {
  bool operator()(const TunnelTarget& a, const TunnelTarget& b) const {
    return a.address == b.address && a.source == b.source && same_set(a.expected, b.expected);
  }
};

// An intrusive list; `T` has prev and next.
template <typename T>
struct List {
  T* head = nullptr;
  T* tail = nullptr;
  size_t size = 0;
  void push(T& t) {
    t.prev = tail;
    t.next = nullptr;
    (tail ? tail->next : head) = &t;
    tail = &t;
    ++size;
  }
  void remove(T& t) {
    (t.prev ? t.prev->next : head) = t.next;
    (t.next ? t.next->prev : tail) = t.prev;
    t.prev = t.next = nullptr;
    --size;
  }
};

}  // namespace

struct Bucket;

// The pool's hand on a call's private part.
struct PoolAccess {
  static void set(TunnelConnect& call, TunnelConnect::State* state) { call.state_ = state; }
};

// A call under way: waits in its bucket, or for the answer on a tunnel.
struct TunnelConnect::State final : StreamUser, rt::Retirable, rt::TurnHook, rt::Timer {
  State(TunnelConnect& call, TunnelPool::Impl& pool, Bucket& bucket)
      : StreamUser(Kind::kCall), call(&call), pool(pool), bucket(&bucket) {}
  TunnelConnect* call;  // null when it is over
  TunnelPool::Impl& pool;
  Bucket* bucket;
  ClientTunnel* tunnel = nullptr;
  uint32_t stream = 0;
  MonoTime deadline;
  MonoTime patience{};  // end of all its waiting; none yet: it has not waited
  bool retried = false;  // after a tunnel broke under it
  bool waiting = false;
  std::optional<Error> failed;  // to be told at the end of the turn
  State* prev = nullptr;
  State* next = nullptr;

  void on_timer() override;
  void on_turn_end() override;
};
using Call = TunnelConnect::State;

struct Bucket {
  Bucket(const TunnelTarget& target, std::function<void(Bucket&)> serve)
      : target(target), rest_over([this, serve = std::move(serve)] { serve(*this); }) {}
  TunnelTarget target;
  TunnelDial dial;  // the newest credentials
  std::vector<ClientTunnel*> tunnels;
  List<Call> waiting;
  // A peer that takes a tunnel and gives it up with all its calls is not dialled before this.
  MonoTime rest_until{};
  rt::FnTimer rest_over;
};

struct TunnelPool::Impl {
  Impl(rt::Loop& loop, const HboneOptions& options, HboneStats& stats)
      : loop(loop), options(options), stats(stats),
        watch(loop, options.wall_clock, [this](WallTime now) { return check(now); }) {}
  WallTime check(WallTime now);
  rt::Loop& loop;
  const HboneOptions& options;
  HboneStats& stats;
  std::unordered_map<TunnelTarget, std::unique_ptr<Bucket>, TargetHash, TargetEqual> buckets;
  List<Call> failing;  // will be told at the end of the turn
  CredentialWatch watch;

  Bucket& bucket(const TunnelTarget& target);
  ClientTunnel* pick(Bucket& b);
  void place(Call& call);
  void wait(Call& call);
  void dial_if_needed(Bucket& b);
  void serve_waiting(Bucket& b);
  bool start(ClientTunnel& tunnel, Call& call);
  void unlink(Call& call);
  // Ends the call for its owner; returns whom to tell (null if it was cancelled).
  TunnelConnect* release(Call& call);
  void fail_now(Call& call, const Error& error, const ConnectAnswer* answer = nullptr);
  void fail_later(Call& call, Error error);
  void retry_or_fail(Call& call, const Error& error);
  void tunnel_dead(ClientTunnel& tunnel, const Error& error);
  void drop_if_unused(Bucket& b);
  std::vector<ClientTunnel*> all(std::string_view source) const;
};

class ClientTunnel final : public Tunnel {
 public:
  ClientTunnel(TunnelPool::Impl& pool, Bucket& bucket)
      : Tunnel(pool.loop, pool.options, pool.stats, codec::TunnelRole::kClient),
        pool_(pool), bucket_(bucket), dial_(pool.loop), idle_since_(pool.loop.now()),
        rest_([this] { rest_over(); }) {}

  void dial();
  // May another call be started on it?
  bool open_for_calls() {
    return ready() && !draining() && !resting_ && session().can_connect() &&
           stream_count() < std::min(pool_.options.max_streams, room_) && !credential_over();
  }
  // The peer's SETTINGS belong to the start: before them it takes one call and no more.
  bool starting() {
    return !dead() && (!ready() || (!session().peer_settings_seen() && !draining()));
  }
  // The peer takes no call although there is none: it would not take those of another tunnel.
  bool shut() {
    return ready() && !draining() && stream_count() == 0 && !credential_over() &&
           (resting_ || (session().peer_settings_seen() && session().granted_streams() == 0));
  }
  // REFUSED_STREAM: it takes no more than there are now, whatever its SETTINGS say.
  void refused();
  // The peer spoke HTTP/2 with us: what is wrong now is not credentials or address.
  bool worked() { return spoke_; }
  Result<uint32_t> connect(TunnelConnect& call, StreamUser& user);
  void forget(uint32_t stream) {
    session().reset(stream, codec::H2Code::kCancel);
    want_flush();
    room_gained();
  }
  Bucket& bucket() { return bucket_; }
  List<Call> calls;

 protected:
  void on_ready() override {
    pool_.watch.add(credential().end);
    pool_.serve_waiting(bucket_);
  }
  void on_room_changed() override { pool_.serve_waiting(bucket_); }
  void on_event(const codec::TunnelEvent& e) override;
  void on_dead(const Error& error) override {
    dial_.cancel();  // it may complete in this very turn, and the bucket be gone by then
    place_.release();
    pool_.tunnel_dead(*this, error);
  }
  void on_stream_gone() override { room_gained(); }
  MonoTime idle_deadline() const override {
    if (stream_count() > 0) return MonoTime::max();
    const bool counted = place_ || !pool_.options.idle_place || draining();
    return idle_since_ + (counted ? pool_.options.idle_release
                                  : std::min(kIdleUncounted, pool_.options.idle_release));
  }
  void on_idle() override;

 private:
  static constexpr uint32_t kNoLimit = 0xffffffff;
  // Before a peer that refused is asked again.
  static constexpr Duration kRest = std::chrono::milliseconds(100);
  // Between two flows of one target that come one behind the other, nobody is asked. Looked at when the
  // next PING is due.
  static constexpr Duration kIdleUncounted = std::chrono::seconds(1);
  void rest_over();
  void on_response(Call& call, const codec::TunnelEvent& e);
  void room_gained() {
    if (stream_count() == 0) idle_since_ = loop_.now();
    if (bucket_.waiting.head) pool_.serve_waiting(bucket_);
  }
  TunnelPool::Impl& pool_;
  Bucket& bucket_;
  TcpDial dial_;
  MonoTime idle_since_;
  bool spoke_ = false;     // an answer or an end of a stream came
  bool answered_ = false;  // a CONNECT was
  bool resting_ = false;
  uint32_t room_ = kNoLimit;  // streams that it had taken when it refused one
  rt::Lease place_;           // while it carries nothing
  rt::FnTimer rest_;
};

void ClientTunnel::on_idle() {
  if (!place_ && pool_.options.idle_place && loop_.now() < idle_since_ + pool_.options.idle_release) {
    auto place = pool_.options.idle_place(bucket_.target);
    if (!place) return drain();
    place_ = std::move(*place);
    place_.idle(loop_.now());
    place_.on_give_way(rt::post_to(loop_), [this](rt::GiveWay) {
      bump(stats_.limit_hits);
      drain();
    });
    return;
  }
  drain();
}

void ClientTunnel::refused() {
  room_ = std::max<uint32_t>(1, static_cast<uint32_t>(stream_count()));
  resting_ = stream_count() == 0;  // no end of a stream will say that there is room
  loop_.start(rest_, loop_.now() + kRest);
}

// Each time twice as many are tried, until it takes what its SETTINGS say.
void ClientTunnel::rest_over() {
  if (dead()) return;
  resting_ = false;
  room_ = room_ >= pool_.options.max_streams ? kNoLimit : room_ * 2;
  if (room_ != kNoLimit) loop_.start(rest_, loop_.now() + kRest);
  pool_.serve_waiting(bucket_);
}

// --- the tunnel ------------------------------------------------------------------------------------

void ClientTunnel::dial() {
  peer_.address = bucket_.target.address;
  // The credentials of now: a rotation during the dial is for the next one, unless the roots changed.
  rest_on(bucket_.dial.tls);
  dial_.start(bucket_.dial.socket, bucket_.target.address,
              loop_.now() + pool_.options.connect_timeout,
              [this](Result<UniqueFd> fd) {
                if (!fd) return die(fd.error());
                start(std::move(*fd), bucket_.target.expected);
              });
}

Result<uint32_t> ClientTunnel::connect(TunnelConnect& call, StreamUser& user) {
  constexpr size_t kFew = 16;
  codec::HeaderField few[kFew];
  std::vector<codec::HeaderField> many;
  codec::HeaderField* fields = few;
  if (call.headers.size() > kFew) {
    many.resize(call.headers.size());
    fields = many.data();
  }
  for (size_t i = 0; i < call.headers.size(); ++i)
    fields[i] = {call.headers[i].name, call.headers[i].value};
  auto id = session().connect(call.authority, {fields, call.headers.size()}, &user);
  if (!id) return id;
  place_.release();
  want_flush();
  return id;
}

void ClientTunnel::on_event(const codec::TunnelEvent& e) {
  using Kind = codec::TunnelEventKind;
  auto* user = static_cast<StreamUser*>(e.user);
  spoke_ = true;
  if (!user || user->kind != StreamUser::Kind::kCall) return;
  Call& call = *static_cast<Call*>(user);
  if (!call.call || call.failed) return;
  if (e.kind == Kind::kResponse) return on_response(call, e);
  if (e.kind != Kind::kReset) return;
  Error error{e.code == static_cast<uint32_t>(codec::H2Code::kConnectError)
                  ? Reason::kConnectReset : Reason::kUpstreamReset,
              Fault::kUpstream, e.unprocessed ? Retry::kSafe : Retry::kNo,
              "the peer reset the CONNECT: " + std::string(codec::h2_code_name(e.code))};
  if (e.unprocessed) {
    // Not acted upon: it waits for room, here or on another tunnel, as long as its deadline allows.
    if (!draining()) {
      refused();
    } else if (!answered_) {
      bucket_.rest_until = loop_.now() + kRest;
    }
    pool_.unlink(call);
    pool_.place(call);
  } else {
    pool_.fail_now(call, error);
  }
  if (!dead()) room_gained();
}

void ClientTunnel::on_response(Call& call, const codec::TunnelEvent& e) {
  answered_ = true;
  ConnectAnswer answer{e.status, {}, peer_};
  for (const codec::HeaderField& f : e.headers)
    if (!f.name.starts_with(':')) answer.headers.push_back({std::string(f.name), std::string(f.value)});
  if (e.status != 200) {
    forget(call.stream);
    return pool_.fail_now(call,
                          {Reason::kTunnelHttpStatus, Fault::kUpstream, Retry::kNo,
                           "the peer answered CONNECT with " + std::to_string(e.status)},
                          &answer);
  }
  auto* stream = new HboneStream(*this, call.stream);
  if (e.end_stream) stream->receive({}, true);
  session().set_user(call.stream, static_cast<StreamUser*>(stream));
  TunnelConnect* owner = pool_.release(call);
  owner->on_connected(StreamPtr(stream), answer);
}

// --- calls -----------------------------------------------------------------------------------------

void TunnelConnect::State::on_timer() {
  if (tunnel) tunnel->forget(stream);
  pool.fail_now(*this, {Reason::kConnectTimeout, Fault::kUpstream,
                        waiting ? Retry::kSafe : Retry::kNo,
                        bucket->target.address.to_string() +
                            (waiting ? ": no tunnel in time" : ": no answer to CONNECT")});
}

void TunnelConnect::State::on_turn_end() {
  if (call && failed) pool.fail_now(*this, Error(*failed));
}

Bucket& TunnelPool::Impl::bucket(const TunnelTarget& target) {
  auto it = buckets.find(target);
  if (it == buckets.end()) {
    auto made = std::make_unique<Bucket>(target, [this](Bucket& b) { serve_waiting(b); });
    it = buckets.emplace(target, std::move(made)).first;
  }
  return *it->second;
}

// A tunnel with room: the first that is not nearly full, so that flows share records and unused
// tunnels fall idle; a nearly full one if need be, with the next already being dialled.
ClientTunnel* TunnelPool::Impl::pick(Bucket& b) {
  ClientTunnel* nearly_full = nullptr;
  for (ClientTunnel* t : b.tunnels) {
    if (!t->open_for_calls()) continue;
    if (t->stream_count() * 100 < size_t{options.max_streams} * options.open_next_percent) return t;
    if (!nearly_full) nearly_full = t;
  }
  if (nearly_full && b.waiting.size == 0 &&
      std::none_of(b.tunnels.begin(), b.tunnels.end(),
                   [](ClientTunnel* t) { return t->starting(); })) {
    auto* next = new ClientTunnel(*this, b);
    b.tunnels.push_back(next);
    next->dial();
  }
  return nearly_full;
}

void TunnelPool::Impl::dial_if_needed(Bucket& b) {
  size_t coming = 0;
  for (ClientTunnel* t : b.tunnels) {
    if (t->shut()) return;
    coming += t->starting() ? options.max_streams : 0;
  }
  if (coming >= b.waiting.size) return;
  if (loop.now() < b.rest_until) return loop.start(b.rest_over, b.rest_until);
  auto* tunnel = new ClientTunnel(*this, b);
  b.tunnels.push_back(tunnel);
  tunnel->dial();
}

bool TunnelPool::Impl::start(ClientTunnel& tunnel, Call& call) {
  auto id = tunnel.connect(*call.call, call);
  if (!id) {
    if (id.error().retry == Retry::kSafe) return false;
    fail_later(call, std::move(id).error());
    return true;
  }
  call.tunnel = &tunnel;
  call.stream = *id;
  tunnel.calls.push(call);
  loop.start(call, std::min(call.deadline, loop.now() + options.response_timeout));
  return true;
}

void TunnelPool::Impl::wait(Call& call) {
  Bucket& b = *call.bucket;
  if (b.waiting.size >= options.max_waiters) {
    bump(stats.limit_hits);
    return fail_later(call, {Reason::kLimitExceeded, Fault::kUpstream, Retry::kSafe, "max_waiters"});
  }
  call.waiting = true;
  b.waiting.push(call);
  if (call.patience == MonoTime{}) {
    call.patience = std::min(call.deadline, loop.now() + options.connect_timeout +
                                                options.handshake_timeout +
                                                options.response_timeout);
  }
  loop.start(call, call.patience);
  dial_if_needed(b);
}

void TunnelPool::Impl::place(Call& call) {
  ClientTunnel* tunnel = pick(*call.bucket);
  if (!tunnel || !start(*tunnel, call)) wait(call);
}

void TunnelPool::Impl::serve_waiting(Bucket& b) {
  while (Call* call = b.waiting.head) {
    ClientTunnel* tunnel = nullptr;
    for (ClientTunnel* t : b.tunnels) {
      if (!t->open_for_calls()) continue;
      tunnel = t;
      break;
    }
    if (!tunnel) break;
    b.waiting.remove(*call);
    call->waiting = false;
    if (!start(*tunnel, *call)) {
      wait(*call);
      return;
    }
  }
  if (b.waiting.head) dial_if_needed(b);
}

void TunnelPool::Impl::unlink(Call& call) {
  if (call.waiting) call.bucket->waiting.remove(call);
  if (call.tunnel) call.tunnel->calls.remove(call);
  if (call.failed) failing.remove(call);
  call.failed.reset();
  call.waiting = false;
  call.tunnel = nullptr;
  loop.stop(static_cast<rt::Timer&>(call));
}

TunnelConnect* TunnelPool::Impl::release(Call& call) {
  unlink(call);
  TunnelConnect* owner = std::exchange(call.call, nullptr);
  if (owner) PoolAccess::set(*owner, nullptr);
  loop.retire(std::unique_ptr<rt::Retirable>(&call));
  return owner;
}

void TunnelPool::Impl::fail_now(Call& call, const Error& error, const ConnectAnswer* answer) {
  if (TunnelConnect* owner = release(call)) owner->on_connect_failed(error, answer);
}

void TunnelPool::Impl::fail_later(Call& call, Error error) {
  unlink(call);
  call.failed = std::move(error);
  failing.push(call);
  loop.at_turn_end(call);
}

void TunnelPool::Impl::retry_or_fail(Call& call, const Error& error) {
  if (call.retried) return fail_now(call, error);
  call.retried = true;
  unlink(call);
  place(call);
}

void TunnelPool::Impl::tunnel_dead(ClientTunnel& tunnel, const Error& error) {
  Bucket& b = tunnel.bucket();
  std::erase(b.tunnels, &tunnel);
  loop.retire(std::unique_ptr<rt::Retirable>(&tunnel));
  Error told = error;
  if (told.reason == Reason::kOk) told.reason = Reason::kPoolDraining;
  // A CONNECT whose tunnel broke: the peer can at most have opened a connection that nothing was
  // sent on. One that had worked before is worth another try, a fresh one would fail again.
  const bool worked = tunnel.worked() && error.fault != Fault::kInternal;
  while (Call* call = tunnel.calls.head) {
    told.retry = Retry::kSafe;
    worked ? retry_or_fail(*call, told) : fail_now(*call, told);
  }
  // Those who wait hear of the failure unless somebody else is on the way for them.
  const bool hope = std::any_of(b.tunnels.begin(), b.tunnels.end(), [](ClientTunnel* t) {
    return t->starting() || t->open_for_calls();
  });
  if (!hope && !tunnel.worked()) {
    told.retry = Retry::kSafe;
    for (size_t n = b.waiting.size; n > 0 && b.waiting.head; --n) fail_now(*b.waiting.head, told);
  }
  if (b.waiting.head) dial_if_needed(b);
  drop_if_unused(b);
}

void TunnelPool::Impl::drop_if_unused(Bucket& b) {
  if (b.tunnels.empty() && !b.waiting.head) buckets.erase(TunnelTarget(b.target));
}

std::vector<ClientTunnel*> TunnelPool::Impl::all(std::string_view source) const {
  std::vector<ClientTunnel*> out;
  for (const auto& [target, b] : buckets)
    if (source.empty() || target.source == source)
      out.insert(out.end(), b->tunnels.begin(), b->tunnels.end());
  return out;
}

TunnelConnect::TunnelConnect() = default;
TunnelConnect::~TunnelConnect() { cancel(); }

void TunnelConnect::cancel() {
  if (!state_) return;
  Call& call = *state_;
  call.call = nullptr;
  state_ = nullptr;
  if (call.tunnel) call.tunnel->forget(call.stream);
  call.pool.release(call);
}

// --- the pool --------------------------------------------------------------------------------------

TunnelPool::TunnelPool(rt::Loop& loop, const HboneOptions& options, HboneStats& stats)
    : impl_(std::make_unique<Impl>(loop, options, stats)) {}

TunnelPool::~TunnelPool() { close(Reason::kShutdown); }

void TunnelPool::open(const TunnelTarget& target, const TunnelDial& dial, TunnelConnect& call,
                      MonoTime deadline) {
  Impl& p = *impl_;
  call.cancel();
  Bucket& b = p.bucket(target);
  auto* state = new Call(call, p, b);
  PoolAccess::set(call, state);
  state->deadline = deadline;
  if (target.expected.empty()) {
    p.fail_later(*state, {Reason::kPeerIdentityMismatch, Fault::kConfig, Retry::kNo,
                          "no identity is expected of " + target.address.to_string()});
    return p.drop_if_unused(b);
  }
  b.dial = dial;
  p.place(*state);
}

void TunnelPool::drain(std::string_view source) {
  for (ClientTunnel* t : impl_->all(source)) t->drain();
}

void TunnelPool::close(Reason reason, std::string_view source) {
  const Error error{reason, Fault::kInternal, Retry::kNo, "tunnels closed"};
  for (size_t n = impl_->failing.size; n > 0 && impl_->failing.head; --n)
    impl_->fail_now(*impl_->failing.head, Error(*impl_->failing.head->failed));
  std::vector<Call*> waiting;
  for (auto& [target, b] : impl_->buckets)
    if (source.empty() || target.source == source)
      for (Call* c = b->waiting.head; c; c = c->next) waiting.push_back(c);
  for (Call* c : waiting)
    if (c->call) impl_->fail_now(*c, error);
  for (ClientTunnel* t : impl_->all(source))
    if (!t->dead()) t->die(error);
}

WallTime TunnelPool::Impl::check(WallTime now) {
  WallTime next = WallTime::max();
  for (ClientTunnel* t : all({})) {
    if (!t->dead()) next = std::min(next, t->check_credential(now));
  }
  return next;
}

void TunnelPool::check_credentials() { impl_->watch.look(); }

void TunnelPool::check_roots(const std::shared_ptr<const TlsContext>& renewed) {
  for (ClientTunnel* t : impl_->all({})) {
    if (!t->dead()) t->check_root(renewed);
  }
}

size_t TunnelPool::tunnels() const { return impl_->all({}).size(); }

size_t TunnelPool::streams() const {
  size_t n = 0;
  for (const ClientTunnel* t : impl_->all({})) n += t->stream_count();
  return n;
}

std::vector<TunnelPool::Row> TunnelPool::rows() const {
  std::vector<Row> out;
  for (const auto& [target, b] : impl_->buckets)
    for (const ClientTunnel* t : b->tunnels)
      out.push_back({target.source, target.address, t->peer().identity, t->stream_count(),
                     t->draining()});
  return out;
}

}  // namespace meltemi::net
