#include "waypoint/proxy/exchange.h"

#include <fmt/format.h>

#include <charconv>

#include "userspace/base/log.h"
#include "waypoint/http/local_reply.h"
#include "waypoint/http/waypoints.h"

namespace meltemi::waypoint {
namespace {

// "http://host/path" to its parts (RFC 9112 section 3.2.2: its host counts, not Host's); anything else
// stays as it is.
void split_absolute_form(RequestHead& head, Arena& arena) {
  if (head.version == HttpVersion::kHttp2 || head.target.starts_with('/')) return;
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (head.target.size() < scheme.size() ||
        !name_is(head.target.substr(0, scheme.size()), scheme)) {
      continue;
    }
    const std::string_view rest = head.target.substr(scheme.size());
    const size_t end = rest.find_first_of("/?");
    head.authority = rest.substr(0, end);
    if (end == std::string_view::npos) {  // RFC 9112 sections 3.2.1 and 3.2.4
      head.target = head.method == "OPTIONS" ? "*" : "/";
    } else {
      head.target = rest[end] == '/' ? rest.substr(end) : arena.join("/", rest.substr(end));
    }
    head.scheme = scheme.substr(0, scheme.size() - 3);
    return;
  }
}

int parse_grpc_status(std::string_view text) {
  int status = -1;
  std::from_chars(text.data(), text.data() + text.size(), status);
  return status;
}

MonoTime after(MonoTime now, Duration d) {
  return d > Duration::zero() ? now + d : MonoTime::max();
}

}  // namespace

const HttpChain* ClientInfo::chain(const Snapshot& snapshot, bool h2) const {
  const ListenerPtr* found = nullptr;
  if (listener.empty()) {
    found = snapshot.find_virtual(local);
  } else {
    for (const ListenerPtr& l : snapshot.bound_listeners) {
      if (l->name == listener) found = &l;
    }
  }
  if (!found) return nullptr;
  const FilterChain* chain = (*found)->chain_for(h2 ? Detected::kH2 : Detected::kHttp1);
  return chain ? chain->http() : nullptr;
}

ClientInfo ClientInfo::without_lease() const {
  ClientInfo c;
  c.identity = identity;
  c.remote = remote;
  c.local = local;
  c.remote_ip = remote_ip;
  c.security = security;
  c.source = source;
  c.listener = listener;
  c.waypoints = waypoints;
  c.believed = believed;
  return c;
}

Exchange::Exchange(ProxyWorker& worker) : worker_(worker), timer_(worker.loop(), *this) {}

Exchange::~Exchange() {
  if (active()) client_gone(Reason::kClientClosedEarly);
}

void Exchange::open(const RequestHead& head, ServerSide& server, const ClientInfo& client) {
  server_ = &server;
  client_ = &client;
  head_ = head;
  arena_.reset();
  route_ = nullptr;
  action_ = nullptr;
  choice_ = nullptr;
  retry_ = nullptr;
  cluster_ = nullptr;
  host_ = nullptr;
  side_ = nullptr;
  tried_.clear();
  body_.clear();
  trailers_.clear();
  state_ = State::kConnecting;
  request_complete_ = request_paused_ = response_paused_ = in_retry_ = counted_ = false;
  replayable_ = true;
  attempts_ = refusals_ = 0;
  status_ = 0;
  grpc_status_ = -1;
  received_ = sent_ = 0;
  started_ = last_active_ = worker_.now();
  total_deadline_ = try_deadline_ = backoff_until_ = MonoTime::max();
  queue_deadline_ = refused_until_ = MonoTime::max();
  idle_ = Duration::zero();
  upstream_time_ = Duration::zero();
  endpoint_.reset();
  target_ = Target{};
  view_ = RequestView{};
  plan_.info = ForwardInfo{};
  worker_.stats().requests.fetch_add(1, std::memory_order_relaxed);
}

void Exchange::start(const RequestHead& head, ServerSide& server, const ClientInfo& client) {
  open(head, server, client);
  snapshot_ = worker_.snapshot();
  const HttpChain* chain =
      snapshot_ ? client.chain(*snapshot_, head.version == HttpVersion::kHttp2) : nullptr;
  if (!chain) return reply(Reason::kNoRoute, "no listener for this destination");
  idle_ = chain->options.stream_idle;
  if (!normalise(*chain) || !authorize(chain->rbac, client.local) || !may_pass()) return;
  route(*chain);
}

