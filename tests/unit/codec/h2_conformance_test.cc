// What RFC 9113 demands of an endpoint, one case a line: bytes in, our reaction out. Each case is
// fed whole and byte by byte. The sections are those of RFC 9113.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "userspace/codec/h2.h"
#include "userspace/codec/h2_frame.h"

namespace meltemi::codec {
namespace {

using namespace std::string_literals;
using namespace h2;

const MonoTime kStart{std::chrono::hours(1)};

std::string frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string out(9, '\0');
  write_frame_header(reinterpret_cast<uint8_t*>(out.data()), static_cast<uint32_t>(payload.size()),
                     type, flags, stream);
  return out + std::string(payload);
}
std::string be32(uint32_t v) {
  std::string s(4, '\0');
  store_be(reinterpret_cast<uint8_t*>(s.data()), v);
  return s;
}
std::string setting(uint16_t id, uint32_t value) {
  return std::string{static_cast<char>(id >> 8), static_cast<char>(id)} + be32(value);
}
std::string literal(std::string_view n, std::string_view v) {
  return "\0"s + static_cast<char>(n.size()) + std::string(n) + static_cast<char>(v.size()) +
         std::string(v);
}

const std::string kNoSettings = frame(kSettings, 0, 0, "");
const std::string kPing8 = frame(kPing, 0, 0, "12345678");
// GET http a /
const std::string kGetBlock = "\x82\x86\x84" + literal(":authority", "a");
const std::string kPostBlock = "\x83\x86\x84" + literal(":authority", "a");
constexpr uint8_t kEnd = kFlagEndStream, kWhole = kFlagEndHeaders;

std::string get(uint32_t id = 1, std::string_view extra = "") {
  return frame(kHeaders, kEnd | kWhole, id, kGetBlock + std::string(extra));
}
std::string post(uint32_t id = 1, std::string_view extra = "") {
  return frame(kHeaders, kWhole, id, kPostBlock + std::string(extra));
}
std::string request(std::string_view block) {
  return frame(kHeaders, kEnd | kWhole, 1, block);
}
std::string ok(uint8_t flags = kWhole, std::string_view extra = "") {
  return frame(kHeaders, flags, 1, "\x88" + std::string(extra));
}

struct Reaction {
  std::optional<uint32_t> goaway;  // its code
  std::optional<uint32_t> reset;   // of stream 1 (or the first that was reset)
  bool pong = false;               // the PING behind the case was answered
  std::string told;                // what the handler heard

