// HTTP/1.x (RFC 9112) on llhttp: a pull parser for requests and responses, and the serializer.
// Keeps the case and order of headers. Strict, because a proxy that guesses where a message ends is
// how requests are smuggled: bare LF or CR, Content-Length together with Transfer-Encoding, more
// than one Content-Length, a bad chunk, white space before a colon, folded lines, control bytes, a
// missing or second Host (HTTP/1.1) are errors. HTTP/1.0 is accepted, without Host too.
//
// Sans-io. Body bytes are never copied nor kept: they are views into the input.
//
//   H1Parser parser(H1Role::kRequests, limits);
//   while (true) { H1Event e = parser.next(in); ... }   // kNeedMore: `in` is empty
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"
#include "userspace/codec/header_list.h"

namespace meltemi::codec {

enum class H1Role : uint8_t { kRequests, kResponses };

// What a peer may not exceed; the status is what a server answers.
#define MELTEMI_H1_LIMITS(X)                                                            \
  X(kHeadBytes, "h1_head_bytes", 431, "request line, status line, headers or trailers") \
  X(kHeaderCount, "h1_header_count", 431, "header fields or trailer fields")            \
  X(kTargetBytes, "h1_target_bytes", 414, "request target")                             \
  X(kChunkBytes, "h1_chunk_bytes", 400, "chunk size line with its extensions")
enum class H1Limit : uint8_t {
#define MELTEMI_H1_LIMIT_ENUM(id, text, status, meaning) id,
  MELTEMI_H1_LIMITS(MELTEMI_H1_LIMIT_ENUM)
#undef MELTEMI_H1_LIMIT_ENUM
};
std::string_view h1_limit_name(H1Limit limit);

struct H1Limits {
  uint32_t head_bytes = 60 * 1024;
  uint32_t header_count = 100;
  uint32_t target_bytes = 16 * 1024;
  uint32_t chunk_line_bytes = 256;
};

// How the body is delimited.
enum class H1Framing : uint8_t {
  kNone,
  kLength,
  kChunked,
  kUntilClose,  // responses only: the end of the connection ends the body
};

// The head of a message. Views and lists live in the parser and are valid until the kComplete of
// the message has been returned and next() is called again.
struct H1Head {
  std::string_view method;    // request: as sent, "GET"
  std::string_view target;    // request: as sent (origin, absolute, authority or asterisk form)
  uint16_t status = 0;        // response
  std::string_view reason;    // response
  uint8_t minor_version = 1;  // HTTP/1.x
  HeaderList headers;
  H1Framing framing = H1Framing::kNone;
  uint64_t content_length = 0;  // kLength
  // The connection can carry another message after this one (version, Connection header, framing).
  bool keep_alive = true;
  // Request: asks for an upgrade (Connection: upgrade with an Upgrade header) or is a CONNECT.
  // Response: 101, or 2xx to a CONNECT: the bytes after the head are no HTTP.
  bool upgrade = false;
  bool expect_continue = false;  // request with Expect: 100-continue
};

enum class H1EventKind : uint8_t {
  kNeedMore,  // all input is used
  kHead,  // head() is complete. 1xx responses (but 101) come as kHead and kComplete of their own
  kBody,  // `data`: the next bytes of the body
  kComplete,  // the message has ended; trailers() may have fields
  kUpgrade,   // comes instead of kComplete when the message turned the connection into a tunnel:
              // what is left in `in`, and all later bytes, are not HTTP. next() uses nothing more
  kError,     // malformed: answer `status` and close. See error()
};
struct H1Event {
  H1EventKind kind = H1EventKind::kNeedMore;
  ByteView data;
  uint16_t status = 0;  // kError: 400, 414, 417, 431, 501 or 505; for a bad response 502
};

class H1Parser {
 public:
  explicit H1Parser(H1Role role, const H1Limits& limits = H1Limits());
  ~H1Parser();
  H1Parser(H1Parser&&) noexcept;
  H1Parser& operator=(H1Parser&&) noexcept;

  // The next event in `in`, which is advanced by what was used. After kComplete the next message of
  // the connection follows (pipelining), unless keep_alive was false: then what comes is swallowed.
  // A request that asks for an upgrade ends in kUpgrade; its sender must wait, and so must what it
  // sends early: keep those bytes until the answer is known.
  H1Event next(ByteView& in);
  // The connection's end. kComplete when that ends a body (H1Framing::kUntilClose), kNeedMore when
  // nothing was open, kError when a message is cut off.
  H1Event finish();

  // Responses: what was asked, before the head of its response is parsed: a response to HEAD has no
  // body, a 2xx to CONNECT is a tunnel. Stays in force through 1xx responses.
  void expect_response_to(std::string_view method);
  // Requests: the upgrade did not happen. Between kHead and kUpgrade: the request ends in kComplete
  // like any other. After kUpgrade (the answer was not 101): what follows is HTTP again. No effect
  // on CONNECT before its kUpgrade.
  void decline_upgrade();

  const H1Head& head() const;
  H1Head& head();
  const HeaderList& trailers() const;
  const Error& error() const;  // kBadRequest, or kLimitExceeded with the limit's name
  // A message has begun and is not complete.
  bool in_message() const;
  // Between messages: gives the memory of the last head back.
  void release();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// --- writing -----------------------------------------------------------------------------------
// All append to `out`. Names and values are written exactly as given. The heads fail (kBadRequest)
// and leave `out` as it was when a method, target, name, value or reason has bytes that could end
// its line or field (CR, LF, NUL, space where there is none, a name that is no token): values may
// come from HTTP/2. They add no header of their own: framing headers are the caller's, see below.
Status append_request_head(std::string& out, std::string_view method, std::string_view target,
                           const HeaderList& headers, uint8_t minor_version = 1);
Status append_response_head(std::string& out, uint16_t status, std::string_view reason,
                            const HeaderList& headers, uint8_t minor_version = 1);
// Replaces Content-Length and Transfer-Encoding by what `framing` says. kUntilClose and kNone
// remove both.
void set_framing_headers(HeaderList& headers, H1Framing framing, uint64_t content_length);
// The bytes before a chunk of `size` > 0 bytes ("1f4\r\n"); after the chunk comes kChunkEnd.
size_t write_chunk_header(uint64_t size, std::span<uint8_t, 18> out);
inline constexpr std::string_view kChunkEnd = "\r\n";
// "0\r\n", trailers, "\r\n".
Status append_last_chunk(std::string& out, const HeaderList& trailers);
// The usual reason phrase, "OK" for 200; "" if there is none. Static storage.
std::string_view reason_phrase(uint16_t status);

}  // namespace meltemi::codec
