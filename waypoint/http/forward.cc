#include "waypoint/http/forward.h"

#include <charconv>
#include <string>
#include <vector>

#include "waypoint/http/waypoints.h"

namespace meltemi::waypoint {
namespace {

// Fields that the Connection header of the message names, besides the standard ones.
class Nominated {
 public:
  explicit Nominated(const Fields& fields) {
    for (const Field f : fields) {
      if (f.name.size() != 10 || field_id(f.name) != FieldId::kConnection) continue;
      each_token(f.value, [this](std::string_view token) {
        const FieldId id = field_id(token);
        const bool standard = id == FieldId::kKeepAlive || id == FieldId::kUpgrade ||
                              id == FieldId::kTe || name_is(token, "close");
        if (standard) return true;
        if (count_ < std::size(names_)) {
          names_[count_++] = token;
        } else {
          more_.push_back(token);
        }
        return true;
      });
    }
  }
  bool has(std::string_view name) const {
    for (size_t i = 0; i < count_; ++i) {
      if (codec::equal_ignoring_case(names_[i], name)) return true;
    }
    for (const std::string_view other : more_) {
      if (codec::equal_ignoring_case(other, name)) return true;
    }
    return false;
  }

 private:
  std::string_view names_[16];
  size_t count_ = 0;
  std::vector<std::string_view> more_;  // no honest sender has any
};

// Belongs to one connection (RFC 9110 section 7.6.1).
bool hop_by_hop(FieldId id) {
  switch (id) {
    case FieldId::kConnection:
    case FieldId::kKeepAlive:
    case FieldId::kProxyConnection:
    case FieldId::kTe:
    case FieldId::kTransferEncoding:
    case FieldId::kUpgrade:
    case FieldId::kHttp2Settings: return true;
    default: return false;
  }
}

// What a client may not say about itself, or what this proxy says instead.
bool replaced(FieldId id, const ForwardInfo& info) {
  switch (id) {
    case FieldId::kXForwardedClientCert:
    case FieldId::kXEnvoy:
    case FieldId::kXIstio:
    case FieldId::kXMeltemi:
    case FieldId::kXForwardedFor:
    case FieldId::kProxyAuthorization: return true;
    case FieldId::kXForwardedProto:
    case FieldId::kXForwardedPort:
    case FieldId::kForwarded: return !info.believe_forwarded;
    case FieldId::kXForwardedHost: return !info.believe_forwarded || !info.forwarded_host.empty();
    case FieldId::kXRequestId: return !info.request_id.empty();
    case FieldId::kMaxForwards: return !info.max_forwards.empty();
    default: return false;
  }
}

// RFC 9110 section 10.1.1: without a body, or from HTTP/1.0, the expectation is void; an endpoint that
// heard of it would wait, or answer with a 100 that nobody asked for.
bool void_expectation(FieldId id, const RequestHead& head) {
  return id == FieldId::kExpect &&
         (head.framing == H1Framing::kNone || head.version == HttpVersion::kHttp10);
}

// Whether the client takes trailers: "trailers" among the values of TE.
bool takes_trailers(std::string_view te) {
  bool found = false;
  each_token(te, [&found](std::string_view t) { return !(found = name_is(t, "trailers")); });
  return found;
}

// RFC 9110 section 8.6: none of these has a Content-Length.
bool never_has_length(uint16_t status) { return status < 200 || status == 204; }

// Lower-cased names for HTTP/2; the scratch is the thread's.
std::string_view lower_name(std::string_view name) {
  if (!codec::has_upper_case(name)) return name;
  thread_local std::string scratch;
  scratch.assign(name);
  for (char& c : scratch) c = ascii_lower(c);
  return scratch;
}

std::string_view decimal(uint64_t n, char (&buffer)[20]) {
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, n).ptr;
  return {buffer, static_cast<size_t>(end - buffer)};
}

// Fields that both protocols get at the end.
void add_forwarding(const RequestHead& head, const ForwardInfo& info, Fields& out) {
  if (info.believe_forwarded && head.fields->has("x-forwarded-for")) {
    thread_local std::string joined;
    joined = head.fields->joined("x-forwarded-for");
    joined += ", ";
    joined += info.client_ip;
    out.add("x-forwarded-for", joined);
  } else {
    out.add("x-forwarded-for", info.client_ip);
  }
  if (!info.believe_forwarded || !head.fields->has("x-forwarded-proto")) {
    out.add("x-forwarded-proto", info.client_scheme);
  }
  if (!info.request_id.empty()) out.add("x-request-id", info.request_id);
  if (!info.forwarded_host.empty()) out.add("x-forwarded-host", info.forwarded_host);
  if (!info.original_path.empty()) out.add("x-envoy-original-path", info.original_path);
  if (!info.max_forwards.empty()) out.add("max-forwards", info.max_forwards);
  if (!info.waypoints.empty()) out.add(kWaypointsHeader, info.waypoints);
  if (info.attempt > 0) {
    char buffer[20];
    out.add("x-envoy-attempt-count", decimal(info.attempt, buffer));
  }
}

bool body_method(std::string_view m) { return m == "POST" || m == "PUT" || m == "PATCH"; }

}  // namespace

