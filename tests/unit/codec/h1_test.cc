// HTTP/1: what is accepted, where messages end, what is refused. Every dialogue is also fed byte by
// byte and in pieces: the events must not depend on how the bytes arrive.
#include "userspace/codec/h1.h"

#include <gtest/gtest.h>

namespace meltemi::codec {
namespace {

// All events of `wire`, fed in pieces of `step`; body pieces are joined.
std::vector<std::string> parse(H1Role role, std::string_view wire, size_t step = 1 << 20,
                               bool eof = false, std::string_view method = "",
                               H1Limits limits = H1Limits()) {
  H1Parser parser(role, limits);
  if (!method.empty()) parser.expect_response_to(method);
  std::vector<std::string> out;
  std::string body;
  auto flush = [&] {
    if (!body.empty()) out.push_back("body " + std::exchange(body, ""));
  };
  auto add = [&](const H1Event& e, std::string_view rest) {
    if (e.kind == H1EventKind::kBody) return void(body += as_text(e.data));
    flush();
    const H1Head& h = parser.head();
    switch (e.kind) {
      case H1EventKind::kHead: {
        std::string line = "head " + std::string(h.method) + std::string(h.target);
        if (h.status != 0) line += std::to_string(h.status) + " " + std::string(h.reason);
        line += " 1." + std::to_string(h.minor_version);
        for (const HeaderField f : h.headers)
          line += " " + std::string(f.name) + "=" + std::string(f.value);
        if (h.framing == H1Framing::kLength) line += " length " + std::to_string(h.content_length);
        if (h.framing == H1Framing::kChunked) line += " chunked";
        if (h.framing == H1Framing::kUntilClose) line += " until-close";
        if (!h.keep_alive) line += " close";
        if (h.upgrade) line += " upgrade";
        if (h.expect_continue) line += " expect";
        out.push_back(line);
        break;
      }
      case H1EventKind::kComplete: {
        std::string line = "complete";
        for (const HeaderField f : parser.trailers())
          line += " " + std::string(f.name) + "=" + std::string(f.value);
        out.push_back(line);
        break;
      }
      case H1EventKind::kUpgrade:
        out.push_back("upgrade");
        break;
      case H1EventKind::kError:
        out.push_back("error " + std::to_string(e.status));
        break;
      default:
        break;
    }
  };
  for (size_t i = 0; i < wire.size(); i += step) {
    ByteView in = as_bytes(wire.substr(i, step));
    for (;;) {
      const H1Event e = parser.next(in);
      if (e.kind == H1EventKind::kNeedMore) break;
      add(e, as_text(in));
      if (e.kind == H1EventKind::kError) return out;
      if (e.kind == H1EventKind::kUpgrade) {
        out.push_back("rest " + std::string(as_text(in)) +
                      std::string(wire.substr(std::min(wire.size(), i + step))));
        return out;
      }
    }
    EXPECT_TRUE(in.empty());
  }
  if (eof) {
    const H1Event e = parser.finish();
    if (e.kind != H1EventKind::kNeedMore) add(e, "");
  }
  flush();
  return out;
}

using Lines = std::vector<std::string>;
void expect_parse(H1Role role, std::string_view wire, const Lines& expected, bool eof = false,
                  std::string_view method = "", H1Limits limits = H1Limits()) {
  EXPECT_EQ(parse(role, wire, 1 << 20, eof, method, limits), expected) << wire;
  for (size_t step = 1; step < std::min<size_t>(wire.size(), 40); ++step)
    ASSERT_EQ(parse(role, wire, step, eof, method, limits), expected) << step << ": " << wire;
}
void expect_request(std::string_view wire, const Lines& expected, bool eof = false) {
  expect_parse(H1Role::kRequests, wire, expected, eof);
}
void expect_response(std::string_view wire, const Lines& expected, std::string_view method = "GET",
                     bool eof = false) {
  expect_parse(H1Role::kResponses, wire, expected, eof, method);
}

TEST(H1Request, PlainAndPipelined) {
  expect_request(
      "GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-CamelCase:  spaced \r\nx-empty:\r\n\r\n"
      "POST /p HTTP/1.1\r\nhost: y\r\nContent-Length: 5\r\n\r\nhello"
      "\r\nHEAD * HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n",
      {"head GET/a?b=c 1.1 Host=x X-CamelCase=spaced x-empty=", "complete",
       "head POST/p 1.1 host=y Content-Length=5 length 5", "body hello", "complete",
       "head HEAD* 1.1 Host=z Connection=close close", "complete"});
}

TEST(H1Request, Chunked) {
  expect_request(
      "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: 42\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
      {"head PUT/ 1.1 Host=x Transfer-Encoding=chunked chunked", "body hello world",
       "complete X-Sum=42", "head GET/ 1.1 Host=x", "complete"});
}

TEST(H1Request, Http10) {
  expect_request("GET / HTTP/1.0\r\n\r\n", {"head GET/ 1.0 close", "complete"});
  expect_request(
      "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n",
      {"head GET/ 1.0 Connection=keep-alive", "complete", "head GET/2 1.0 close", "complete"});
  expect_request("GET / HTTP/1.0\r\n\r\nGET /swallowed HTTP/1.0\r\n\r\n",
                 {"head GET/ 1.0 close", "complete"});
}

TEST(H1Request, AbsoluteFormAndExpect) {
  expect_request(
      "POST http://a:80/x HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1"
      "\r\n\r\nx",
      {"head POSThttp://a:80/x 1.1 Host=a Expect=100-Continue Content-Length=1 length 1 "
       "expect",
       "body x", "complete"});
}

TEST(H1Request, UpgradeAndConnect) {
  expect_request(
      "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
      "early bytes",
      {"head GET/chat 1.1 Host=x Connection=Upgrade Upgrade=websocket upgrade", "upgrade",
       "rest early bytes"});
  expect_request("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03",
                 {"head CONNECTa:443 1.1 Host=a upgrade", "upgrade", "rest \x16\x03"});
  // HTTP/1.0 cannot upgrade; without Connection: upgrade it is no upgrade.
  expect_request("GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
                 {"head GET/ 1.0 Connection=Upgrade Upgrade=x close", "complete"});
  expect_request("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
                 {"head GET/ 1.1 Host=x Upgrade=h2c", "complete"});
}

TEST(H1Request, DeclinedUpgrade) {
  const std::string wire =
      "GET /1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
      "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
  for (bool early : {true, false}) {
    H1Parser parser(H1Role::kRequests);
    ByteView in = as_bytes(wire);
    EXPECT_EQ(parser.next(in).kind, H1EventKind::kHead);
    if (early) parser.decline_upgrade();
    EXPECT_EQ(parser.next(in).kind, early ? H1EventKind::kComplete : H1EventKind::kUpgrade);
    if (!early) {
      EXPECT_EQ(parser.next(in).kind, H1EventKind::kNeedMore);
      EXPECT_FALSE(in.empty()) << "held for whoever takes the tunnel";
      parser.decline_upgrade();
    }
    EXPECT_EQ(parser.next(in).kind, H1EventKind::kHead);
    EXPECT_EQ(parser.head().target, "/2");
    EXPECT_EQ(parser.next(in).kind, H1EventKind::kComplete);
  }
}

TEST(H1Response, Framings) {
  expect_response(
      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 404 Not Found\r\n"
      "Content-Length: 0\r\n\r\n",
      {"head 200 OK 1.1 Content-Length=2 length 2", "body hi", "complete",
       "head 404 Not Found 1.1 Content-Length=0 length 0", "complete"});
  expect_response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                  {"head 200 OK 1.1 Transfer-Encoding=chunked chunked", "body hi", "complete"});
  expect_response("HTTP/1.1 200 OK\r\n\r\nuntil the end",
                  {"head 200 OK 1.1 until-close close", "body until the end", "complete"}, "GET",
                  true);
  expect_response("HTTP/1.0 200\r\n\r\n", {"head 200  1.0 until-close close", "complete"}, "GET",
                  true);
}

TEST(H1Response, WithoutBody) {
  expect_response(
      "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nHTTP/1.1 200 OK\r\n"
      "Transfer-Encoding: chunked\r\n\r\n",
      {"head 200 OK 1.1 Content-Length=10", "complete", "head 200 OK 1.1 Transfer-Encoding=chunked",
       "complete"},
      "HEAD");
  expect_response(
      "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"
      "HTTP/1.1 204 No Content\r\n\r\n",
      {"head 304 Not Modified 1.1 Content-Length=10", "complete", "head 204 No Content 1.1",
       "complete"});
  expect_response(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
      {"head 100 Continue 1.1", "complete", "head 103 Early Hints 1.1 Link=x", "complete",
       "head 200 OK 1.1 Content-Length=1 length 1", "body x", "complete"});
}

TEST(H1Response, Tunnels) {
  expect_response(
      "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
      "\r\nframes",
      {"head 101 Switching Protocols 1.1 Connection=upgrade Upgrade=websocket upgrade", "upgrade",
       "rest frames"});
  expect_response("HTTP/1.1 200 OK\r\n\r\nbytes",
                  {"head 200 OK 1.1 upgrade", "upgrade", "rest bytes"}, "CONNECT");
  expect_response("HTTP/1.1 403 No\r\nContent-Length: 1\r\n\r\nx",
                  {"head 403 No 1.1 Content-Length=1 length 1", "body x", "complete"}, "CONNECT");
  // A response that only offers an upgrade is an ordinary one.
  expect_response(
      "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx",
      {"head 200 OK 1.1 Connection=upgrade Upgrade=h2c Content-Length=1 length 1", "body x",
       "complete"});
}

TEST(H1Response, CutOff) {
  expect_response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
                  {"head 200 OK 1.1 Content-Length=5 length 5", "body hi", "error 502"}, "GET",
                  true);
  expect_response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                  {"head 200 OK 1.1 Transfer-Encoding=chunked chunked", "body hello", "error 502"},
                  "GET", true);
  expect_response("HTTP/1.1 20", {"error 502"}, "GET", true);
  expect_response("", {}, "GET", true);
}