void Exchange::refuse(const RequestHead& head, ServerSide& server, const ClientInfo& client,
                      uint16_t status, const Error& error) {
  open(head, server, client);
  request_complete_ = true;
  reply(error.reason, error.detail, status);
}

bool Exchange::normalise(const HttpChain& chain) {
  split_absolute_form(head_, arena_);
  std::string_view authority = head_.authority;
  if (authority.empty()) {  // HTTP/1.0: it means whom it has connected to
    if (head_.version != HttpVersion::kHttp10) {
      reply(Reason::kBadRequest, "host: missing");
      return false;
    }
    authority = head_.authority = arena_.copy(client_->local.to_string());
  }
  const auto host = normalise_host(authority, arena_);
  if (!host) {
    reply(host.error().reason, host.error().detail);
    return false;
  }
  const auto target = normalise_target(head_.target, chain.options.path, arena_);
  if (!target) {
    reply(target.error().reason, target.error().detail);
    return false;
  }
  if (target->path == "*" && (head_.method != "OPTIONS" || target->has_query)) {
    reply(Reason::kBadRequest, "target: \"*\" is for OPTIONS alone");
    return false;
  }
  target_ = *target;
  view_.method = head_.method;
  view_.scheme = head_.scheme;
  view_.authority = authority;
  view_.host = host->name;
  view_.port = host->port;
  view_.path = target_.path;
  view_.query = target_.query;
  view_.fields = head_.fields;
  view_.believed = client_->believed;
  return true;
}

bool Exchange::authorize(const std::vector<RbacFilter>& filters, const SocketAddress& destination) {
  if (filters.empty()) return true;
  model::PolicyInput input;
  input.source_ip = client_->remote.ip;
  input.identity = client_->identity.present() ? &client_->identity : nullptr;
  input.destination = destination;
  for (const RbacFilter& filter : filters) {
    if (!filter.has_shadow() || filter.check_shadow(input).allowed) continue;
    worker_.stats().shadow_denied.fetch_add(1, std::memory_order_relaxed);
  }
  const model::PolicyVerdict verdict = waypoint::authorize(filters, input);
  if (verdict.allowed) return true;
  reply(verdict.reason, verdict.detail());
  return false;
}

bool Exchange::may_pass() {
  const auto hops = max_forwards(head_);
  if (!hops) return true;
  if (*hops > 0) {
    plan_.info.max_forwards = arena_.copy(fmt::to_string(*hops - 1));
    return true;
  }
  const bool trace = head_.method == "TRACE";
  send_local(200, 0, trace ? traced(head_) : std::string(), {}, "message/http");
  complete(Reason::kDirectResponse, "max-forwards");
  return false;
}

bool Exchange::route(const HttpChain& chain) {
  if (!chain.routes) {
    reply(Reason::kNoRoute, "the route configuration has not been received", 503);
    return false;
  }
  if (target_.path == "*") {
    // The whole server is meant: whoever has its root answers. What is forwarded stays "*".
    RequestView root = view_;
    root.path = "/";
    route_ = chain.routes->find(root, arena_);
  } else {
    route_ = chain.routes->find(view_, arena_);
  }
  if (!route_) {
    reply(Reason::kNoRoute, "");
    return false;
  }
  if (const auto* direct = std::get_if<DirectAction>(&route_->action)) {
    send_local(direct->status, grpc_status_of_http(direct->status), direct->body, {});
    complete(Reason::kDirectResponse, "");
    return false;
  }
  if (const auto* redirect = std::get_if<RedirectAction>(&route_->action)) {
    reply_redirect(*redirect);
    return false;
  }
  return forward(std::get<ForwardAction>(route_->action), chain);
}

