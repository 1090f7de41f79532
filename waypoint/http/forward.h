// The heads that go on: which fields of a message are forwarded, dropped, added or replaced, for each
// pair of protocols. Pure. Between HTTP/1 on both sides the case and order of fields stay as they
// were. Must never forward what belongs to one connection only, nor what a client claims that only a
// proxy of the mesh may say: identities, the way that a request came, instructions to proxies.
#pragma once

#include <cstdint>
#include <string_view>

#include "userspace/codec/h1.h"
#include "waypoint/http/field.h"

namespace meltemi::waypoint {

using codec::H1Framing;

enum class HttpVersion : uint8_t { kHttp10, kHttp11, kHttp2 };
std::string_view version_text(HttpVersion version);  // "HTTP/1.1"

// A request as its codec read it. Views live until the exchange is over.
struct RequestHead {
  std::string_view method;
  std::string_view target;     // as sent: origin form, absolute form, "*"
  std::string_view authority;  // :authority or Host, "" if an HTTP/1.0 client sent none
  std::string_view scheme = "http";
  const Fields* fields = nullptr;  // may begin with pseudo fields
  HttpVersion version = HttpVersion::kHttp11;
  H1Framing framing = H1Framing::kNone;  // kChunked also for HTTP/2 without Content-Length
  uint64_t content_length = 0;
  bool websocket = false;        // asks for it, by Upgrade or by RFC 8441
  bool grpc = false;
};

struct ResponseHead {
  uint16_t status = 0;
  std::string_view reason;
  const Fields* fields = nullptr;
  H1Framing framing = H1Framing::kNone;
  uint64_t content_length = 0;
  bool no_body = false;  // to HEAD, or 204, 304: framing fields are kept, no byte follows
  // For a final response that has no Date: who forwards or makes one dates it (RFC 9110 section
  // 6.6.1). "": no clock.
  std::string_view date;
};

// What goes into a forwarded request besides the client's own fields.
struct ForwardInfo {
  std::string_view target;      // normalised and rewritten
  std::string_view authority;   // rewritten or as sent
  std::string_view client_ip;   // goes into X-Forwarded-For
  std::string_view client_scheme = "http";  // of the client's connection: X-Forwarded-Proto
  std::string_view request_id;  // "": the client's own stays
  std::string_view original_path;   // "": not rewritten; else x-envoy-original-path
  std::string_view forwarded_host;  // "": none; else X-Forwarded-Host
  uint32_t attempt = 0;         // 0: not told
  std::string_view max_forwards;    // "": the client's own stays, if it sent one
  std::string_view waypoints;   // "": the endpoint is no waypoint; else X-Meltemi-Waypoints
  // The client is a proxy that we believe: its X-Forwarded-* and Forwarded go on. Else we are the
  // first to know where the request comes from, and they are replaced.
  bool believe_forwarded = false;
};

// `out` is replaced. For HTTP/1: Host included, framing as in `head`.
void build_h1_request(const RequestHead& head, const ForwardInfo& info, Fields& out);
// For HTTP/2: pseudo fields first, names in lower case.
void build_h2_request(const RequestHead& head, const ForwardInfo& info, Fields& out);

// How the connection to the client goes on after this response.
enum class AfterResponse : uint8_t { kDefault, kClose, kKeepAlive10 };
// `framing` is how the body will be sent to the client (kNone, kLength, kChunked, kUntilClose).
void build_h1_response(const ResponseHead& head, H1Framing framing, AfterResponse after,
                       Fields& out);
void build_h2_response(const ResponseHead& head, Fields& out);
// Framing of a response towards a client of this version.
H1Framing response_framing(const ResponseHead& head, HttpVersion client);

// Trailers without what may not be in them (framing, routing, hop-by-hop).
void build_trailers(const Fields& in, bool lower_case, Fields& out);

// Method that is safe in the sense of RFC 9110 section 9.2.1: repeating it harms nobody.
bool is_safe_method(std::string_view method);

}  // namespace meltemi::waypoint