std::string_view version_text(HttpVersion version) {
  switch (version) {
    case HttpVersion::kHttp10: return "HTTP/1.0";
    case HttpVersion::kHttp2: return "HTTP/2";
    default: return "HTTP/1.1";
  }
}

void build_h1_request(const RequestHead& head, const ForwardInfo& info, Fields& out) {
  out.clear();
  const Nominated nominated(*head.fields);
  bool host = false, framed = false, trailers = false;
  const bool from_h1 = head.version != HttpVersion::kHttp2;
  if (!from_h1 || !head.fields->get("host")) {
    out.add("host", info.authority);
    host = true;
  }
  for (const Field f : *head.fields) {
    if (f.name.starts_with(':')) continue;
    const FieldId id = field_id(f.name);
    if (id == FieldId::kOther) [[likely]] {
      if (!nominated.has(f.name)) out.add(f.name, f.value);
      continue;
    }
    if (id == FieldId::kHost) {
      if (!host) out.add(f.name, info.authority);
      host = true;
      continue;
    }
    if (id == FieldId::kContentLength) {
      if (head.framing == H1Framing::kLength) out.add(f.name, f.value);
      framed = framed || head.framing == H1Framing::kLength;
      continue;
    }
    if (id == FieldId::kTransferEncoding && from_h1 && head.framing == H1Framing::kChunked) {
      if (!framed) out.add(f.name, "chunked");
      framed = true;
      continue;
    }
    if (id == FieldId::kTe) trailers = trailers || takes_trailers(f.value);
    if (id == FieldId::kTrailer && head.framing != H1Framing::kChunked) continue;
    if (hop_by_hop(id) || replaced(id, info) || void_expectation(id, head) ||
        nominated.has(f.name)) {
      continue;
    }
    out.add(f.name, f.value);
  }
  if (!framed && head.framing == H1Framing::kChunked) {
    out.add("transfer-encoding", "chunked");
  } else if (!framed && head.framing == H1Framing::kLength) {
    char buffer[20];
    out.add("content-length", decimal(head.content_length, buffer));
  } else if (!framed && !from_h1 && body_method(head.method)) {
    out.add("content-length", "0");
  }
  add_forwarding(head, info, out);
  if (head.websocket) {
    out.add("connection", "Upgrade");
    out.add("upgrade", "websocket");
  } else if (trailers) {  // RFC 9110 section 10.1.4
    out.add("te", "trailers");
    out.add("connection", "TE");
  }
}

void build_h2_request(const RequestHead& head, const ForwardInfo& info, Fields& out) {
  out.clear();
  out.add(":method", head.method);
  out.add(":scheme", head.scheme);
  out.add(":authority", info.authority);
  out.add(":path", info.target);
  const Nominated nominated(*head.fields);
  bool length = false, te = false;
  for (const Field f : *head.fields) {
    if (f.name.starts_with(':')) continue;
    const FieldId id = field_id(f.name);
    if (id == FieldId::kOther) [[likely]] {
      if (!nominated.has(f.name)) out.add(lower_name(f.name), f.value, f.never_indexed);
      continue;
    }
    if (id == FieldId::kHost) continue;
    if (id == FieldId::kTe) {
      if (takes_trailers(f.value) && !te) out.add("te", "trailers");
      te = te || takes_trailers(f.value);
      continue;
    }
    if (hop_by_hop(id) || replaced(id, info) || void_expectation(id, head) ||
        nominated.has(f.name)) {
      continue;
    }
    if (id == FieldId::kContentLength) length = true;
    out.add(lower_name(f.name), f.value, f.never_indexed);
  }
  if (!length && head.framing == H1Framing::kLength) {
    char buffer[20];
    out.add("content-length", decimal(head.content_length, buffer));
  }
  add_forwarding(head, info, out);
}