bool Exchange::forward(const ForwardAction& action, const HttpChain& chain) {
  action_ = &action;
  if (head_.websocket && !action.websocket.value_or(chain.options.websocket)) {
    head_.websocket = false;
  }
  choice_ = &action.choose(worker_.random().next());
  retry_ = action.retry ? &*action.retry : &RetryPolicy::safe_default();
  cluster_ = worker_.upstreams().find(choice_->cluster);
  if (!cluster_) {
    reply(Reason::kNoService, choice_->cluster.view(), action.not_found_status);
    return false;
  }
  // Another service than the client has asked for: its policies have not been asked yet.
  if (!authorize(cluster_->config().rbac, cluster_->config().service_address)) return false;
  if (const Status ok = cluster_->begin_request(); !ok) {
    reply(ok.error().reason, ok.error().detail);
    return false;
  }
  counted_ = true;
  idle_ = action.idle_timeout.value_or(idle_);
  if (!head_.websocket) {
    total_deadline_ = after(started_, effective_timeout(action, *head_.fields, head_.grpc));
  }
  ForwardInfo& info = plan_.info;
  info.target = rewritten_target(action, route_->path, target_, arena_);
  if (info.target.data() != target_.full.data()) info.original_path = target_.full;
  const std::string& host =
      choice_->host_rewrite.empty() ? action.host_rewrite : choice_->host_rewrite;
  info.authority = host.empty() ? view_.authority : std::string_view(host);
  if (!host.empty() && action.append_x_forwarded_host) info.forwarded_host = view_.authority;
  info.client_ip = client_->remote_ip;
  info.believe_forwarded = client_->believed;
  if (chain.options.generate_request_id && (chain.options.edge || !head_.fields->has("x-request-id"))) {
    worker_.make_request_id(request_id_);
    info.request_id = {request_id_.data(), request_id_.size()};
  }
  plan_.head = &head_;
  plan_.events = this;
  plan_.request_ops[0] = &choice_->request;
  plan_.request_ops[1] = &route_->request;
  switch (cluster_->config().protocol) {
    case UpstreamProtocol::kHttp1: plan_.h2 = false; break;
    case UpstreamProtocol::kHttp2: plan_.h2 = true; break;
    case UpstreamProtocol::kLikeDownstream: plan_.h2 = head_.version == HttpVersion::kHttp2; break;
  }
  if (head_.websocket) plan_.h2 = false;  // RFC 6455 to the endpoint, whatever the client spoke
  attempt();
  return active();
}

void Exchange::attempt() {
  backoff_until_ = MonoTime::max();
  ++attempts_;
  attempt_started_ = worker_.now();
  state_ = State::kConnecting;
  try_deadline_ = after(worker_.now(), retry_->per_try_timeout);
  if (route_->attempt_count) plan_.info.attempt = attempts_;
  const std::span<const uint64_t> avoid =
      retry_->avoid_previous_hosts ? std::span<const uint64_t>(tried_) : std::span<const uint64_t>();
  const auto host = cluster_->pick(
      avoid, client_->local,
      cluster_->config().client_affinity ? origin() : client_->remote.ip);
  if (!host) {
    host_ = nullptr;
    return reply(host.error().reason, host.error().detail);
  }
  if (!tell_waypoint(**host)) return;
  host_ = *host;
  host_->add_active(1);
  tried_.push_back(host_->id());
  auto side = host_->start(plan_);
  if (!side) {
    const Error error = side.error();
    AttemptFailure failure;
    failure.reason = error.reason;
    failure.detail = error.detail;
    failure.unprocessed = error.retry == Retry::kSafe;
    failure.connected = !failure.unprocessed;  // a limit, or a head that cannot be written: final
    return on_attempt_failed(failure);
  }
  if (!*side) queue_deadline_ = worker_.now() + worker_.shared().limits.queue_timeout;
  arm_timer();
  if (*side) on_attempt_started(**side, host_->endpoint().address);
}

// Where the request comes from: behind a proxy that is believed, what the first one of them saw.
IpAddress Exchange::origin() const {
  if (!client_->believed) return client_->remote.ip;
  std::optional<IpAddress> first;
  each_token(head_.fields->value("x-forwarded-for"), [&first](std::string_view token) {
    first = IpAddress::parse(token);
    return false;
  });
  return first.value_or(client_->remote.ip);
}

// An endpoint that is another waypoint hears where the request has been.
bool Exchange::tell_waypoint(Host& host) {
  plan_.info.waypoints = {};
  if (host.endpoint().waypoint.empty()) return true;
  const auto way = host.way(head_.fields->joined(kWaypointsHeader), client_->identity);
  if (way) {
    plan_.info.waypoints = arena_.copy(*way);
    return true;
  }
  reply(way.error().reason, way.error().detail);
  return false;
}

void Exchange::on_attempt_started(ClientSide& side, const SocketAddress& endpoint) {
  side_ = &side;
  endpoint_ = endpoint;
  queue_deadline_ = MonoTime::max();
  state_ = State::kSent;
  send_buffered();
}