  std::string text() const {
    if (goaway) return "GOAWAY " + std::string(h2_code_name(*goaway));
    if (!pong) return "no answer";
    if (reset) return "RST " + std::string(h2_code_name(*reset));
    return "fine";
  }
};

struct End : H2Handler, H2Sink {
  H2Session session;
  std::string out, told;
  explicit End(H2Role role, const H2Options& o) : session(role, *this, o) {}
  void append(ByteView piece) override { out += as_text(piece); }
  void on_head(uint32_t, HeaderList& h, bool end) override { told += end ? "H" : "h"; }
  void on_informational(uint32_t, const HeaderList&) override { told += 'i'; }
  void on_data(uint32_t id, ByteView d) override {
    for (size_t i = 0; i < d.size(); ++i) told += 'd';
    session.consume(id, d.size());
  }
  void on_end(uint32_t, const HeaderList& t) override { told += t.empty() ? 'e' : 't'; }
  void on_closed(uint32_t, uint32_t, bool unprocessed) override { told += unprocessed ? 'u' : 'c'; }
};

struct Nobody : H2Body {
  Ready ready(size_t) override { return {}; }
  void take(size_t, H2Sink&) override {}
};

// `bytes` follow the preface and SETTINGS of the peer; a client has sent one GET on stream 1.
Reaction run(H2Role role, const std::string& bytes, size_t step, bool hello = true,
             bool head = false) {
  Nobody nobody;
  End end(role, {});
  if (role == H2Role::kClient) {
    HeaderList h;
    for (auto [n, v] : {std::pair{":method", head ? "HEAD" : "GET"},
                        {":scheme", "http"},
                        {":authority", "a"},
                        {":path", "/"}})
      h.add(n, v);
    EXPECT_EQ(end.session.request(h, &nobody).value(), 1u);
  }
  while (end.session.flush(end, 1 << 20)) {
  }
  end.out.clear();
  std::string in =
      hello ? (role == H2Role::kServer ? std::string(kPreface) : "") + kNoSettings : "";
  in += bytes + (hello ? kPing8 : "");
  for (size_t i = 0; i < in.size(); i += step)
    if (!end.session.receive(as_bytes(in).subspan(i, std::min(step, in.size() - i)), kStart)) break;
  while (end.session.flush(end, 1 << 20)) {
  }
  Reaction r;
  r.told = end.told;
  for (size_t at = 0; at + 9 <= end.out.size();) {
    const auto* p = reinterpret_cast<const uint8_t*>(end.out.data()) + at;
    const FrameHeader f = h2::read_frame_header(p);
    if (f.type == kGoaway) r.goaway = load_be<uint32_t>(p + 13);
    if (f.type == kRstStream && !r.reset) r.reset = load_be<uint32_t>(p + 9);
    if (f.type == kPing && f.has(kFlagAck)) r.pong = true;
    at += 9 + f.length;
  }
  EXPECT_EQ(r.goaway.has_value(), end.session.failure() != nullptr);
  return r;
}

struct Case {
  const char* section;
  std::string bytes;
  std::string reaction;  // Reaction::text()
  const char* told = nullptr;
};

void check(H2Role role, const std::vector<Case>& cases, bool hello = true, bool head = false) {
  for (const Case& c : cases) {
    for (const size_t step : {size_t{1} << 20, size_t{1}, size_t{5}}) {
      const Reaction r = run(role, c.bytes, step, hello, head);
      EXPECT_EQ(r.text(), c.reaction) << c.section << ", pieces of " << step;
      if (c.told == nullptr) continue;
      std::string told = r.told;
      EXPECT_EQ(told, c.told) << c.section << ", pieces of " << step;
    }
  }
}

const char* const kProtocolError = "GOAWAY PROTOCOL_ERROR";
const char* const kStreamClosed = "GOAWAY STREAM_CLOSED";
const char* const kFlowError = "GOAWAY FLOW_CONTROL_ERROR";
const char* const kSizeError = "GOAWAY FRAME_SIZE_ERROR";
const char* const kMalformed = "RST PROTOCOL_ERROR";

TEST(H2Conformance, ServersPreface) {
  check(H2Role::kServer,
        {{"3.4 not a preface", "GET / HTTP/1.1\r\n\r\n", kProtocolError},
         {"3.4 almost", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", kProtocolError},
         {"3.4 no SETTINGS", std::string(kPreface) + kPing8, kProtocolError},
         {"3.4 an acknowledgement is none", std::string(kPreface) + frame(kSettings, 1, 0, ""),
          kProtocolError}},
        false);
  check(H2Role::kClient, {{"3.4 no SETTINGS", kPing8, kProtocolError}}, false);
}

TEST(H2Conformance, Frames) {
  const std::string five = "\0\0\0\0\0"s;
  check(
      H2Role::kServer,
      {{"4.1 unknown type", frame(0xfa, 0xff, 0, "x") + frame(0xfb, 0, 7, "y"), "fine"},
       {"4.1 undefined flags", frame(kPing, 0xfe, 0, "12345678"), "fine"},
       {"4.1 reserved bit", "\0\0\10\6\0\x80\0\0\0"s + "12345678", "fine"},
       {"4.2 frame above the limit", frame(kData, 0, 1, std::string(16385, 'x')), kSizeError},
       {"4.2 of an unknown type too", frame(0xfa, 0, 1, std::string(16385, 'x')), kSizeError},
       {"4.3 HPACK", request("\xff\xff\xff\xff\xff\xff"), "GOAWAY COMPRESSION_ERROR"},
       {"4.3 a table size update at the end", request(kGetBlock + "\x20"),
        "GOAWAY COMPRESSION_ERROR"},
       {"4.3 index 0", request("\x80"), "GOAWAY COMPRESSION_ERROR"},
       {"4.3 an index that no table has", request(kGetBlock + "\xfe"), "GOAWAY COMPRESSION_ERROR"},
       {"4.3 a table above our SETTINGS", request("\x3f\xe2\x1f" + kGetBlock),
        "GOAWAY COMPRESSION_ERROR"},
       {"4.3 a string longer than its block", request(kGetBlock + "\0\1x\5y"s),
        "GOAWAY COMPRESSION_ERROR"},
       {"4.3 Huffman padding of zeros", request(kGetBlock + "\0\x81\x18\1y"s),
        "GOAWAY COMPRESSION_ERROR"},
       {"4.3 an empty block", request(""), kMalformed, ""},
       {"4.3 a block that is not over", frame(kHeaders, kEnd, 1, kGetBlock) + get(3),
        kProtocolError},
       {"4.3 another stream's CONTINUATION",
        frame(kHeaders, kEnd, 1, kGetBlock) + frame(kContinuation, kWhole, 3, ""), kProtocolError},
       {"4.3 an unknown frame inside of a block",
        frame(kHeaders, kEnd, 1, kGetBlock) + frame(0xfa, 0, 0, ""), kProtocolError},
       {"6.1 DATA without a stream", frame(kData, 0, 0, "x"), kProtocolError},
       {"6.1 padding longer than the frame", post() + frame(kData, kFlagPadded, 1, "\5abc"),
        kProtocolError},
       {"6.1 padding", post() + frame(kData, kFlagPadded | kEnd, 1, "\3abc\0\0\0"s), "fine",
        "hddde"},
       {"6.1 only padding", post() + frame(kData, kFlagPadded | kEnd, 1, "\3\0\0\0"s), "fine",
        "he"},
       {"6.1 padded, no pad length", post() + frame(kData, kFlagPadded, 1, ""), kSizeError},
       {"6.2 HEADERS without a stream", frame(kHeaders, 5, 0, kGetBlock), kProtocolError},
       {"6.2 padding longer than the frame",
        frame(kHeaders, 5 | kFlagPadded, 1, "\x7f" + kGetBlock), kProtocolError},
       {"6.2 padding and priority",
        frame(kHeaders, 5 | kFlagPadded | kFlagPriority, 1, "\2" + five + kGetBlock + "\0\0"s),
        "fine", "H"},
       {"6.2 no room for the priority", frame(kHeaders, 5 | kFlagPriority, 1, "abc"), kSizeError},
       {"6.3 PRIORITY", frame(kPriority, 0, 1, five), "fine", ""},
       {"RFC 7540 section 5.3.1", frame(kPriority, 0, 3, "\x80\0\0\3\0"s), kProtocolError},
       {"RFC 7540 section 5.3.1, in HEADERS",
        frame(kHeaders, 5 | kFlagPriority, 1, "\0\0\0\1\0"s + kGetBlock), kProtocolError, ""},
       {"6.3 PRIORITY without a stream", frame(kPriority, 0, 0, five), kProtocolError},
       {"6.3 PRIORITY of a wrong size", frame(kPriority, 0, 1, "1234"), kSizeError},
       {"6.4 RST_STREAM without a stream", frame(kRstStream, 0, 0, be32(8)), kProtocolError},
       {"6.4 RST_STREAM on an idle stream", frame(kRstStream, 0, 1, be32(8)), kProtocolError},
       {"6.4 RST_STREAM of a wrong size", get() + frame(kRstStream, 0, 1, "123"), kSizeError},
       {"6.4 RST_STREAM", post() + frame(kRstStream, 0, 1, be32(8)), "fine", "hc"},
       {"6.4 RST_STREAM twice",
        post() + frame(kRstStream, 0, 1, be32(8)) + frame(kRstStream, 0, 1, be32(8)), "fine", "hc"},
       {"6.5 SETTINGS ACK with a payload", frame(kSettings, 1, 0, setting(1, 1)), kSizeError},
       {"6.5 SETTINGS on a stream", frame(kSettings, 0, 1, ""), kProtocolError},
       {"6.5 SETTINGS of a wrong size", frame(kSettings, 0, 0, "12345"), kSizeError},
       {"6.5.2 unknown setting", frame(kSettings, 0, 0, setting(0xfafa, 1)), "fine"},
       {"6.5.2 ENABLE_PUSH", frame(kSettings, 0, 0, setting(2, 2)), kProtocolError},
       {"6.5.2 INITIAL_WINDOW_SIZE", frame(kSettings, 0, 0, setting(4, 0x80000000)), kFlowError},
       {"6.5.2 MAX_FRAME_SIZE, low", frame(kSettings, 0, 0, setting(5, 16383)), kProtocolError},
       {"6.5.2 MAX_FRAME_SIZE, high", frame(kSettings, 0, 0, setting(5, 1 << 24)), kProtocolError},
       {"6.5.2 the last of two counts", frame(kSettings, 0, 0, setting(4, 1) + setting(4, 2)),
        "fine"},
       {"6.6 PUSH_PROMISE", post() + frame(kPushPromise, 4, 1, be32(2) + kGetBlock),
        kProtocolError},
       {"6.7 PING on a stream", frame(kPing, 0, 1, "12345678"), kProtocolError},
       {"6.7 PING of a wrong size", frame(kPing, 0, 0, "123456"), kSizeError},
       {"6.7 an acknowledgement", frame(kPing, 1, 0, "12345678"), "fine"},
       {"6.8 GOAWAY on a stream", frame(kGoaway, 0, 1, be32(0) + be32(0)), kProtocolError},
       {"6.8 GOAWAY of a wrong size", frame(kGoaway, 0, 0, be32(0)), kSizeError},
       {"6.8 GOAWAY with debug data", frame(kGoaway, 0, 0, be32(0) + be32(0) + "bye"), "fine"},
       {"6.8 requests may still come after a client's GOAWAY",
        frame(kGoaway, 0, 0, be32(0) + be32(0)) + get(), "fine", "H"},
       {"6.9 WINDOW_UPDATE of 0", frame(kWindowUpdate, 0, 0, be32(0)), kProtocolError},
       {"6.9 WINDOW_UPDATE of 0 on a stream", post() + frame(kWindowUpdate, 0, 1, be32(0)),
        kMalformed},
       {"6.9 WINDOW_UPDATE of a wrong size", frame(kWindowUpdate, 0, 0, "123"), kSizeError},
       {"6.9 WINDOW_UPDATE on an idle stream", frame(kWindowUpdate, 0, 1, be32(1)), kProtocolError},
       {"6.9.1 the window overflows",
        frame(kWindowUpdate, 0, 0, be32(0x7fffffff)) + frame(kWindowUpdate, 0, 0, be32(1)),
        kFlowError},
       {"6.9.1 a stream's window overflows", post() + frame(kWindowUpdate, 0, 1, be32(0x7fffffff)),
        "RST FLOW_CONTROL_ERROR"},
       {"6.9.2 SETTINGS overflow a window",
        post() + frame(kWindowUpdate, 0, 1, be32(0x7fff0000)) +
            frame(kSettings, 0, 0, setting(4, 0x7fffffff)),
        kFlowError},
       {"6.10 CONTINUATION",
        frame(kHeaders, kEnd, 1, kGetBlock.substr(0, 2)) +
            frame(kContinuation, 0, 1, kGetBlock.substr(2, 4)) +
            frame(kContinuation, kWhole, 1, kGetBlock.substr(6)),
        "fine", "H"},
       {"6.10 CONTINUATION of nothing", frame(kContinuation, kWhole, 1, kGetBlock), kProtocolError},
       {"6.10 CONTINUATION after the end of a block", get() + frame(kContinuation, kWhole, 1, ""),
        kProtocolError}});
}

TEST(H2Conformance, StreamStates) {
  check(
      H2Role::kServer,
      {{"5.1 DATA on an idle stream", frame(kData, 0, 1, "x"), kProtocolError},
       {"5.1 CONTINUATION on an idle stream", frame(kContinuation, 4, 1, "x"), kProtocolError},
       {"5.1 DATA after END_STREAM", get() + frame(kData, 0, 1, "x"), "RST STREAM_CLOSED", "Hc"},
       {"5.1 HEADERS after END_STREAM", get() + get(), "RST STREAM_CLOSED", "Hc"},
       {"5.1 WINDOW_UPDATE after END_STREAM", get() + frame(kWindowUpdate, 0, 1, be32(1)), "fine"},
       {"5.1 PRIORITY after END_STREAM", get() + frame(kPriority, 0, 1, "\0\0\0\0\0"s), "fine"},
       {"5.1 DATA after RST_STREAM",
        post() + frame(kRstStream, 0, 1, be32(8)) + frame(kData, 0, 1, "x"), "RST STREAM_CLOSED",
        "hc"},
       {"5.1 HEADERS after RST_STREAM", post() + frame(kRstStream, 0, 1, be32(8)) + post(),
        kStreamClosed, "hc"},
       {"5.1 PRIORITY after RST_STREAM",
        post() + frame(kRstStream, 0, 1, be32(8)) + frame(kPriority, 0, 1, "\0\0\0\0\0"s), "fine"},
       {"5.1 DATA that was under way when we reset the stream",
        post(1, literal("te", "gzip")) + frame(kData, 1, 1, "x"), kMalformed, ""},
       {"5.1 trailers that were",
        post(1, literal("te", "gzip")) + frame(kHeaders, 5, 1, literal("x", "y")), kMalformed, ""},
       {"5.1 and bad HPACK in them",
        post(1, literal("te", "gzip")) + frame(kHeaders, 5, 1, "\xff\xff\xff\xff\xff\xff"),
        "GOAWAY COMPRESSION_ERROR", ""},
       {"5.1 WINDOW_UPDATE after RST_STREAM",
        post() + frame(kRstStream, 0, 1, be32(8)) + frame(kWindowUpdate, 0, 1, be32(1)), "fine"},
       {"5.1.1 an even stream", get(2), kProtocolError},
       {"5.1.1 streams may be left out", get(1) + get(7), "fine", "HH"},
       {"5.1.1 and are closed then", get(7) + get(5), kProtocolError, "H"},
       {"5.1.1 also many of them", get(5001) + get(4999), kProtocolError, "H"},
       {"5.1.1 DATA on one that was left out", get(7) + frame(kData, 0, 5, "x"),
        "RST STREAM_CLOSED", "H"},
       {"5.1.1 RST_STREAM on one", get(7) + frame(kRstStream, 0, 5, be32(8)), "fine", "H"},
       {"5.1.1 WINDOW_UPDATE on one", get(7) + frame(kWindowUpdate, 0, 5, be32(8)), "fine", "H"}});
  std::string many;
  for (uint32_t id = 1; id <= 203; id += 2) many += post(id);
  check(H2Role::kServer, {{"5.1.2 concurrent streams", many, "RST REFUSED_STREAM", nullptr}});
}

TEST(H2Conformance, FlowControl) {
  // 256 KiB a stream, 1 MiB the connection; the handler of these tests gives back what it takes,
  // but DATA of one frame must fit as it stands.
  std::string full;
  for (int i = 0; i < 16; ++i) full += frame(kData, 0, 1, std::string(16384, 'x'));
  struct Stingy : End {
    using End::End;
    void on_data(uint32_t, ByteView) override {}
  };
  Stingy server(H2Role::kServer, {});
  EXPECT_TRUE(server.session.receive(as_bytes(std::string(kPreface) + kNoSettings + post() + full),
                                     kStart));
  server.session.flush(server, 1 << 20);
  server.out.clear();
  EXPECT_TRUE(server.session.receive(as_bytes(frame(kData, 0, 1, "x")), kStart));
  server.session.flush(server, 1 << 20);
  EXPECT_EQ(server.out, frame(kRstStream, 0, 1, be32(3))) << "6.9.1: FLOW_CONTROL_ERROR";

  // 4 streams fill the connection; one byte more breaks it.
  Stingy other(H2Role::kServer, {});
  std::string in = std::string(kPreface) + kNoSettings;
  for (uint32_t id = 1; id <= 9; id += 2) in += post(id);
  for (uint32_t id = 1; id <= 7; id += 2)
    for (int i = 0; i < 16; ++i) in += frame(kData, 0, id, std::string(16384, 'x'));
  EXPECT_TRUE(other.session.receive(as_bytes(in), kStart));
  EXPECT_FALSE(other.session.receive(as_bytes(frame(kData, 0, 9, "x")), kStart));
  EXPECT_NE(other.session.failure()->detail.find("FLOW_CONTROL_ERROR"), std::string::npos);
}

TEST(H2Conformance, Requests) {
  const std::string method = "\x82", http = "\x86", path = "\x84";
  const std::string authority = literal(":authority", "a");
  const std::string connect = literal(":method", "CONNECT");
  std::vector<Case> cases = {
      {"8.1 trailers", post() + frame(kHeaders, 5, 1, literal("x", "y")), "fine", "ht"},
      {"8.1 trailers that do not end", post() + frame(kHeaders, 4, 1, literal("x", "y")),
       kMalformed, "hc"},
      {"8.1 trailers with a pseudo-header", post() + frame(kHeaders, 5, 1, "\x84"), kMalformed,
       "hc"},
      {"8.1 no trailers in the trailers", post() + frame(kHeaders, 5, 1, ""), "fine", "he"},
      {"8.3.1 without authority", request(method + http + path), kMalformed, ""},
      {"8.3.1 Host instead", request(method + http + path + literal("host", "a")), "fine", "H"},
      {"8.3.1 Host besides", request(method + http + path + authority + literal("host", "A")),
       "fine", "H"},
      {"8.3.1 Host with the default port",
       request(method + http + path + authority + literal("host", "a:80")), "fine", "H"},
      {"8.3.1 another Host", request(method + http + path + authority + literal("host", "b")),
       kMalformed, ""},
      {"8.3.1 another port", request(method + http + path + authority + literal("host", "a:81")),
       kMalformed, ""},
      {"8.3.1 OPTIONS *",
       request(literal(":method", "OPTIONS") + http + literal(":path", "*") + authority), "fine",
       "H"},
      {"8.3.1 GET *", request(method + http + literal(":path", "*") + authority), kMalformed, ""},
      {"8.5 CONNECT", frame(kHeaders, 4, 1, connect + authority), "fine", "h"},
      {"8.5 CONNECT with a path", request(connect + authority + path), kMalformed, ""},
      {"8.5 CONNECT without authority", request(connect), kMalformed, ""},
      {"RFC 8441 extended CONNECT",
       frame(kHeaders, 4, 1, connect + literal(":protocol", "websocket") + http + path + authority),
       "fine", "h"},
      {"RFC 8441 without path",
       request(connect + literal(":protocol", "websocket") + http + authority), kMalformed, ""},
      {"RFC 8441 for GET", request(kGetBlock.substr(0, 3) + literal(":protocol", "x") + authority),
       kMalformed, ""},
      {"8.1.1 Content-Length", post(1, literal("content-length", "3")) + frame(kData, 1, 1, "abc"),
       "fine", "hddde"},
      {"8.1.1 more than it", post(1, literal("content-length", "2")) + frame(kData, 1, 1, "abc"),
       kMalformed},
      {"8.1.1 less than it", post(1, literal("content-length", "4")) + frame(kData, 1, 1, "abc"),
       kMalformed, "hdddc"},
      {"8.1.1 less than it, trailers",
       post(1, literal("content-length", "4")) + frame(kData, 0, 1, "abc") +
           frame(kHeaders, 5, 1, literal("x", "y")),
       kMalformed, "hdddc"},
      {"8.1.1 no body at all", get(1, literal("content-length", "4")), kMalformed, ""},
      {"8.1.1 none expected", get(1, literal("content-length", "0")), "fine", "H"},
      {"8.2.2 TE: trailers", get(1, literal("te", "trailers")), "fine", "H"}};
  for (const std::string& block : {http + path + authority,
                                   method + path + authority,
                                   method + http + authority,
                                   method + method + http + path + authority,
                                   method + http + path + path + authority,
                                   method + http + path + authority + authority,
                                   method + http + path + authority + "\x88",
                                   method + http + path + literal("x", "y") + authority,
                                   method + http + path + authority + literal(":odd", "x"),
                                   method + http + literal(":path", "") + authority,
                                   method + http + literal(":path", "a") + authority,
                                   method + http + literal(":path", "/a b") + authority,
                                   method + http + literal(":path", "/a#b") + authority,
                                   method + http + literal(":path", "/a\r\nX: y") + authority,
                                   method + literal(":scheme", "ht tp") + path + authority,
                                   literal(":method", "") + http + path + authority,
                                   literal(":method", "GE T") + http + path + authority,
                                   method + http + path + literal(":authority", "user@a"),
                                   method + http + path + literal(":authority", "a/b"),
                                   method + http + path + literal(":authority", "")})
    cases.push_back({"8.3 pseudo-headers", request(block), kMalformed, ""});
  for (const std::string& field : {literal("Upper", "x"),
                                   literal("", "x"),
                                   literal("a b", "x"),
                                   literal("a:", "x"),
                                   literal("a\0"s, "x"),
                                   literal("\x7f", "x"),
                                   literal("x", "a\nb"),
                                   literal("x", "a\rb"),
                                   literal("x", "a\0b"s),
                                   literal("x", " a"),
                                   literal("x", "a\t"),
                                   literal("x", "a\x7f"),
                                   literal("connection", "close"),
                                   literal("keep-alive", "1"),
                                   literal("proxy-connection", "close"),
                                   literal("transfer-encoding", "chunked"),
                                   literal("upgrade", "h2c"),
                                   literal("te", "gzip"),
                                   literal("te", "trailers, gzip"),
                                   literal("content-length", ""),
                                   literal("content-length", "-1"),
                                   literal("content-length", "+0"),
                                   literal("content-length", "0x0"),
                                   literal("content-length", "0, 0"),
                                   literal("content-length", "99999999999999999999"),
                                   literal("content-length", "0") + literal("content-length", "0"),
                                   literal("host", "a") + literal("host", "a"),
                                   literal("host", "a b"),
                                   "\xb9"s})
    cases.push_back({"8.2 fields", get(1, field), kMalformed, ""});
  check(H2Role::kServer, cases);
}

TEST(H2Conformance, Responses) {
  const std::string status103 = literal(":status", "103");
  check(
      H2Role::kClient,
      {{"8.1 a response", ok(5), "fine", "H"},
       {"8.1 with a body", ok() + frame(kData, 1, 1, "abc"), "fine", "hddde"},
       {"8.1 with trailers", ok() + frame(kHeaders, 5, 1, literal("x", "y")), "fine", "ht"},
       {"8.1 DATA before HEADERS", frame(kData, 0, 1, "x"), kMalformed, "c"},
       {"8.1 1xx", frame(kHeaders, 4, 1, status103) + ok(5), "fine", "iH"},
       {"8.1 1xx that ends", frame(kHeaders, 5, 1, status103), kMalformed, "c"},
       {"8.1 1xx after the response", ok() + frame(kHeaders, 4, 1, status103), kMalformed, "hc"},
       {"8.6 101", frame(kHeaders, 4, 1, literal(":status", "101")), kMalformed, "c"},
       {"8.3.2 without :status", frame(kHeaders, 5, 1, literal("x", "y")), kMalformed, "c"},
       {"8.3.2 twice", frame(kHeaders, 5, 1, "\x88\x89"), kMalformed, "c"},
       {"8.3.2 not a number", frame(kHeaders, 5, 1, literal(":status", "20x")), kMalformed, "c"},
       {"8.3.2 too long", frame(kHeaders, 5, 1, literal(":status", "2000")), kMalformed, "c"},
       {"8.3.2 a request's", frame(kHeaders, 5, 1, "\x88\x84"), kMalformed, "c"},
       {"8.2.2 connection-specific", ok(5, literal("connection", "close")), kMalformed, "c"},
       {"8.1.1 Content-Length", ok(4, literal("content-length", "2")) + frame(kData, 1, 1, "abc"),
        kMalformed},
       {"8.1.1 less", ok(4, literal("content-length", "4")) + frame(kData, 1, 1, "abc"), kMalformed,
        "hdddc"},
       {"8.1.1 no body at all", ok(5, literal("content-length", "4")), kMalformed, "c"},
       {"8.1.1 304 has the length of another",
        frame(kHeaders, 5, 1, "\x8b" + literal("content-length", "4")), "fine", "H"},
       {"8.1.1 304 has no body", frame(kHeaders, 4, 1, "\x8b") + frame(kData, 1, 1, "x"),
        kMalformed, "hc"},
       {"6.8 GOAWAY", frame(kGoaway, 0, 0, be32(0) + be32(0)), "fine", "u"},
       {"6.8 GOAWAY, ours is served", frame(kGoaway, 0, 0, be32(1) + be32(0)) + ok(5), "fine", "H"},
       {"5.1 HEADERS on an idle stream", frame(kHeaders, 5, 3, "\x88"), kProtocolError},
       {"5.1 HEADERS on an even stream", frame(kHeaders, 5, 2, "\x88"), kProtocolError},
       {"5.1 after END_STREAM", ok(5) + frame(kData, 0, 1, "x"), "RST STREAM_CLOSED", "Hc"},
       {"5.1 HEADERS after both ended",
        frame(kRstStream, 0, 1, be32(8)) + ok(5), kStreamClosed, "c"},
       {"5.1 DATA after RST_STREAM", frame(kRstStream, 0, 1, be32(8)) + frame(kData, 0, 1, "x"),
        "RST STREAM_CLOSED", "c"},
       {"5.1 WINDOW_UPDATE on an idle stream", frame(kWindowUpdate, 0, 3, be32(1)), kProtocolError},
       {"5.1 RST_STREAM on an idle stream", frame(kRstStream, 0, 3, be32(8)), kProtocolError},
       {"5.1 RST_STREAM on a stream of the server", frame(kRstStream, 0, 2, be32(8)),
        kProtocolError},
       {"5.1 CONTINUATION of nothing", ok(4) + frame(kContinuation, kWhole, 1, ""), kProtocolError},
       {"6.8 GOAWAY below the stream", frame(kGoaway, 0, 0, be32(0) + be32(0)), "fine", "u"},
       {"6.8 GOAWAY of the stream", frame(kGoaway, 0, 0, be32(1) + be32(0)) + ok(5), "fine", "H"},
       {"6.8 GOAWAY, and none of the highest id", frame(kGoaway, 0, 0, be32(0x7fffffff) + be32(0)),
        "fine", ""},
       {"5.4.2 REFUSED_STREAM", frame(kRstStream, 0, 1, be32(7)), "fine", "u"},
       {"6.5.2 ENABLE_PUSH", frame(kSettings, 0, 0, setting(2, 1)), kProtocolError},
       {"RFC 8441 section 3", frame(kSettings, 0, 0, setting(8, 1) + setting(8, 0)),
        kProtocolError},
       {"6.6 PUSH_PROMISE", frame(kPushPromise, 4, 1, be32(2) + kGetBlock), kProtocolError},
       {"6.7", kPing8, "fine"}});
  check(H2Role::kClient,
        {{"8.1.1 to HEAD", ok(5, literal("content-length", "4")), "fine", "H"},
         {"8.1.1 to HEAD, a body",
          ok(4, literal("content-length", "4")) + frame(kData, 1, 1, "abcd"), kMalformed, "hc"}},
        true, true);
}

// --- what only shows in the order of things -----------------------------------------------------

TEST(H2Conformance, SettingsTimeout) {
  End server(H2Role::kServer, {});
  EXPECT_TRUE(server.session.receive(as_bytes(std::string(kPreface) + kNoSettings), kStart));
  EXPECT_TRUE(server.session.receive(as_bytes(kPing8), kStart + std::chrono::seconds(29)));
  EXPECT_FALSE(server.session.receive(as_bytes(kPing8), kStart + std::chrono::seconds(31)));
  EXPECT_NE(server.session.failure()->detail.find("SETTINGS_TIMEOUT"), std::string::npos);
  End other(H2Role::kServer, {});
  EXPECT_TRUE(other.session.receive(
      as_bytes(std::string(kPreface) + kNoSettings + frame(kSettings, 1, 0, "")), kStart));
  EXPECT_TRUE(other.session.receive(as_bytes(kPing8), kStart + std::chrono::hours(31)));
}

TEST(H2Conformance, TheFirstFlightIsOneStreamUntilSettingsCame) {
  HeaderList h;
  for (auto [n, v] :
       {std::pair{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}})
    h.add(n, v);
  const auto take = [&](End& client) {
    int n = 0;
    for (; client.session.can_request(); ++n) EXPECT_TRUE(client.session.request(h, nullptr));
    EXPECT_FALSE(client.session.request(h, nullptr)) << "5.1.2";
    return n;
  };
  End client(H2Role::kClient, {});
  EXPECT_EQ(take(client), 1) << "what the peer allows is not known yet";
  EXPECT_TRUE(client.session.receive(as_bytes(frame(kSettings, 0, 0, setting(3, 10))), kStart));
  EXPECT_EQ(take(client), 9);
  EXPECT_TRUE(client.session.receive(as_bytes(frame(kSettings, 0, 0, setting(3, 5))), kStart));
  EXPECT_FALSE(client.session.can_request()) << "6.5.2: less than there are";
  EXPECT_TRUE(client.session.receive(as_bytes(frame(kSettings, 0, 0, setting(3, 12))), kStart));
  EXPECT_EQ(take(client), 2);

  End other(H2Role::kClient, {});
  EXPECT_TRUE(other.session.receive(as_bytes(kNoSettings), kStart));
  EXPECT_EQ(take(other), 100) << "SETTINGS without a number";
}

// A body of `left` bytes.
struct Bytes : H2Body {
  size_t left;
  explicit Bytes(size_t n) : left(n) {}
  Ready ready(size_t max) override { return {std::min(max, left), left <= max}; }
  void take(size_t n, H2Sink& sink) override {
    left -= n;
    sink.append(as_bytes(std::string(n, 'x')));
  }
};

struct Server : End {
  Bytes body{100'000};
  Server() : End(H2Role::kServer, {}) {}
  void on_head(uint32_t id, HeaderList&, bool) override {
    HeaderList h;
    h.add(":status", "200");
    EXPECT_TRUE(session.respond(id, h, &body));
  }
  // DATA bytes that came out since the last call, and whether the stream ended.
  std::pair<size_t, bool> data(const std::string& in) {
    out.clear();
    EXPECT_TRUE(session.receive(as_bytes(in), kStart));
    while (session.flush(*this, 1 << 20)) {
    }
    size_t n = 0;
    bool end = false;
    for (size_t at = 0; at < out.size();) {
      const FrameHeader f =
          h2::read_frame_header(reinterpret_cast<const uint8_t*>(out.data()) + at);
      if (f.type == kData) n += f.length, end = f.has(kFlagEndStream);
      at += 9 + f.length;
    }
    return {n, end};
  }
};

TEST(H2Conformance, SendWindowsOfStreamAndConnection) {
  using Sent = std::pair<size_t, bool>;
  Server s;
  const std::string hello = std::string(kPreface);
  EXPECT_EQ(s.data(hello + frame(kSettings, 0, 0, setting(4, 1000)) + get()), (Sent{1000, false}));
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 1, be32(500))), (Sent{500, false}));
  // 6.9.2: the window becomes negative, and must be paid back before anything goes.
  EXPECT_EQ(s.data(frame(kSettings, 0, 0, setting(4, 100))), (Sent{0, false}));
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 1, be32(900))), (Sent{0, false}));
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 1, be32(1))), (Sent{1, false}));
  EXPECT_EQ(s.data(frame(kSettings, 0, 0, setting(4, 102))), (Sent{2, false}));
  // The connection's window holds now.
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 1, be32(1 << 20))), (Sent{65535 - 1503, false}));
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 0, be32(1))), (Sent{1, false}));
  EXPECT_EQ(s.data(frame(kWindowUpdate, 0, 0, be32(1 << 20))), (Sent{100'000 - 65536, true}));
}

TEST(H2Conformance, AStreamThatBothSidesEndedTakesNothingMore) {
  const std::string hello = std::string(kPreface) + kNoSettings;
  Server s;
  s.body.left = 0;
  EXPECT_TRUE(s.data(hello + get(1)).second);
  EXPECT_TRUE(s.data(get(3)).second) << "the next one is served";
  EXPECT_TRUE(s.session.receive(as_bytes(frame(kWindowUpdate, 0, 1, be32(1))), kStart));
  EXPECT_TRUE(s.session.receive(as_bytes(frame(kRstStream, 0, 1, be32(8))), kStart));
  s.out.clear();
  EXPECT_TRUE(s.session.receive(as_bytes(frame(kData, 0, 1, "x")), kStart));
  s.session.flush(s, 1 << 20);
  EXPECT_EQ(s.out, frame(kRstStream, 0, 1, be32(5))) << "6.1: STREAM_CLOSED";
  EXPECT_FALSE(s.session.receive(as_bytes(get(3)), kStart));
  EXPECT_NE(s.session.failure()->detail.find("STREAM_CLOSED"), std::string::npos) << "5.1";
}

TEST(H2Conformance, WhatWasUnderWayToAStreamLongGoneIsDropped) {
  Server s;
  s.body.left = 0;
  EXPECT_TRUE(s.data(std::string(kPreface) + kNoSettings + get(1)).second);
  for (uint32_t id = 3; id < 1100; id += 2) EXPECT_TRUE(s.data(get(id)).second);
  EXPECT_TRUE(s.session.receive(as_bytes(get(1)), kStart)) << "its fate is forgotten";
  EXPECT_FALSE(s.session.receive(as_bytes(get(1001)), kStart));
}

TEST(H2Conformance, AnEmptyEndNeedsNoWindow) {
  Server s;
  s.body.left = 1000;
  EXPECT_EQ(s.data(std::string(kPreface) + frame(kSettings, 0, 0, setting(4, 0)) + get()).first,
            0u);
  s.body.left = 0;
  s.session.resume(1);
  EXPECT_EQ(s.data(""), (std::pair<size_t, bool>{0, true}));
}

TEST(H2Conformance, LargeBlocksAreCutIntoContinuations) {
  End server(H2Role::kServer, {}), client(H2Role::kClient, {});
  HeaderList h;
  for (auto [n, v] :
       {std::pair{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}})
    h.add(n, v);
  for (int i = 0; i < 5; ++i) h.add("x-" + std::to_string(i), std::string(10'000, 'v'));
  ASSERT_TRUE(client.session.request(h, nullptr).has_value());
  client.session.flush(client, 1 << 20);
  EXPECT_TRUE(server.session.receive(as_bytes(client.out), kStart));
  EXPECT_EQ(server.told, "H");
}

TEST(H2Conformance, ARefusedBlockLeavesTheTableInStep) {
  End server(H2Role::kServer, {}), client(H2Role::kClient, {});
  HeaderList good, bad;
  for (auto [n, v] : {std::pair{":method", "GET"},
                      {":scheme", "http"},
                      {":authority", "a"},
                      {":path", "/x"},
                      {"x-repeats", "always"}}) {
    good.add(n, v);
    bad.add(n, v);
  }
  bad.add("connection", "close");
  ASSERT_TRUE(client.session.receive(as_bytes(kNoSettings), kStart));
  for (int i = 0; i < 6; ++i) {
    EXPECT_FALSE(client.session.request(bad, nullptr).has_value());
    EXPECT_TRUE(client.session.request(good, nullptr).has_value());
    client.out.clear();
    client.session.flush(client, 1 << 20);
    ASSERT_TRUE(server.session.receive(as_bytes(client.out), kStart)) << i;
  }
  EXPECT_EQ(server.told, "HHHHHH");
}

TEST(H2Conformance, SmallWindowsBindOnceTheyAreConfirmed) {
  H2Options options;
  options.initial_stream_window = 1000;
  End server(H2Role::kServer, options);
  // 6.9.2: before it saw our SETTINGS the peer may send 65535 bytes.
  EXPECT_TRUE(server.session.receive(as_bytes(std::string(kPreface) + kNoSettings + post() +
                                              frame(kData, 0, 1, std::string(16000, 'x'))),
                                     kStart));
  server.session.flush(server, 1 << 20);
  server.out.clear();
  EXPECT_TRUE(server.session.receive(as_bytes(frame(kSettings, 1, 0, "")), kStart));
  server.session.flush(server, 1 << 20);
  EXPECT_EQ(server.out, frame(kWindowUpdate, 0, 1, be32(16000)))
      << "or the peer would wait for ever with its negative window";
  EXPECT_TRUE(server.session.receive(as_bytes(frame(kData, 0, 1, std::string(1001, 'x'))), kStart));
  server.out.clear();
  server.session.flush(server, 1 << 20);
  EXPECT_EQ(server.out, frame(kRstStream, 0, 1, be32(3)));
}

}  // namespace
}  // namespace meltemi::codec
