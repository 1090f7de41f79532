#include "userspace/codec/h1.h"

#include <llhttp.h>

#include <algorithm>

namespace meltemi::codec {
namespace {

constexpr std::string_view kLimitNames[] = {
#define MELTEMI_H1_LIMIT_NAME(id, text, status, meaning) text,
    MELTEMI_H1_LIMITS(MELTEMI_H1_LIMIT_NAME)
#undef MELTEMI_H1_LIMIT_NAME
};
constexpr std::string_view kLimitMeanings[] = {
#define MELTEMI_H1_LIMIT_MEANING(id, text, status, meaning) meaning,
    MELTEMI_H1_LIMITS(MELTEMI_H1_LIMIT_MEANING)
#undef MELTEMI_H1_LIMIT_MEANING
};
constexpr uint16_t kLimitStatus[] = {
#define MELTEMI_H1_LIMIT_STATUS(id, text, status, meaning) status,
    MELTEMI_H1_LIMITS(MELTEMI_H1_LIMIT_STATUS)
#undef MELTEMI_H1_LIMIT_STATUS
};

// Fields that frame or route a message; in trailers they come too late to be honest.
bool forbidden_trailer(std::string_view name) {
  for (std::string_view bad : {"content-length", "transfer-encoding", "host", "connection",
                               "trailer", "te", "upgrade", "content-encoding", "authorization"})
    if (equal_ignoring_case(name, bad)) return true;
  return false;
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

// Printable ASCII without space; no fragment (RFC 9112 section 3.2).
bool valid_target(std::string_view target) {
  return !target.empty() && std::all_of(target.begin(), target.end(),
                                        [](char c) { return c > 0x20 && c < 0x7f && c != '#'; });
}

}  // namespace

std::string_view h1_limit_name(H1Limit limit) {
  return kLimitNames[static_cast<size_t>(limit)];
}

struct H1Parser::State {
  H1Role role;
  H1Limits limits;
  llhttp_t parser;

  std::string method, target, reason;  // behind the views of `head`
  std::string name, field;             // of the header being read
  H1Head head;
  HeaderList trailers;
  std::string expected_method;  // responses: of the request

  // What the callbacks found in this call of llhttp_execute().
  H1EventKind found = H1EventKind::kNeedMore;
  ByteView body;

  bool in_message = false;
  bool head_done = false;
  bool complete_told = false;  // kComplete was returned: its message dies with the next call
  bool resume = false;         // llhttp is paused and may go on without input
  bool upgraded = false;
  bool closed = false;  // the last message of the connection is over
  bool failed = false;
  Error error;
  uint16_t status = 0;

  uint32_t head_bytes = 0;       // of the head, or of the trailers
  uint32_t line_bytes = 0;       // of the chunk line
  char previous = 0;             // last byte of framing: CR must come before LF, and only there
  bool chunk_line_over = false;  // llhttp was paused right behind one
  bool start_line_begun = false, start_line_over = false;

  State(H1Role r, const H1Limits& l) : role(r), limits(l) {
    llhttp_init(&parser, r == H1Role::kRequests ? HTTP_REQUEST : HTTP_RESPONSE, &settings());
    parser.data = this;
  }

  static const llhttp_settings_t& settings();
  static State& of(llhttp_t* p) { return *static_cast<State*>(p->data); }

  // --- failing ---
  int fail_with(uint16_t answer, Reason why, std::string detail) {
    if (!failed) {
      failed = true;
      status = role == H1Role::kRequests ? answer : 502;
      error = Error{why, role == H1Role::kRequests ? Fault::kDownstream : Fault::kUpstream,
                    Retry::kNo, std::move(detail)};
    }
    return HPE_USER;
  }
  int bad(std::string detail, uint16_t answer = 400) {
    return fail_with(answer, Reason::kBadRequest, "HTTP/1: " + std::move(detail));
  }
  int limit_hit(H1Limit limit) {
    const auto i = static_cast<size_t>(limit);
    return fail_with(kLimitStatus[i], Reason::kLimitExceeded,
                     std::string(kLimitNames[i]) + ": " + std::string(kLimitMeanings[i]));
  }
  H1Event failure() const { return {H1EventKind::kError, {}, status}; }