void Exchange::send_buffered() {
  if (!may_send()) return;
  if (!body_.empty() && !side_->body(as_bytes(body_)) && !request_complete_) {
    request_paused_ = true;
    server_->pause_request(true);
  } else if (request_paused_) {
    request_paused_ = false;
    server_->pause_request(false);
  }
  if (!replayable_) {
    body_.clear();
    body_.shrink_to_fit();
  }
  if (request_complete_ || (head_.framing == H1Framing::kNone && !head_.websocket)) {
    side_->finish(trailers_.empty() ? nullptr : &trailers_);
  }
}

void Exchange::request_body(ByteView data) {
  received_ += data.size();
  last_active_ = worker_.now();
  if (!active()) return;
  const size_t limit = worker_.shared().limits.retry_buffer;
  if (replayable_ && body_.size() + data.size() > limit) replayable_ = false;
  if (may_send()) {
    if (replayable_) {
      body_.append(as_text(data));
    } else if (!body_.empty()) {
      body_.clear();
      body_.shrink_to_fit();
    }
    if (!side_->body(data) && !request_paused_) {
      request_paused_ = true;
      server_->pause_request(true);
    }
    return;
  }
  body_.append(as_text(data));  // no connection yet: the reader stops at the limit
  if (body_.size() >= limit && !request_paused_) {
    request_paused_ = true;
    server_->pause_request(true);
  }
}

void Exchange::request_end(const Fields& trailers) {
  request_complete_ = true;
  if (!active()) return;
  if (!trailers.empty()) build_trailers(trailers, plan_.h2, trailers_);
  if (may_send() && (head_.framing != H1Framing::kNone || head_.websocket)) {
    side_->finish(trailers_.empty() ? nullptr : &trailers_);
  }
}

bool Exchange::bad_body(uint16_t status, const Error& error) {
  if (!active() || state_ == State::kResponding || state_ == State::kTunnel) {
    client_gone(error.reason);
    return false;
  }
  reply(error.reason, error.detail, status);
  return true;
}

void Exchange::on_upstream_room() {
  if (!request_paused_) return;
  request_paused_ = false;
  server_->pause_request(false);
}

void Exchange::client_room() {
  if (!response_paused_) return;
  response_paused_ = false;
  if (side_) side_->pause_response(false);
}

void Exchange::client_gone(Reason reason) {
  if (!active()) return;
  drop_attempt();
  complete(reason, state_ == State::kResponding ? "while the response was sent" : "");
}

void Exchange::on_informational(const ResponseHead& head) { server_->informational(head); }

void Exchange::on_response(const ResponseHead& head, bool end) {
  last_active_ = worker_.now();
  upstream_time_ = worker_.now() - attempt_started_;
  const int grpc =
      head_.grpc ? parse_grpc_status(head.fields->value("grpc-status")) : -1;
  if (head.status >= 400 || grpc > 0) {
    AttemptOutcome outcome;
    outcome.status = head.status;
    outcome.grpc_status = grpc;
    outcome.headers = head.fields;
    if (try_again(outcome)) return;
  }
  // A retry that was needed and is not possible any more ends with what the endpoint said.
  try_deadline_ = MonoTime::max();
  status_ = head.status;
  grpc_status_ = grpc;
  ResponseHead out = head;
  out.date = worker_.http_date();
  if (!route_->response.empty() || !choice_->response.empty()) {
    response_ = *head.fields;
    choice_->response.apply(response_);
    route_->response.apply(response_);
    out.fields = &response_;
  }
  const bool tunnel = head.status == 101;
  state_ = tunnel ? State::kTunnel : State::kResponding;
  if (tunnel) total_deadline_ = MonoTime::max();
  server_->respond(out, end, tunnel);
  if (tunnel) {
    replayable_ = false;
    send_buffered();
  }
  if (end) {
    end_attempt();
    complete(Reason::kOk, "");
  }
}

void Exchange::on_response_body(ByteView data) {
  sent_ += data.size();
  last_active_ = worker_.now();
  if (!server_->body(data) && !response_paused_ && side_) {
    response_paused_ = true;
    side_->pause_response(true);
  }
}

void Exchange::on_response_end(const Fields* trailers) {
  end_attempt();
  if (trailers && !trailers->empty()) {
    if (head_.grpc) grpc_status_ = parse_grpc_status(trailers->value("grpc-status"));
    build_trailers(*trailers, head_.version == HttpVersion::kHttp2, response_);
    server_->finish(&response_);
  } else {
    server_->finish(nullptr);
  }
  complete(Reason::kOk, "");
}