H1Framing response_framing(const ResponseHead& head, HttpVersion client) {
  if (head.no_body) return H1Framing::kNone;
  if (head.framing == H1Framing::kLength) return H1Framing::kLength;
  if (head.framing == H1Framing::kNone) return H1Framing::kNone;
  return client == HttpVersion::kHttp10 ? H1Framing::kUntilClose : H1Framing::kChunked;
}

void build_h1_response(const ResponseHead& head, H1Framing framing, AfterResponse after,
                       Fields& out) {
  out.clear();
  const Nominated nominated(*head.fields);
  bool framed = false, dated = head.status < 200 || head.date.empty();
  for (const Field f : *head.fields) {
    if (f.name.starts_with(':')) continue;
    const FieldId id = field_id(f.name);
    switch (id) {
      case FieldId::kContentLength:
        // A response to HEAD keeps the length that a GET would have had.
        if (never_has_length(head.status)) continue;
        if (framing == H1Framing::kLength || head.no_body) out.add(f.name, f.value);
        framed = framed || framing == H1Framing::kLength;
        continue;
      case FieldId::kTransferEncoding:
        if (framing == H1Framing::kChunked && !framed) out.add(f.name, "chunked");
        framed = framed || framing == H1Framing::kChunked;
        continue;
      case FieldId::kUpgrade:
        if (head.status == 101) out.add(f.name, f.value);
        continue;
      case FieldId::kTrailer:
        if (framing == H1Framing::kChunked) out.add(f.name, f.value);
        continue;
      case FieldId::kDate: dated = true; break;
      default: break;
    }
    if (hop_by_hop(id) || id == FieldId::kXEnvoy || nominated.has(f.name)) continue;
    out.add(f.name, f.value);
  }
  if (!framed && framing == H1Framing::kChunked) out.add("transfer-encoding", "chunked");
  if (!framed && framing == H1Framing::kLength) {
    char buffer[20];
    out.add("content-length", decimal(head.content_length, buffer));
  }
  if (framing == H1Framing::kNone && !head.no_body && head.status >= 200 && head.status != 204 &&
      head.status != 304) {
    out.add("content-length", "0");
  }
  if (!dated) out.add("date", head.date);
  if (head.status == 101) {
    out.add("connection", "Upgrade");
  } else if (after == AfterResponse::kClose) {
    out.add("connection", "close");
  } else if (after == AfterResponse::kKeepAlive10) {
    out.add("connection", "keep-alive");
  }
}

void build_h2_response(const ResponseHead& head, Fields& out) {
  out.clear();
  char buffer[20];
  out.add(":status", decimal(head.status, buffer));
  const Nominated nominated(*head.fields);
  bool dated = head.status < 200 || head.date.empty();
  for (const Field f : *head.fields) {
    if (f.name.starts_with(':')) continue;
    const FieldId id = field_id(f.name);
    if (id == FieldId::kContentLength && never_has_length(head.status)) continue;
    if (id == FieldId::kDate) dated = true;
    if (hop_by_hop(id) || id == FieldId::kXEnvoy || nominated.has(f.name)) continue;
    out.add(lower_name(f.name), f.value, f.never_indexed);
  }
  if (!dated) out.add("date", head.date);
}

namespace {

// What may not come in trailers: what frames or routes a message (RFC 9110 section 6.5.1), and what
// may not come from a client at all, which an endpoint that merges trailers would take for the head's.
bool no_trailer(FieldId id) {
  switch (id) {
    case FieldId::kHost:
    case FieldId::kContentLength:
    case FieldId::kTrailer:
    case FieldId::kExpect:
    case FieldId::kXRequestId: return true;
    default: return hop_by_hop(id) || is_proxys(id);
  }
}

}  // namespace

void build_trailers(const Fields& in, bool lower_case, Fields& out) {
  out.clear();
  for (const Field f : in) {
    const FieldId id = field_id(f.name);
    if (f.name.starts_with(':') || no_trailer(id)) continue;
    out.add(lower_case ? lower_name(f.name) : f.name, f.value, f.never_indexed);
  }
}

bool is_safe_method(std::string_view m) {
  return m == "GET" || m == "HEAD" || m == "OPTIONS" || m == "TRACE";
}

}  // namespace meltemi::waypoint