  // --- callbacks of llhttp ---
  int append(std::string& to, const char* at, size_t n, uint32_t most, H1Limit limit) {
    if (to.size() + n > most) return limit_hit(limit);
    to.append(at, n);
    return 0;
  }
  int on_message_begin() {
    forget_message();
    in_message = true;
    return 0;
  }
  int on_header_complete();
  int on_headers_complete();
  int check_request();
  int check_response();
  int on_message_complete();

  void forget_message() {
    method.clear();
    target.clear();
    reason.clear();
    name.clear();
    field.clear();
    HeaderList kept = std::move(head.headers);  // its memory serves the next message
    kept.clear();
    head = H1Head{};
    head.headers = std::move(kept);
    trailers.clear();
    head_done = false;
    complete_told = false;
    line_bytes = 0;
  }

  const char* line_fault(ByteView framing) const;
  bool start_line_good(ByteView framing);
  bool check_framing_bytes(ByteView framing);
  H1Event execute(ByteView& in);
  H1Event explain(llhttp_errno_t code);
};

int H1Parser::State::on_header_complete() {
  const bool trailing = (parser.flags & F_TRAILING) != 0;
  HeaderList& list = trailing ? trailers : head.headers;
  if (list.size() >= limits.header_count) return limit_hit(H1Limit::kHeaderCount);
  if (list.bytes() + name.size() + field.size() > limits.head_bytes)
    return limit_hit(H1Limit::kHeadBytes);
  if (!valid_header_name(name)) return bad("a header name that is no token");
  const std::string_view value = trim(field);
  if (!valid_header_value(value)) return bad("control bytes in a header value");
  if (trailing && forbidden_trailer(name)) return bad("a trailer that belongs into the head");
  list.add(name, value);
  name.clear();
  field.clear();
  return 0;
}

int H1Parser::State::check_request() {
  if (!valid_target(target)) return bad("malformed request target");
  const HeaderList& h = head.headers;
  const size_t hosts = h.count("host");
  if (hosts > 1) return bad("more than one Host header");
  if (hosts == 0 && head.minor_version == 1) return bad("HTTP/1.1 request without a Host header");
  if (const auto expect = h.get("expect"); expect && head.minor_version == 1) {
    if (!equal_ignoring_case(*expect, "100-continue")) return bad("unknown expectation", 417);
    head.expect_continue = true;
  }
  head.upgrade = parser.upgrade != 0;
  if (head.upgrade && head.minor_version == 0 && parser.method != HTTP_CONNECT) {
    head.upgrade = false;  // RFC 9110 section 7.8: a server ignores it in HTTP/1.0
    parser.upgrade = 0;
  }
  if (parser.method == HTTP_CONNECT && (h.has("content-length") || h.has("transfer-encoding")))
    return bad("CONNECT with a body");
  return 0;
}

int H1Parser::State::check_response() {
  if (head.status < 100 || head.status > 999) return bad("a status that is not three digits");
  const bool connected = expected_method == "CONNECT" && head.status / 100 == 2;
  if (head.status == 101 || connected) {
    head.upgrade = true;
    parser.upgrade = 1;
    parser.flags |= F_SKIPBODY;
  } else {
    parser.upgrade = 0;
  }
  // No body whatever the headers say (RFC 9112 section 6.3).
  if (head.status / 100 == 1 || head.status == 204 || head.status == 304 ||
      expected_method == "HEAD")
    parser.flags |= F_SKIPBODY;
  return 0;
}

int H1Parser::State::on_headers_complete() {
  if (parser.http_major != 1 || parser.http_minor > 1) return bad("unsupported HTTP version", 505);
  head.minor_version = parser.http_minor;
  head.method = method;
  head.target = target;
  head.reason = reason;
  head.status = parser.status_code;
  const HeaderList& h = head.headers;
  if (h.has("transfer-encoding")) {
    // Anything but one "chunked" is a transformation that we do not undo.
    if (head.minor_version == 0) return bad("Transfer-Encoding in HTTP/1.0");
    if (h.count("transfer-encoding") > 1 ||
        !equal_ignoring_case(h.value("transfer-encoding"), "chunked"))
      return bad("unsupported Transfer-Encoding", 501);
    if (h.has("content-length")) return bad("Content-Length with Transfer-Encoding");
  }
  if (h.count("content-length") > 1) return bad("more than one Content-Length");
  if (const int e = role == H1Role::kRequests ? check_request() : check_response(); e != 0)
    return e;

  const bool no_body = (parser.flags & F_SKIPBODY) != 0;
  if (no_body) {
    head.framing = H1Framing::kNone;
  } else if ((parser.flags & F_CHUNKED) != 0) {
    head.framing = H1Framing::kChunked;
  } else if ((parser.flags & F_CONTENT_LENGTH) != 0) {
    head.framing = H1Framing::kLength;
    head.content_length = parser.content_length;
  } else if (role == H1Role::kResponses) {
    head.framing = H1Framing::kUntilClose;
  }
  head.keep_alive = llhttp_should_keep_alive(&parser) != 0;
  head_done = true;
  found = H1EventKind::kHead;
  return HPE_PAUSED;
}

int H1Parser::State::on_message_complete() {
  in_message = false;
  if (parser.upgrade != 0) return 0;  // HPE_PAUSED_UPGRADE follows at once
  found = H1EventKind::kComplete;
  return HPE_PAUSED;
}

const llhttp_settings_t& H1Parser::State::settings() {
  static const llhttp_settings_t s = [] {
    llhttp_settings_t t;
    llhttp_settings_init(&t);
    t.on_message_begin = [](llhttp_t* p) { return of(p).on_message_begin(); };
    t.on_method = [](llhttp_t* p, const char* at, size_t n) {
      return of(p).append(of(p).method, at, n, 64, H1Limit::kHeadBytes);
    };
    t.on_url = [](llhttp_t* p, const char* at, size_t n) {
      State& s = of(p);
      return s.append(s.target, at, n, s.limits.target_bytes, H1Limit::kTargetBytes);
    };
    t.on_status = [](llhttp_t* p, const char* at, size_t n) {
      State& s = of(p);
      return s.append(s.reason, at, n, s.limits.head_bytes, H1Limit::kHeadBytes);
    };
    t.on_header_field = [](llhttp_t* p, const char* at, size_t n) {
      State& s = of(p);
      return s.append(s.name, at, n, s.limits.head_bytes, H1Limit::kHeadBytes);
    };
    t.on_header_value = [](llhttp_t* p, const char* at, size_t n) {
      State& s = of(p);
      return s.append(s.field, at, n, s.limits.head_bytes, H1Limit::kHeadBytes);
    };
    t.on_header_value_complete = [](llhttp_t* p) { return of(p).on_header_complete(); };
    t.on_headers_complete = [](llhttp_t* p) { return of(p).on_headers_complete(); };
    t.on_body = [](llhttp_t* p, const char* at, size_t n) -> int {
      if (n == 0) return 0;
      of(p).found = H1EventKind::kBody;
      of(p).body = as_bytes({at, n});
      return HPE_PAUSED;
    };
    t.on_chunk_header = [](llhttp_t* p) -> int {
      of(p).chunk_line_over = true;  // what follows is counted by itself
      return HPE_PAUSED;
    };
    t.on_message_complete = [](llhttp_t* p) { return of(p).on_message_complete(); };
    return t;
  }();
  return s;
}

// Lines end in CR LF and nothing else, and begin with something: what one parser takes for a line's
// end and another for a part of it is how requests are smuggled. Returns what is wrong, or nullptr.
const char* H1Parser::State::line_fault(ByteView framing) const {
  const uint8_t* const begin = framing.data();
  const uint8_t* const end = begin + framing.size();
  auto white = [](uint8_t c) { return c == ' ' || c == '\t'; };
  constexpr const char* kBareLf = "a line that ends in LF alone";
  constexpr const char* kBareCr = "CR without LF";
  constexpr const char* kWhite = "a line that begins with white space";
  if (*begin == '\n' && previous != '\r') return kBareLf;
  if (*begin != '\n' && previous == '\r') return kBareCr;
  if (white(*begin) && previous == '\n') return kWhite;
  auto find = [end](const uint8_t* from, int c) {
    return static_cast<const uint8_t*>(memchr(from, c, static_cast<size_t>(end - from)));
  };
  for (const uint8_t* p = begin; p != end && (p = find(p, '\r')) != nullptr; ++p)
    if (p + 1 != end && p[1] != '\n') return kBareCr;
  for (const uint8_t* p = begin; p != end && (p = find(p, '\n')) != nullptr; ++p) {
    if (p != begin && p[-1] != '\r') return kBareLf;
    if (p + 1 != end && white(p[1])) return kWhite;
  }
  return nullptr;
}

// The request line has exactly two spaces; llhttp takes more.
bool H1Parser::State::start_line_good(ByteView framing) {
  char before = previous;
  for (const uint8_t c : framing) {
    if (c == ' ' && before == ' ') return false;
    if (c != '\r' && c != '\n') {
      start_line_begun = true;
    } else if (c == '\n' && start_line_begun) {
      start_line_over = true;
      return true;
    }
    before = static_cast<char>(c);
  }
  return true;
}

// Looks at what llhttp took for structure. False: the parser has failed.
bool H1Parser::State::check_framing_bytes(ByteView framing) {
  if (framing.empty()) return true;
  if (const char* fault = line_fault(framing)) return bad(fault), false;
  if (!start_line_over && role == H1Role::kRequests && !start_line_good(framing))
    return bad("more than one space in the request line"), false;
  previous = static_cast<char>(framing.back());
  const bool in_chunk_line =
      chunk_line_over ||
      (head_done && in_message && (parser.flags & F_TRAILING) == 0 && found != H1EventKind::kHead);
  uint32_t& count = in_chunk_line ? line_bytes : head_bytes;
  count += static_cast<uint32_t>(framing.size());
  if (line_bytes > limits.chunk_line_bytes) return limit_hit(H1Limit::kChunkBytes), false;
  if (head_bytes > limits.head_bytes) return limit_hit(H1Limit::kHeadBytes), false;
  if (chunk_line_over) line_bytes = 0;
  return true;
}

H1Event H1Parser::State::explain(llhttp_errno_t code) {
  switch (code) {
    case HPE_INVALID_VERSION:
      bad("unsupported HTTP version", 505);
      break;
    case HPE_INVALID_TRANSFER_ENCODING:
      bad("unsupported Transfer-Encoding", head_done ? 400 : 501);
      break;
    default: {
      const char* why = llhttp_get_error_reason(&parser);
      bad(why != nullptr && *why != '\0' ? why : llhttp_errno_name(code));
    }
  }
  return failure();
}

// One run of llhttp: up to the next event, or all of `in`.
H1Event H1Parser::State::execute(ByteView& in) {
  static const char kNothing = 0;
  const char* begin = in.empty() ? &kNothing : reinterpret_cast<const char*>(in.data());
  found = H1EventKind::kNeedMore;
  resume = chunk_line_over = false;
  const llhttp_errno_t code = llhttp_execute(&parser, begin, in.size());
  if (failed) return failure();
  const bool paused = code == HPE_PAUSED || code == HPE_PAUSED_UPGRADE;
  if (code != HPE_OK && !paused) return explain(code);
  const size_t used =
      paused ? static_cast<size_t>(llhttp_get_error_pos(&parser) - begin) : in.size();
  const size_t body_size = found == H1EventKind::kBody ? body.size() : 0;
  if (!check_framing_bytes(in.first(used - body_size))) return failure();
  if (body_size != 0) {
    line_bytes = 0;
    previous = 0;
  }
  in = in.subspan(used);
  if (code == HPE_PAUSED_UPGRADE || found == H1EventKind::kComplete)
    start_line_begun = start_line_over = false;
  if (code == HPE_PAUSED_UPGRADE) {
    upgraded = true;
    return {H1EventKind::kUpgrade, {}, 0};
  }
  if (code == HPE_PAUSED) {
    llhttp_resume(&parser);
    resume = true;
  }
  if (found == H1EventKind::kHead) head_bytes = 0;  // the trailers have a budget of their own
  if (found == H1EventKind::kComplete) {
    complete_told = true;
    head_bytes = 0;
    if (!head.keep_alive) closed = true;
  }
  return {found, found == H1EventKind::kBody ? body : ByteView(), 0};
}

H1Parser::H1Parser(H1Role role, const H1Limits& limits)
    : state_(std::make_unique<State>(role, limits)) {}
H1Parser::~H1Parser() = default;
H1Parser::H1Parser(H1Parser&&) noexcept = default;
H1Parser& H1Parser::operator=(H1Parser&&) noexcept = default;

H1Event H1Parser::next(ByteView& in) {
  State& s = *state_;
  if (s.failed) return s.failure();
  if (s.upgraded) return {};
  if (s.closed) {
    in = in.subspan(in.size());
    return {};
  }
  while (!in.empty() || s.resume) {
    const H1Event e = s.execute(in);
    if (e.kind != H1EventKind::kNeedMore) return e;
  }
  return {};
}

H1Event H1Parser::finish() {
  State& s = *state_;
  if (s.failed) return s.failure();
  if (s.upgraded || s.closed) return {};
  ByteView none;
  if (s.resume) {
    const H1Event e = s.execute(none);
    if (e.kind != H1EventKind::kNeedMore) return e;
  }
  s.found = H1EventKind::kNeedMore;
  const llhttp_errno_t code = llhttp_finish(&s.parser);
  s.closed = true;
  if (s.found == H1EventKind::kComplete) return {H1EventKind::kComplete, {}, 0};
  if (code != HPE_OK) {
    s.bad("the message is cut off");
    return s.failure();
  }
  return {};
}

void H1Parser::expect_response_to(std::string_view method) {
  state_->expected_method = method;
}

void H1Parser::decline_upgrade() {
  State& s = *state_;
  if (s.upgraded) {
    s.upgraded = false;
    s.complete_told = true;
    s.head_bytes = 0;
    llhttp_resume_after_upgrade(&s.parser);
    if (!s.head.keep_alive) s.closed = true;
  } else if (s.parser.method != HTTP_CONNECT) {
    s.parser.upgrade = 0;
  }
}

const H1Head& H1Parser::head() const {
  return state_->head;
}
H1Head& H1Parser::head() {
  return state_->head;
}
const HeaderList& H1Parser::trailers() const {
  return state_->trailers;
}
const Error& H1Parser::error() const {
  return state_->error;
}
bool H1Parser::in_message() const {
  return state_->in_message;
}

void H1Parser::release() {
  State& s = *state_;
  if (s.in_message) return;
  s.head = H1Head{};
  s.head.headers.release();
  s.trailers.release();
  for (std::string* text : {&s.method, &s.target, &s.reason, &s.name, &s.field})
    std::string().swap(*text);
}

// --- writing -----------------------------------------------------------------------------------

namespace {

std::unexpected<Error> unwritable(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "HTTP/1: " + std::move(detail));
}

Status append_fields(std::string& out, const HeaderList& headers) {
  for (const HeaderField f : headers) {
    if (!valid_header_name(f.name)) return unwritable("a header name that is no token");
    if (!valid_header_value(f.value)) return unwritable("a header value that would break its line");
    out.append(f.name).append(": ").append(f.value).append("\r\n");
  }
  return {};
}

}  // namespace

Status append_request_head(std::string& out, std::string_view method, std::string_view target,
                           const HeaderList& headers, uint8_t minor_version) {
  if (!valid_header_name(method)) return unwritable("a method that is no token");
  if (!valid_target(target)) return unwritable("malformed request target");
  const size_t before = out.size();
  out.reserve(before + method.size() + target.size() + headers.bytes() + 4 * headers.size() + 16);
  out.append(method).append(" ").append(target);
  out.append(minor_version == 0 ? " HTTP/1.0\r\n" : " HTTP/1.1\r\n");
  if (auto fields = append_fields(out, headers); !fields) {
    out.resize(before);
    return fields;
  }
  out.append("\r\n");
  return {};
}

Status append_response_head(std::string& out, uint16_t status, std::string_view reason,
                            const HeaderList& headers, uint8_t minor_version) {
  if (status < 100 || status > 999) return unwritable("a status that is not three digits");
  if (!reason.empty() && !valid_header_value(trim(reason)))
    return unwritable("a reason phrase that would break its line");
  const size_t before = out.size();
  out.reserve(before + reason.size() + headers.bytes() + 4 * headers.size() + 16);
  out.append(minor_version == 0 ? "HTTP/1.0 " : "HTTP/1.1 ");
  out.append(std::to_string(status)).append(" ").append(reason).append("\r\n");
  if (auto fields = append_fields(out, headers); !fields) {
    out.resize(before);
    return fields;
  }
  out.append("\r\n");
  return {};
}

void set_framing_headers(HeaderList& headers, H1Framing framing, uint64_t content_length) {
  if (framing != H1Framing::kChunked) headers.remove("transfer-encoding");
  if (framing != H1Framing::kLength) headers.remove("content-length");
  if (framing == H1Framing::kChunked) headers.set("Transfer-Encoding", "chunked");
  if (framing == H1Framing::kLength) headers.set("Content-Length", std::to_string(content_length));
}

size_t write_chunk_header(uint64_t size, std::span<uint8_t, 18> out) {
  constexpr char kHex[] = "0123456789abcdef";
  int shift = 60;
  while (shift > 0 && (size >> shift) == 0) shift -= 4;
  size_t n = 0;
  for (; shift >= 0; shift -= 4) out[n++] = static_cast<uint8_t>(kHex[size >> shift & 15]);
  out[n++] = '\r';
  out[n++] = '\n';
  return n;
}

Status append_last_chunk(std::string& out, const HeaderList& trailers) {
  const size_t before = out.size();
  out.append("0\r\n");
  if (auto fields = append_fields(out, trailers); !fields) {
    out.resize(before);
    return fields;
  }
  out.append("\r\n");
  return {};
}

std::string_view reason_phrase(uint16_t status) {
  struct Phrase {
    uint16_t status;
    std::string_view text;
  };
  // IANA's registry, in order.
  static constexpr Phrase kPhrases[] = {{100, "Continue"},
                                        {101, "Switching Protocols"},
                                        {102, "Processing"},
                                        {103, "Early Hints"},
                                        {200, "OK"},
                                        {201, "Created"},
                                        {202, "Accepted"},
                                        {203, "Non-Authoritative Information"},
                                        {204, "No Content"},
                                        {205, "Reset Content"},
                                        {206, "Partial Content"},
                                        {207, "Multi-Status"},
                                        {208, "Already Reported"},
                                        {226, "IM Used"},
                                        {300, "Multiple Choices"},
                                        {301, "Moved Permanently"},
                                        {302, "Found"},
                                        {303, "See Other"},
                                        {304, "Not Modified"},
                                        {307, "Temporary Redirect"},
                                        {308, "Permanent Redirect"},
                                        {400, "Bad Request"},
                                        {401, "Unauthorized"},
                                        {402, "Payment Required"},
                                        {403, "Forbidden"},
                                        {404, "Not Found"},
                                        {405, "Method Not Allowed"},
                                        {406, "Not Acceptable"},
                                        {407, "Proxy Authentication Required"},
                                        {408, "Request Timeout"},
                                        {409, "Conflict"},
                                        {410, "Gone"},
                                        {411, "Length Required"},
                                        {412, "Precondition Failed"},
                                        {413, "Content Too Large"},
                                        {414, "URI Too Long"},
                                        {415, "Unsupported Media Type"},
                                        {416, "Range Not Satisfiable"},
                                        {417, "Expectation Failed"},
                                        {421, "Misdirected Request"},
                                        {422, "Unprocessable Content"},
                                        {423, "Locked"},
                                        {424, "Failed Dependency"},
                                        {425, "Too Early"},
                                        {426, "Upgrade Required"},
                                        {428, "Precondition Required"},
                                        {429, "Too Many Requests"},
                                        {431, "Request Header Fields Too Large"},
                                        {451, "Unavailable For Legal Reasons"},
                                        {500, "Internal Server Error"},
                                        {501, "Not Implemented"},
                                        {502, "Bad Gateway"},
                                        {503, "Service Unavailable"},
                                        {504, "Gateway Timeout"},
                                        {505, "HTTP Version Not Supported"},
                                        {506, "Variant Also Negotiates"},
                                        {507, "Insufficient Storage"},
                                        {508, "Loop Detected"},
                                        {511, "Network Authentication Required"}};
  const auto* p = std::lower_bound(std::begin(kPhrases), std::end(kPhrases), status,
                                   [](const Phrase& a, uint16_t b) { return a.status < b; });
  return p != std::end(kPhrases) && p->status == status ? p->text : "";
}

}  // namespace meltemi::codec