void Exchange::on_attempt_failed(const AttemptFailure& failure) {
  const bool responding = state_ == State::kResponding || state_ == State::kTunnel;
  end_attempt();
  if (responding) {
    server_->abort(failure.reason);
    return complete(failure.reason, failure.detail);
  }
  if (failure.connected && failure.unprocessed && send_again()) return;
  AttemptOutcome outcome;
  outcome.request_sent = failure.request_sent;
  if (!failure.connected) {
    outcome.kind = AttemptOutcome::Kind::kConnectFailure;
  } else if (failure.unprocessed || (failure.reused && is_safe_method(head_.method))) {
    // A kept connection may have been closed by its other end while the request was on the way;
    // repeating a safe method then is what RFC 9110 section 9.2.2 allows a proxy.
    outcome.kind = AttemptOutcome::Kind::kUnprocessed;
  } else {
    outcome.kind = AttemptOutcome::Kind::kReset;
  }
  if (try_again(outcome)) return;
  reply(failure.reason, failure.detail);
}

// No retry in the sense of a policy or a budget: the endpoint said itself that it has done nothing (RFC
// 9113 section 8.7), mostly for want of room. Slower with each time, so that one which refuses
// everything is not pestered.
bool Exchange::send_again() {
  const MonoTime now = worker_.now();
  if (!replayable_ || now >= refused_until_) return false;
  if (refusals_++ == 0) refused_until_ = now + worker_.shared().limits.queue_timeout;
  worker_.stats().sent_again.fetch_add(1, std::memory_order_relaxed);
  --attempts_;
  state_ = State::kBackoff;
  try_deadline_ = MonoTime::max();
  backoff_until_ = now;
  if (refusals_ > 1) {
    backoff_until_ += retry_backoff(RetryPolicy::safe_default(), refusals_ - 1, worker_.random());
  }
  arm_timer();
  return true;
}

