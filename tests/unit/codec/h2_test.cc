// HTTP/2 of the waypoint: two sessions face each other, and one faces hand-made frames.
#include "userspace/codec/h2.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>

#include "userspace/codec/h2_frame.h"

namespace meltemi::codec {
namespace {

using namespace std::chrono_literals;
using namespace std::string_literals;
const MonoTime kStart{std::chrono::hours(1)};

struct Buffer : H2Sink {
  std::string bytes;
  void append(ByteView piece) override { bytes += as_text(piece); }
};

// A body of which parts become available one by one.
struct Body : H2Body {
  std::string text;
  bool end = true;
  HeaderList fields;
  size_t taken = 0;
  explicit Body(std::string t, bool e = true) : text(std::move(t)), end(e) {}
  Ready ready(size_t max) override {
    const size_t n = std::min(max, text.size() - taken);
    return {n, end && taken + n == text.size()};
  }
  void take(size_t n, H2Sink& sink) override {
    sink.append(as_bytes(std::string_view(text).substr(taken, n)));
    taken += n;
  }
  const HeaderList* trailers() override { return fields.empty() ? nullptr : &fields; }
};

HeaderList fields(std::initializer_list<std::pair<const char*, std::string>> list) {
  HeaderList h;
  for (const auto& [n, v] : list) h.add(n, v);
  return h;
}
HeaderList get(std::string path = "/") {
  return fields({{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", path}});
}

struct End : H2Handler {
  std::vector<std::string> lines;
  std::map<uint32_t, std::string> data;
  H2Session session;
  std::function<void(uint32_t)> on_request;

  explicit End(H2Role role, H2Options o = {}) : session(role, *this, o) {}
  static std::string show(const HeaderList& list) {
    std::string out;
    for (const HeaderField f : list) out += " " + std::string(f.name) + "=" + std::string(f.value);
    return out;
  }
  void on_head(uint32_t id, HeaderList& h, bool end) override {
    lines.push_back(std::to_string(id) + " head" + show(h) + (end ? " end" : ""));
    if (on_request) on_request(id);
  }
  void on_informational(uint32_t id, const HeaderList& h) override {
    lines.push_back(std::to_string(id) + " info" + show(h));
  }
  void on_data(uint32_t id, ByteView d) override { data[id] += as_text(d); }
  void on_end(uint32_t id, const HeaderList& t) override {
    lines.push_back(std::to_string(id) + " end" + show(t));
  }
  void on_closed(uint32_t id, uint32_t code, bool unprocessed) override {
    lines.push_back(std::to_string(id) + " closed " + std::string(h2_code_name(code)) +
                    (unprocessed ? " unprocessed" : ""));
  }
  void on_goaway(uint32_t code) override {
    lines.push_back("goaway " + std::string(h2_code_name(code)));
  }
  void on_ping_ack(std::span<const uint8_t, 8>) override { lines.push_back("pong"); }

  std::string out(size_t max = 1 << 20) {
    Buffer b;
    while (session.flush(b, max)) {
    }
    return b.bytes;
  }
  bool has(std::string_view line) const {
    return std::find(lines.begin(), lines.end(), line) != lines.end();
  }
};

// Carries bytes both ways until both are quiet, in pieces of `step`.
void settle(End& a, End& b, size_t step = 1 << 20) {
  auto carry = [step](End& from, End& to) {
    const std::string bytes = from.out();
    for (size_t i = 0; i < bytes.size(); i += step)
      if (!to.session.receive(as_bytes(bytes).subspan(i, std::min(step, bytes.size() - i)), kStart))
        break;
    return !bytes.empty();
  };
  for (int i = 0; i < 10000; ++i) {
    const bool one = carry(a, b), two = carry(b, a);
    if (!one && !two) return;
  }
  FAIL() << "the two do not come to rest";
}

TEST(H2, RequestResponseTrailers) {
  for (size_t step : {size_t{1}, size_t{3}, size_t{50}, size_t{1} << 20}) {
    End client(H2Role::kClient), server(H2Role::kServer);
    settle(client, server, step);
    EXPECT_TRUE(client.session.peer_allows_extended_connect());
    Body up("request body"), down("response body");
    down.fields.add("grpc-status", "0");
    server.on_request = [&](uint32_t id) {
      EXPECT_TRUE(server.session.informational(id, fields({{":status", "103"}, {"link", "x"}})));
      EXPECT_TRUE(server.session.respond(id, fields({{":status", "200"}, {"Server", "m"}}), &down));
    };
    HeaderList h = get("/x");
    h.add("te", "trailers");
    const uint32_t id = client.session.request(h, &up).value();
    settle(client, server, step);
    EXPECT_EQ(server.lines, (std::vector<std::string>{
                                "1 head :method=GET :scheme=http :authority=a :path=/x te=trailers",
                                "1 end", "1 closed NO_ERROR"}));
    EXPECT_EQ(client.lines,
              (std::vector<std::string>{"1 info :status=103 link=x", "1 head :status=200 server=m",
                                        "1 end grpc-status=0", "1 closed NO_ERROR"}));
    EXPECT_EQ(server.data[id], "request body");
    EXPECT_EQ(client.data[id], "response body");
    EXPECT_EQ(client.session.stream_count() + server.session.stream_count(), 0u);
  }
}

TEST(H2, EmptyBodiesEndWithTheirHead) {
  End client(H2Role::kClient), server(H2Role::kServer);
  server.on_request = [&](uint32_t id) {
    EXPECT_TRUE(server.session.respond(id, fields({{":status", "204"}}), nullptr));
  };
  ASSERT_TRUE(client.session.request(get(), nullptr).has_value());
  settle(client, server);
  EXPECT_TRUE(server.lines[0].ends_with(" end"));
  EXPECT_EQ(client.lines[0], "1 head :status=204 end");
}

TEST(H2, TrailersWithoutBodySendNoEmptyData) {
  End client(H2Role::kClient), server(H2Role::kServer);
  Body none("");
  none.fields.add("grpc-status", "5");
  server.on_request = [&](uint32_t id) {
    EXPECT_TRUE(server.session.respond(id, fields({{":status", "200"}}), &none));
  };
  ASSERT_TRUE(client.session.request(get(), nullptr).has_value());
  settle(client, server);
  EXPECT_EQ(client.lines.size(), 3u);
  EXPECT_EQ(client.lines[1], "1 end grpc-status=5");
}

TEST(H2, StalledReaderStallsItsSenderOnly) {
  H2Options options;
  options.initial_stream_window = 100'000;
  options.connection_window = 1 << 20;
  End client(H2Role::kClient), server(H2Role::kServer, options);
  settle(client, server);
  Body big(std::string(400'000, 'a')), other(std::string(50'000, 'b'));
  const uint32_t first = client.session.request(get(), &big).value();
  const uint32_t second = client.session.request(get(), &other).value();
  settle(client, server);
  EXPECT_EQ(server.data[first].size(), 100'000u);
  EXPECT_EQ(server.data[second].size(), 50'000u) << "the other stream goes on";
  EXPECT_EQ(big.taken, 100'000u) << "nothing is held in between";
  for (int i = 0; i < 20; ++i) {
    server.session.consume(first, 60'000);
    settle(client, server);
  }
  EXPECT_EQ(server.data[first].size(), 400'000u);
}

TEST(H2, UnconsumedBytesOfDeadStreamsComeBack) {
  H2Options options;
  options.initial_stream_window = 65'535;
  options.connection_window = 100'000;
  End client(H2Role::kClient), server(H2Role::kServer, options);
  settle(client, server);
  for (int i = 0; i < 30; ++i) {  // 30 times 60 kB, of which nobody consumes a byte
    Body body(std::string(60'000, 'x'));
    const uint32_t id = client.session.request(get(), &body).value();
    settle(client, server);
    EXPECT_EQ(server.data[id].size(), 60'000u) << i;
    server.session.reset(id, H2Code::kCancel);
    settle(client, server);
  }
  EXPECT_FALSE(server.session.failure());
}

TEST(H2, BodiesThatComeLater) {
  End client(H2Role::kClient), server(H2Role::kServer);
  Body body("one", false);
  const uint32_t id = client.session.request(get(), &body).value();
  settle(client, server);
  EXPECT_EQ(server.data[id], "one");
  EXPECT_FALSE(client.session.wants_write());
  body.text += " two";
  client.session.resume(id);
  settle(client, server);
  EXPECT_EQ(server.data[id], "one two");
  body.end = true;
  client.session.resume(id);
  settle(client, server);
  EXPECT_TRUE(server.has("1 end"));
}

TEST(H2, FlushStopsAtItsBudget) {
  End client(H2Role::kClient), server(H2Role::kServer);
  settle(client, server);
  Body body(std::string(60'000, 'x'));
  ASSERT_TRUE(client.session.request(get(), &body).has_value());
  Buffer out;
  int flushes = 1;
  while (client.session.flush(out, 1000)) {
    EXPECT_LE(out.bytes.size(), 1000u + 16384 + 9);
    EXPECT_TRUE(server.session.receive(as_bytes(out.bytes), kStart).has_value());
    out.bytes.clear();
    ++flushes;
  }
  EXPECT_TRUE(server.session.receive(as_bytes(out.bytes), kStart).has_value());
  EXPECT_GT(flushes, 3);
  EXPECT_EQ(server.data[1], body.text);
}

TEST(H2, ResetBetweenTwoFlushes) {
  End client(H2Role::kClient), server(H2Role::kServer);
  settle(client, server);
  auto body = std::make_unique<Body>(std::string(60'000, 'x'));
  const uint32_t id = client.session.request(get(), body.get()).value();
  Buffer out;
  ASSERT_TRUE(client.session.flush(out, 100));  // HEADERS; a DATA frame waits for the next flush
  client.session.reset(id, H2Code::kCancel);
  body.reset();
  out.bytes += client.out();
  EXPECT_TRUE(server.session.receive(as_bytes(out.bytes), kStart).has_value());
  EXPECT_TRUE(server.has("1 closed CANCEL"));
  Body after("still in step");
  const uint32_t next = client.session.request(get(), &after).value();
  settle(client, server);
  EXPECT_EQ(server.data[next], "still in step");
}

TEST(H2, ResetBothWays) {
  End client(H2Role::kClient), server(H2Role::kServer);
  settle(client, server);  // more than one request before the peer's SETTINGS is not taken
  Body body("x", false), never("", false);
  const uint32_t a = client.session.request(get(), &body).value();
  const uint32_t b = client.session.request(get(), nullptr).value();
  settle(client, server);
  EXPECT_TRUE(server.session.respond(b, fields({{":status", "200"}}), &never));
  client.session.reset(a, H2Code::kCancel);
  server.session.reset(b, H2Code::kRefusedStream);
  settle(client, server);
  EXPECT_TRUE(server.has("1 closed CANCEL"));
  EXPECT_TRUE(client.has("3 closed REFUSED_STREAM unprocessed"));
}

TEST(H2, EarlyAnswerThenNoError) {
  End client(H2Role::kClient), server(H2Role::kServer);
  Body endless("x", false), answer("too much");
  server.on_request = [&](uint32_t id) {
    EXPECT_TRUE(server.session.respond(id, fields({{":status", "413"}}), &answer));
    server.session.reset(id, H2Code::kNoError);
  };
  const uint32_t id = client.session.request(get(), &endless).value();
  settle(client, server);
  EXPECT_EQ(client.data[id], "too much");
  EXPECT_TRUE(client.has("1 head :status=413"));
  EXPECT_EQ(client.lines.back(), "1 closed NO_ERROR");
  EXPECT_EQ(server.session.stream_count(), 0u);
}

TEST(H2, DrainInTwoSteps) {
  End client(H2Role::kClient), server(H2Role::kServer);
  const uint32_t id = client.session.request(get(), nullptr).value();
  settle(client, server);
  server.session.drain();
  settle(client, server);
  EXPECT_TRUE(client.has("goaway NO_ERROR"));
  EXPECT_FALSE(client.session.can_request());
  EXPECT_EQ(client.session.request(get(), nullptr).error().retry, Retry::kSafe);
  const uint8_t payload[8] = {};
  server.session.ping(payload);
  settle(client, server);
  EXPECT_TRUE(server.has("pong"));
  server.session.drain();
  EXPECT_FALSE(server.session.finished());
  EXPECT_TRUE(server.session.respond(id, fields({{":status", "200"}}), nullptr));
  settle(client, server);
  EXPECT_TRUE(server.session.finished());
  EXPECT_TRUE(client.session.finished());
}

TEST(H2, RequestsAboveThePeersLimitAreRetryable) {
  H2Options options;
  options.max_concurrent_streams = 2;
  End client(H2Role::kClient), server(H2Role::kServer, options);
  settle(client, server);
  EXPECT_EQ(client.session.peer_max_streams(), 2u);
  EXPECT_TRUE(client.session.request(get(), nullptr).has_value());
  EXPECT_TRUE(client.session.request(get(), nullptr).has_value());
  EXPECT_FALSE(client.session.can_request());
  const auto third = client.session.request(get(), nullptr);
  ASSERT_FALSE(third.has_value());
  EXPECT_EQ(third.error().reason, Reason::kLimitExceeded);
  EXPECT_EQ(third.error().retry, Retry::kSafe);
}

TEST(H2, ExtendedConnect) {
  End client(H2Role::kClient), server(H2Role::kServer);
  settle(client, server);
  Body up("frames", false);
  HeaderList h = fields({{":method", "CONNECT"},
                         {":protocol", "websocket"},
                         {":scheme", "http"},
                         {":path", "/chat"},
                         {":authority", "a"}});
  const uint32_t id = client.session.request(h, &up).value();
  settle(client, server);
  EXPECT_NE(server.lines[0].find(":protocol=websocket"), std::string::npos);
  EXPECT_EQ(server.data[id], "frames");
}

TEST(H2, WillNotSendWhatBreaksHttp) {
  End client(H2Role::kClient);
  for (const HeaderList& bad :
       {fields({{":method", "GET"}, {"a b", "c"}}), fields({{":method", "GET"}, {"a", "b\r\nc"}}),
        fields({{":method", "GET"}, {"a", "b\0c"s}}),
        fields({{":method", "GET"}, {"connection", "x"}}),
        fields({{":method", "GET"}, {"Transfer-Encoding", "chunked"}}),
        fields({{":method", "GET"}, {"te", "gzip"}}), fields({{"a", "b"}, {":method", "GET"}}),
        fields({{":method", "GET\n"}})}) {
    const auto r = client.session.request(bad, nullptr);
    ASSERT_FALSE(r.has_value());
    EXPECT_EQ(r.error().reason, Reason::kBadRequest);
  }
}

// --- hostile peers ------------------------------------------------------------------------------
std::string frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string out(9, '\0');
  h2::write_frame_header(reinterpret_cast<uint8_t*>(out.data()),
                         static_cast<uint32_t>(payload.size()), type, flags, stream);
  return out + std::string(payload);
}
std::string be32(uint32_t v) {
  std::string s(4, '\0');
  store_be(reinterpret_cast<uint8_t*>(s.data()), v);
  return s;
}
const std::string kHello = std::string(h2::kPreface) + frame(4, 0, 0, "");
// GET http a / by static table entries and one literal authority.
const std::string kGet =
    "\x82\x86\x84\x01\x01"
    "a";
std::string headers(uint32_t id, uint8_t flags = 5, std::string block = kGet) {
  return frame(1, flags, id, block);
}

void expect_limit(H2Limit limit, int calm, int most, const std::function<std::string(int)>& attack,
                  std::string first = "", bool peer_reads = true) {
  End server(H2Role::kServer);
  ASSERT_TRUE(server.session.receive(as_bytes(kHello + first), kStart).has_value());
  server.out();
  int i = 0;
  Status status;
  for (; i < most && status; ++i) {
    status = server.session.receive(as_bytes(attack(i)), kStart);
    if (peer_reads && status) server.out();
  }
  ASSERT_FALSE(status.has_value()) << "it takes " << most << " of them";
  EXPECT_GT(i, calm);
  EXPECT_EQ(status.error().reason, Reason::kLimitExceeded);
  EXPECT_TRUE(status.error().detail.starts_with(h2_limit_name(limit))) << status.error().detail;
  const std::string out = server.out();
  ASSERT_EQ(out.size(), 17u);
  EXPECT_EQ(out[3], 7);
  EXPECT_EQ(load_be<uint32_t>(reinterpret_cast<const uint8_t*>(out.data()) + 13), 11u);
  EXPECT_FALSE(server.session.receive(as_bytes(headers(99)), kStart).has_value());
  EXPECT_FALSE(server.session.wants_write());
}

TEST(H2Abuse, RapidReset) {
  expect_limit(H2Limit::kResetFlood, 400, 2000, [](int i) {
    const uint32_t id = 1 + 2 * static_cast<uint32_t>(i);
    return headers(id, 4) + frame(3, 0, id, be32(8));
  });
}
TEST(H2Abuse, ProvokedResets) {
  expect_limit(H2Limit::kResetFlood, 400, 2000,
               [](int i) { return headers(1 + 2 * static_cast<uint32_t>(i), 5, "\x82"); });
}
TEST(H2Abuse, ContinuationFlood) {
  expect_limit(H2Limit::kContinuationFlood, 7, 100,
               [](int i) { return i == 0 ? headers(1, 1) : frame(9, 0, 1, ""); });
}
TEST(H2Abuse, PingFlood) {
  expect_limit(H2Limit::kControlFlood, 150, 1000, [](int) { return frame(6, 0, 0, "12345678"); });
}
TEST(H2Abuse, SettingsFlood) {
  expect_limit(H2Limit::kControlFlood, 150, 1000, [](int) { return frame(4, 0, 0, ""); });
}
TEST(H2Abuse, PriorityFlood) {
  expect_limit(H2Limit::kControlFlood, 150, 1000,
               [](int) { return frame(2, 0, 1, be32(0) + "\x10"); });
}
TEST(H2, UnknownFramesAreSkipped) {
  End server(H2Role::kServer);
  ASSERT_TRUE(server.session
                  .receive(as_bytes(kHello + frame(0xee, 0xff, 1, "whatever") + headers(1)), kStart)
                  .has_value());
  EXPECT_EQ(server.lines.size(), 1u);
}
TEST(H2Abuse, EmptyData) {
  expect_limit(
      H2Limit::kEmptyDataFlood, 90, 1000, [](int) { return frame(0, 0, 1, ""); }, headers(1, 4));
}

TEST(H2Abuse, WindowUpdates) {
  expect_limit(H2Limit::kWindowFlood, 9000, 20'000, [](int) { return frame(8, 0, 0, be32(1)); });
}
TEST(H2Abuse, InformationalResponses) {
  End client(H2Role::kClient);
  ASSERT_TRUE(client.session.request(get(), nullptr).has_value());
  ASSERT_TRUE(client.session.receive(as_bytes(frame(4, 0, 0, "")), kStart).has_value());
  const std::string info = frame(1, 4, 1,
                                 "\x48\x03"
                                 "103");
  int i = 0;
  while (i < 1000 && client.session.receive(as_bytes(info), kStart)) ++i;
  EXPECT_GT(i, 150);
  ASSERT_NE(client.session.failure(), nullptr);
  EXPECT_TRUE(client.session.failure()->detail.starts_with("h2_control_flood"));
}
TEST(H2Abuse, UnreadReplies) {
  H2Options options;
  options.control_burst = 1'000'000;
  End server(H2Role::kServer, options);
  ASSERT_TRUE(server.session.receive(as_bytes(kHello), kStart).has_value());
  int i = 0;
  while (i < 10'000 && server.session.receive(as_bytes(frame(6, 0, 0, "12345678")), kStart)) ++i;
  EXPECT_GT(i, 900);
  EXPECT_LT(i, 1100);
  ASSERT_NE(server.session.failure(), nullptr);
  EXPECT_TRUE(server.session.failure()->detail.starts_with("h2_unread_replies"));
  EXPECT_EQ(server.out().size(), 17u) << "the answers are dropped";
}
// One byte of HPACK may stand for 4 KiB of header: the list's limit holds, and memory is not taken.
TEST(H2Abuse, IndexedFieldsBomb) {
  End server(H2Role::kServer);
  ASSERT_TRUE(server.session.receive(as_bytes(kHello), kStart).has_value());
  const std::string field = "\x40\1x"s + "\x7f\x81\x1d"s + std::string(3840, 'v');
  ASSERT_TRUE(server.session.receive(as_bytes(headers(1, 5, kGet + field)), kStart).has_value());
  EXPECT_EQ(server.lines.size(), 1u);
  server.lines.clear();
  ASSERT_TRUE(
      server.session.receive(as_bytes(headers(3, 5, kGet + std::string(16'000, '\xbe'))), kStart)
          .has_value());
  EXPECT_TRUE(server.lines.empty()) << "431";
  ASSERT_TRUE(server.session.receive(as_bytes(headers(5, 5, kGet + "\xbe")), kStart).has_value());
  EXPECT_EQ(server.lines.size(), 1u) << "HPACK is still in step";
}

TEST(H2Abuse, LargeHeadersCostTheirStreamOnly) {
  End server(H2Role::kServer);
  ASSERT_TRUE(server.session.receive(as_bytes(kHello), kStart).has_value());
  // Reads the answers: its own requests are thrown away in favour of the hostile ones.
  End client(H2Role::kClient);
  ASSERT_TRUE(client.session.receive(as_bytes(server.out()), kStart).has_value());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(client.session.request(get(), nullptr).has_value());
  client.out();
  auto answer = [&] { return client.session.receive(as_bytes(server.out()), kStart).has_value(); };
  ASSERT_TRUE(answer());
  // Five fields of 16 kB, literals without indexing, a frame each.
  const std::string field = "\0\1x"s + "\x7f\x81\x7c"s + std::string(16000, 'v');
  std::string wire = headers(1, 1, kGet);
  for (int i = 0; i < 5; ++i) wire += frame(9, i == 4 ? 4 : 0, 1, field);
  ASSERT_TRUE(server.session.receive(as_bytes(wire), kStart).has_value());
  EXPECT_TRUE(server.lines.empty()) << "the handler never sees it";
  ASSERT_TRUE(answer());
  EXPECT_TRUE(client.has("1 head :status=431 end"));
  ASSERT_TRUE(server.session.receive(as_bytes(headers(3)), kStart).has_value());
  EXPECT_EQ(server.lines.size(), 1u) << "HPACK is still in step";
  // Too many fields.
  std::string many = kGet;
  for (int i = 0; i < 150; ++i) many += "\0\1a\1b"s;
  ASSERT_TRUE(server.session.receive(as_bytes(headers(5, 5, many)), kStart).has_value());
  ASSERT_TRUE(answer());
  EXPECT_TRUE(client.has("5 head :status=431 end"));
  EXPECT_EQ(server.lines.size(), 1u);
}

TEST(H2Abuse, ProtocolErrorsEndTheConnection) {
  for (const std::string& bytes :
       {"GET / HTTP/1.1\r\n\r\n"s + std::string(20, ' '), kHello + frame(0, 0, 1, "x"),
        kHello + frame(6, 0, 0, "1"), kHello + headers(2),
        kHello + headers(1, 5, "\xff\xff\xff\xff")}) {
    End server(H2Role::kServer);
    const Status s = server.session.receive(as_bytes(bytes), kStart);
    const std::string out = server.out();
    ASSERT_NE(server.session.failure(), nullptr);
    EXPECT_EQ(server.session.failure()->reason, Reason::kBadRequest);
    EXPECT_TRUE(server.lines.empty());
    EXPECT_FALSE(server.session.receive(as_bytes(headers(1)), kStart).has_value());
  }
}

TEST(H2Abuse, MalformedRequestsNeverReachTheHandler) {
  End server(H2Role::kServer);
  ASSERT_TRUE(server.session.receive(as_bytes(kHello), kStart).has_value());
  uint32_t id = 1;
  auto literal = [](std::string_view n, std::string_view v) {
    return "\0"s + static_cast<char>(n.size()) + std::string(n) + static_cast<char>(v.size()) +
           std::string(v);
  };
  for (const std::string& extra :
       {literal("Upper", "x"), literal("x", "a\nb"), literal("x", "a\0b"s),
        literal("connection", "close"), literal("transfer-encoding", "chunked"),
        literal(":path", "/2"), literal(":odd", "x"),
        literal("content-length", "1") + literal("content-length", "2")}) {
    ASSERT_TRUE(server.session.receive(as_bytes(headers(id, 5, kGet + extra)), kStart).has_value());
    EXPECT_TRUE(server.lines.empty()) << server.lines[0];
    id += 2;
  }
  // Content-Length that does not fit the body.
  ASSERT_TRUE(server.session
                  .receive(as_bytes(headers(id, 4, kGet + literal("content-length", "2")) +
                                    frame(0, 1, id, "abc")),
                           kStart)
                  .has_value());
  EXPECT_FALSE(server.has(std::to_string(id) + " end"));
}

}  // namespace
}  // namespace meltemi::codec