// --- what must not pass -------------------------------------------------------------------------
struct Refused {
  const char* name;
  const char* wire;
  int status = 400;
};
class H1Refused : public testing::TestWithParam<Refused> {};
#define CHUNKED "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
#define POST(headers) "POST / HTTP/1.1\r\nHost: x\r\n" headers "\r\n\r\nbody that must not count"
INSTANTIATE_TEST_SUITE_P(
    Smuggling, H1Refused,
    testing::Values(
        Refused{"LengthAndChunked", POST("Content-Length: 4\r\nTransfer-Encoding: chunked")},
        Refused{"ChunkedAndLength", POST("Transfer-Encoding: chunked\r\nContent-Length: 4")},
        Refused{"TwoLengths", POST("Content-Length: 4\r\nContent-Length: 5")},
        Refused{"TwoEqualLengths", POST("Content-Length: 4\r\nContent-Length: 4")},
        Refused{"LengthList", POST("Content-Length: 4, 4")},
        Refused{"PlusLength", POST("Content-Length: +4")},
        Refused{"NegativeLength", POST("Content-Length: -4")},
        Refused{"HexLength", POST("Content-Length: 0x4")},
        Refused{"SpacedLength", POST("Content-Length: 4 4")},
        Refused{"EmptyLength", POST("Content-Length: ")},
        Refused{"HugeLength", POST("Content-Length: 99999999999999999999999")},
        Refused{"GzipChunked", POST("Transfer-Encoding: gzip, chunked"), 501},
        Refused{"ChunkedGzip", POST("Transfer-Encoding: chunked, gzip"), 501},
        Refused{"Identity", POST("Transfer-Encoding: identity"), 501},
        Refused{"TwoEncodings", POST("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
                501},
        Refused{"OddChunked", POST("Transfer-Encoding: xchunked"), 501},
        Refused{"QuotedChunked", POST("Transfer-Encoding: \"chunked\""), 501},
        Refused{"VerticalTab", POST("Transfer-Encoding: \x0b"
                                    "chunked")},
        Refused{"SpaceBeforeColon", POST("Content-Length : 4")},
        Refused{"TabBeforeColon", POST("Transfer-Encoding\t: chunked")},
        Refused{"FoldedLine", POST("X: a\r\n b")},
        Refused{"FoldedFirst", "GET / HTTP/1.1\r\n Host: x\r\n\r\n"},
        Refused{"BareLfInHead", "GET / HTTP/1.1\nHost: x\n\n"},
        Refused{"BareLfAfterHeader", "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"},
        Refused{"BareLfEndsHead", "GET / HTTP/1.1\r\nHost: x\r\n\nGET /evil HTTP/1.1\r\n"},
        Refused{"BareCr", "GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n"},
        Refused{"NulInValue", "GET / HTTP/1.1\r\nHost: x\r\nX: a\x01z\r\n\r\n"},
        Refused{"DelInValue", "GET / HTTP/1.1\r\nHost: x\r\nX: a\x7fz\r\n\r\n"},
        Refused{"BadNameByte", "GET / HTTP/1.1\r\nHost: x\r\nX(y): z\r\n\r\n"},
        Refused{"EmptyName", "GET / HTTP/1.1\r\nHost: x\r\n: z\r\n\r\n"},
        Refused{"NoColon", "GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n"},
        Refused{"NoHost", "GET / HTTP/1.1\r\nX: y\r\n\r\n"},
        Refused{"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
        Refused{"Fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n"},
        Refused{"HighTarget", "GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n"},
        Refused{"TwoSpaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n"},
        Refused{"SpaceInTarget", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"},
        Refused{"LowerCaseMethod", "get / HTTP/1.1\r\nHost: x\r\n\r\n"},
        Refused{"Tls", "\x16\x03\x01\x02"},
        Refused{"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
        Refused{"Version2", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
        Refused{"Version12", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
        Refused{"Version09", "GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505},
        Refused{"ChunkedInHttp10",
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        Refused{"UnknownExpectation", "GET / HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n", 417},
        Refused{"ConnectWithBody",
                "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"},
        Refused{"ChunkNotHex", CHUNKED "xyz\r\n"}, Refused{"ChunkNegative", CHUNKED "-1\r\n"},
        Refused{"ChunkPrefix", CHUNKED "0x5\r\nhello\r\n"}, Refused{"ChunkEmpty", CHUNKED "\r\n"},
        Refused{"ChunkSpace", CHUNKED " 5\r\nhello\r\n"},
        Refused{"ChunkOverflow", CHUNKED "fffffffffffffffff\r\n"},
        Refused{"ChunkBareLf", CHUNKED "5\nhello\r\n0\r\n\r\n"},
        Refused{"ChunkExtBareLf", CHUNKED "5;a\nhello\r\n0\r\n\r\n"},
        Refused{"ChunkNoEnd", CHUNKED "5\r\nhelloX0\r\n\r\n"},
        Refused{"ChunkEndsInLf", CHUNKED "5\r\nhello\n0\r\n\r\n"},
        Refused{"LastChunkBareLf", CHUNKED "0\r\n\n"},
        Refused{"TrailerLength", CHUNKED "0\r\nContent-Length: 5\r\n\r\n"},
        Refused{"TrailerEncoding", CHUNKED "0\r\nTransfer-Encoding: chunked\r\n\r\n"},
        Refused{"TrailerHost", CHUNKED "0\r\nHost: evil\r\n\r\n"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(H1Refused, EndsInAnError) {
  const Refused& r = GetParam();
  const std::string last = "error " + std::to_string(r.status);
  for (size_t step :
       {size_t{1}, size_t{2}, size_t{3}, size_t{7}, std::string_view(r.wire).size()}) {
    const Lines lines = parse(H1Role::kRequests, r.wire, step);
    ASSERT_FALSE(lines.empty());
    EXPECT_EQ(lines.back(), last) << "step " << step;
    for (const std::string& line : lines) EXPECT_NE(line, "complete") << "step " << step;
  }
}

TEST(H1Refuses, NulInsideHeaders) {
  using namespace std::string_literals;
  const std::string wire = "GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"s;
  EXPECT_EQ(parse(H1Role::kRequests, wire).back(), "error 400");
}

TEST(H1Refuses, BadResponses) {
  for (const char* wire :
       {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 1\n\nx", "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "hello"})
    EXPECT_EQ(parse(H1Role::kResponses, wire, 1 << 20, true, "GET").back(), "error 502") << wire;
}

TEST(H1Limits, HaveNamesAndStatus) {
  H1Limits limits;
  limits.head_bytes = 200;
  limits.header_count = 3;
  limits.target_bytes = 50;
  limits.chunk_line_bytes = 20;
  auto last = [&](const std::string& wire, size_t step) {
    return parse(H1Role::kRequests, wire, step, false, "", limits).back();
  };
  const std::string start = "GET / HTTP/1.1\r\nHost: x\r\n";
  const std::string chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (size_t step : {size_t{1}, size_t{9}, size_t{100'000}}) {
    EXPECT_EQ(last(start + "X: " + std::string(300, 'v') + "\r\n\r\n", step), "error 431");
    EXPECT_EQ(last(start + std::string(300, 'n'), step), "error 431");
    EXPECT_EQ(last(start + "a: 1\r\nb: 2\r\nc: 3\r\n\r\n", step), "error 431");
    EXPECT_EQ(last("GET /" + std::string(60, 'p') + " HTTP/1.1\r\n", step), "error 414");
    std::string empty_lines;
    for (int i = 0; i < 300; ++i) empty_lines += "\r\n";
    EXPECT_EQ(last(empty_lines, step), "error 431");
    EXPECT_EQ(last(chunked + "5;" + std::string(40, 'e') + "\r\nhello\r\n", step), "error 400");
    EXPECT_EQ(last(chunked + std::string(40, '0') + "5\r\nhello\r\n", step), "error 400");
    EXPECT_EQ(last(chunked + std::string(40, '0') + "\r\n\r\n", step), "error 400");
    EXPECT_EQ(last(chunked + "0\r\nT: " + std::string(300, 't') + "\r\n\r\n", step), "error 431");
  }
  H1Parser parser(H1Role::kRequests, limits);
  const std::string wire = start + "a: 1\r\nb: 2\r\nc: 3\r\n\r\n";
  ByteView in = as_bytes(wire);
  EXPECT_EQ(parser.next(in).kind, H1EventKind::kError);
  EXPECT_EQ(parser.error().reason, Reason::kLimitExceeded);
  EXPECT_TRUE(parser.error().detail.starts_with("h1_header_count"));
  EXPECT_EQ(parser.next(in).kind, H1EventKind::kError) << "an error stays";
}

TEST(H1Limits, ManyMessagesDoNotAddUp) {
  H1Limits limits;
  limits.head_bytes = 100;
  std::string wire;
  for (int i = 0; i < 50; ++i) wire += "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  EXPECT_EQ(parse(H1Role::kRequests, wire, 1 << 20, false, "", limits).size(), 100u);
  wire = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 500; ++i) wire += "1\r\nx\r\n";
  wire += "0\r\n\r\n";
  for (size_t step : {1u, 5u, 100000u}) {
    const Lines lines = parse(H1Role::kRequests, wire, step, false, "", limits);
    ASSERT_EQ(lines.size(), 3u) << step;
    EXPECT_EQ(lines[1], "body " + std::string(500, 'x'));
  }
}

TEST(H1Parser, BodyIsAViewAndMemoryGoesBack) {
  H1Parser parser(H1Role::kRequests);
  const std::string wire = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
  ByteView in = as_bytes(wire);
  EXPECT_EQ(parser.next(in).kind, H1EventKind::kHead);
  EXPECT_TRUE(parser.in_message());
  const H1Event e = parser.next(in);
  EXPECT_EQ(e.data.data(), as_bytes(wire).last(3).data());
  EXPECT_EQ(parser.next(in).kind, H1EventKind::kComplete);
  EXPECT_EQ(parser.head().target, "/") << "until the next call";
  EXPECT_FALSE(parser.in_message());
  parser.release();
  EXPECT_TRUE(parser.head().headers.empty());
  in = as_bytes(wire);
  EXPECT_EQ(parser.next(in).kind, H1EventKind::kHead);
  EXPECT_EQ(parser.head().headers.value("host"), "x");
}

// --- writing ------------------------------------------------------------------------------------
TEST(H1Write, HeadsRoundTripByteForByte) {
  const std::string request =
      "GET /a?b HTTP/1.1\r\nHost: x\r\nX-CamelCase: 1\r\nx-camelcase: 2\r\nCookie: a=b; "
      "c=d\r\n\r\n";
  H1Parser parser(H1Role::kRequests);
  ByteView in = as_bytes(request);
  ASSERT_EQ(parser.next(in).kind, H1EventKind::kHead);
  std::string out;
  const H1Head& h = parser.head();
  ASSERT_TRUE(append_request_head(out, h.method, h.target, h.headers, h.minor_version).has_value());
  EXPECT_EQ(out, request);

  const std::string response = "HTTP/1.0 404 Not Here\r\nServer: x\r\n\r\n";
  H1Parser client(H1Role::kResponses);
  in = as_bytes(response);
  ASSERT_EQ(client.next(in).kind, H1EventKind::kHead);
  out.clear();
  ASSERT_TRUE(append_response_head(out, client.head().status, client.head().reason,
                                   client.head().headers, 0)
                  .has_value());
  EXPECT_EQ(out, response);
}

TEST(H1Write, NothingBreaksOutOfItsLine) {
  HeaderList good, bad;
  good.add("a", "b");
  std::string out = "kept";
  EXPECT_FALSE(append_request_head(out, "GET", "/ HTTP/1.1\r\nEvil: 1", good).has_value());
  EXPECT_FALSE(append_request_head(out, "GET /", "/", good).has_value());
  EXPECT_FALSE(append_request_head(out, "GET", "", good).has_value());
  EXPECT_FALSE(append_response_head(out, 200, "OK\r\nEvil: 1", good).has_value());
  EXPECT_FALSE(append_response_head(out, 20, "OK", good).has_value());
  for (auto [name, value] :
       std::initializer_list<std::pair<std::string_view, std::string_view>>{{"a\r\nb", "c"},
                                                                            {"a", "b\r\nEvil: 1"},
                                                                            {"a", {"b\0c", 3}},
                                                                            {"a b", "c"},
                                                                            {"a:", "c"},
                                                                            {"", "c"},
                                                                            {":path", "/"}}) {
    HeaderList list;
    list.add("first", "fine");
    list.add(name, value);
    EXPECT_FALSE(append_request_head(out, "GET", "/", list).has_value()) << name;
    EXPECT_FALSE(append_response_head(out, 200, "OK", list).has_value()) << name;
    EXPECT_FALSE(append_last_chunk(out, list).has_value()) << name;
  }
  EXPECT_EQ(out, "kept");
}

TEST(H1Write, Framing) {
  HeaderList h;
  h.add("content-length", "7");
  h.add("Transfer-Encoding", "gzip");
  set_framing_headers(h, H1Framing::kChunked, 0);
  EXPECT_EQ(h.size(), 1u);
  EXPECT_EQ(h.value("Transfer-Encoding"), "chunked");
  set_framing_headers(h, H1Framing::kLength, 42);
  EXPECT_EQ(h.size(), 1u);
  EXPECT_EQ(h.value("content-length"), "42");
  set_framing_headers(h, H1Framing::kNone, 0);
  EXPECT_TRUE(h.empty());

  uint8_t buffer[18];
  for (auto [size, text] : std::initializer_list<std::pair<uint64_t, std::string>>{
           {1, "1\r\n"},
           {15, "f\r\n"},
           {16, "10\r\n"},
           {500, "1f4\r\n"},
           {~uint64_t{0}, "ffffffffffffffff\r\n"}})
    EXPECT_EQ(as_text({buffer, write_chunk_header(size, std::span<uint8_t, 18>(buffer))}), text);
  HeaderList trailers;
  trailers.add("X-Sum", "1");
  std::string out;
  ASSERT_TRUE(append_last_chunk(out, trailers).has_value());
  EXPECT_EQ(out, "0\r\nX-Sum: 1\r\n\r\n");
  EXPECT_EQ(reason_phrase(200), "OK");
  EXPECT_EQ(reason_phrase(503), "Service Unavailable");
  EXPECT_EQ(reason_phrase(799), "");
}

}  // namespace
}  // namespace meltemi::codec