bool Exchange::try_again(const AttemptOutcome& outcome) {
  RetryState state;
  state.tried = attempts_;
  state.body_replayable = replayable_ && !head_.websocket;
  RetryVerdict verdict = decide_retry(*retry_, outcome, state, arena_);
  if (verdict == RetryVerdict::kNo && retry_ != &RetryPolicy::safe_default()) {
    // A policy adds to what is always safe, it does not take it away.
    verdict = decide_retry(RetryPolicy::safe_default(), outcome, state, arena_);
    if (retry_->retries == 0) verdict = RetryVerdict::kNo;
  }
  if (verdict != RetryVerdict::kYes) return false;
  if (!in_retry_) {
    if (!cluster_->begin_retry()) {
      worker_.stats().retry_budget_exhausted.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
    in_retry_ = true;
  }
  worker_.stats().retries.fetch_add(1, std::memory_order_relaxed);
  drop_attempt();
  state_ = State::kBackoff;
  try_deadline_ = MonoTime::max();
  backoff_until_ = worker_.now() + retry_backoff(*retry_, attempts_, worker_.random());
  arm_timer();
  return true;
}

// The attempt is over by itself: what counts for it is given back.
void Exchange::end_attempt() {
  side_ = nullptr;
  queue_deadline_ = MonoTime::max();
  if (!host_) return;
  destination_ = host_->peer();
  host_->add_active(-1);
  host_ = nullptr;
}

void Exchange::drop_attempt() {
  if (side_) {
    std::exchange(side_, nullptr)->cancel();
  } else if (host_) {
    host_->cancel(plan_);
  }
  end_attempt();
}

void Exchange::reply(Reason reason, std::string_view detail, uint16_t status) {
  drop_attempt();
  if (status == 0) status = status_of(reason);
  const std::string text(detail);  // may be a view into what ends here
  send_local(status, grpc_status_of(reason, status), reply_body(reason, text), {});
  complete(reason, text);
}

void Exchange::reply_redirect(const RedirectAction& action) {
  const std::string_view location =
      redirect_location(action, route_->path, view_, target_, arena_);
  send_local(action.status, grpc_status_of_http(action.status), {}, location);
  complete(Reason::kDirectResponse, "");
}

void Exchange::send_local(uint16_t status, int grpc_status, std::string_view body,
                          std::string_view location, std::string_view type) {
  status_ = status;
  response_.clear();
  ResponseHead head;
  head.fields = &response_;
  head.date = worker_.http_date();
  if (head_.grpc) {  // trailers-only: gRPC clients read nothing else
    head.status = 200;
    response_.add("content-type", "application/grpc");
    response_.add("grpc-status", fmt::to_string(grpc_status));
    grpc_status_ = grpc_status;
    if (!body.empty()) response_.add("grpc-message", grpc_message(body));
    return server_->respond(head, true, false);
  }
  head.status = status;
  if (!location.empty()) response_.add("location", location);
  if (!body.empty()) response_.add("content-type", type);
  if (status == 405) response_.add("allow", kAllowed);
  head.no_body = head_.method == "HEAD" || status == 204 || status == 304;
  head.framing = body.empty() ? H1Framing::kNone : H1Framing::kLength;
  head.content_length = body.size();
  if (route_) route_->response.apply(response_);
  const bool end = body.empty() || head.no_body;
  server_->respond(head, end, false);
  if (end) return;
  sent_ += body.size();
  server_->body(as_bytes(body));
  server_->finish(nullptr);
}

void Exchange::complete(Reason reason, std::string_view detail) {
  state_ = State::kDone;
  timer_.clear();
  if (in_retry_) cluster_->end_retry();
  if (counted_) cluster_->end_request();
  report(reason, detail);
  in_retry_ = counted_ = false;
  if (request_paused_) {  // the rest of the body is read and dropped by the codec
    request_paused_ = false;
    server_->pause_request(false);
  }
  if (body_.capacity() > 4096) {
    body_.clear();
    body_.shrink_to_fit();
  }
  snapshot_ = SnapshotRef();
}

MonoTime Exchange::idle_deadline() const {
  return idle_ > Duration::zero() && state_ != State::kBackoff ? last_active_ + idle_
                                                                : MonoTime::max();
}

void Exchange::arm_timer() {
  timer_.set(std::min({total_deadline_, try_deadline_, backoff_until_, queue_deadline_,
                       idle_deadline()}));
}

void Exchange::on_deadline() {
  if (!active()) return;
  const MonoTime now = worker_.now();
  const bool responding = state_ == State::kResponding || state_ == State::kTunnel;
  if (now >= total_deadline_ || now >= idle_deadline()) {
    const Reason reason =
        now >= total_deadline_ ? Reason::kRequestTimeout : Reason::kIdleTimeout;
    if (responding) {
      drop_attempt();
      server_->abort(reason);
      return complete(reason, "after the response had begun");
    }
    return reply(reason, reason == Reason::kIdleTimeout ? "stream_idle_timeout" : "timeout", 504);
  }
  if (now >= try_deadline_ && !responding) {
    AttemptOutcome outcome;
    outcome.kind = AttemptOutcome::Kind::kTimeout;
    if (!try_again(outcome)) reply(Reason::kRequestTimeout, "per_try_timeout");
    return;
  }
  if (now >= queue_deadline_) {
    worker_.stats().limit_hits.fetch_add(1, std::memory_order_relaxed);
    return reply(Reason::kLimitExceeded, "queue_timeout");
  }
  if (now >= backoff_until_) return attempt();
  arm_timer();
}

void Exchange::report(Reason reason, std::string_view detail) {
  if (!worker_.shared().http_metrics) return;
  telemetry::RequestInfo info;
  if (worker_.shared().access_log && telemetry::access_log_wanted(reason)) describe(info);
  info.security = client_->security;
  info.grpc = head_.grpc;
  info.source = client_->source;
  if (endpoint_) info.destination = destination_;
  if (cluster_) info.service = cluster_->service();
  telemetry::RequestReport report(*worker_.shared().http_metrics, worker_.shard(),
                                  std::move(info), started_);
  report.received(received_);
  report.sent(sent_);
  report.set_response(status_);
  if (grpc_status_ >= 0) report.set_grpc_status(fmt::to_string(grpc_status_));
  report.set_attempts(static_cast<int>(attempts_));
  report.upstream_time(upstream_time_);
  report.finish(reason, detail, worker_.now(), &worker_.series_cache());
}

void Exchange::describe(telemetry::RequestInfo& info) const {
  info.method = head_.method;
  info.path = target_.full.empty() ? head_.target : target_.full;
  info.authority = head_.authority;
  info.protocol = version_text(head_.version);
  info.request_id = plan_.info.request_id;
  if (head_.fields) {
    if (info.request_id.empty()) info.request_id = head_.fields->value("x-request-id");
    info.user_agent = head_.fields->value("user-agent");
    info.forwarded_for = head_.fields->value("x-forwarded-for");
  }
  if (route_) info.route = route_->name;
  if (choice_) info.cluster = choice_->cluster.str();
  info.downstream_remote = client_->remote;
  info.downstream_local = client_->local;
  info.upstream = endpoint_;
}

}  // namespace meltemi::waypoint
