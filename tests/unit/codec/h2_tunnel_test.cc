// The tunnel's HTTP/2: against nghttp2 in both roles, against itself byte by byte, and against
// peers that break or abuse the protocol.
#include "userspace/codec/h2_tunnel.h"

#include <gtest/gtest.h>
#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>

#include "userspace/codec/h2_frame.h"

namespace meltemi::codec {
namespace {

using namespace std::chrono_literals;

const MonoTime kStart{std::chrono::hours(1)};

std::string take_pending(TunnelSession& s) {
  std::string out(as_text(s.pending()));
  s.clear_pending();
  return out;
}

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
std::string data_frame(TunnelSession& s, uint32_t id, std::string_view payload, bool end) {
  std::string out(9, '\0');
  if (!s.write_data_header(id, static_cast<uint32_t>(payload.size()), end,
                           std::span<uint8_t, 9>(reinterpret_cast<uint8_t*>(out.data()), 9)))
    return "";
  return out + std::string(payload);
}

// One line an event, payload gathered, so that transcripts can be compared.
struct Log {
  std::vector<std::string> lines;
  std::map<uint32_t, std::string> data;
  std::vector<uint32_t> requests, writable;
  std::map<uint32_t, uint16_t> status;

  void feed(TunnelSession& s, std::string_view bytes, MonoTime now = kStart) {
    ByteView in = as_bytes(bytes);
    for (;;) {
      const TunnelEvent e = s.next(in, now);
      if (e.kind == TunnelEventKind::kNone) break;
      add(e);
    }
    EXPECT_TRUE(in.empty());
  }
  void add(const TunnelEvent& e) {
    std::string line = std::to_string(e.stream);
    switch (e.kind) {
      case TunnelEventKind::kRequest:
      case TunnelEventKind::kResponse:
        line += e.kind == TunnelEventKind::kRequest ? " request" : " response";
        if (e.kind == TunnelEventKind::kRequest) requests.push_back(e.stream);
        if (e.status != 0) status[e.stream] = e.status;
        for (const HeaderField& f : e.headers)
          line += " " + std::string(f.name) + "=" + std::string(f.value);
        break;
      case TunnelEventKind::kData:
        data[e.stream] += as_text(e.data);
        if (!e.end_stream) return;
        line += " end";
        break;
      case TunnelEventKind::kEnd:
        line += " end";
        break;
      case TunnelEventKind::kReset:
        line += " reset " + std::string(h2_code_name(e.code));
        if (e.unprocessed) line += " unprocessed";
        break;
      case TunnelEventKind::kWritable:
        line += " writable";
        writable.push_back(e.stream);
        break;
      case TunnelEventKind::kGoaway:
        line += " goaway " + std::string(h2_code_name(e.code));
        break;
      case TunnelEventKind::kPong:
        line += " pong " + std::string(as_text(e.data));
        break;
      case TunnelEventKind::kFailed:
        line += " failed";
        break;
      case TunnelEventKind::kNone:
        return;
    }
    if (e.kind == TunnelEventKind::kRequest || e.kind == TunnelEventKind::kResponse)
      if (e.end_stream) line += " end";
    lines.push_back(line);
  }
  bool has(std::string_view line) const {
    return std::find(lines.begin(), lines.end(), line) != lines.end();
  }
};

const HeaderField kHeaders[] = {{"baggage", "k8s.namespace.name=shop"},
                                {"forwarded", "for=\"10.0.0.1:4711\";host=web"}};

// A session of ours that has seen the peer's preface, and the frames of a plain peer.
TunnelSession ready_server(TunnelOptions options = {}) {
  TunnelSession s(TunnelRole::kServer, options, kStart);
  Log log;
  log.feed(s, std::string(h2::kPreface) + frame(h2::kSettings, 0, 0, ""));
  EXPECT_TRUE(log.lines.empty());
  take_pending(s);
  return s;
}
TunnelSession ready_client(TunnelOptions options = {}, std::string_view settings = "") {
  TunnelSession s(TunnelRole::kClient, options, kStart);
  Log log;
  log.feed(s, frame(h2::kSettings, 0, 0, settings));
  take_pending(s);
  return s;
}
// :method CONNECT, :authority a:1, literals without indexing.
const std::string kConnectBlock = std::string("\x02\x07", 2) + "CONNECT" + "\x01\x03" + "a:1";
std::string connect_frame(uint32_t id, uint8_t flags = h2::kFlagEndHeaders) {
  return frame(h2::kHeaders, flags, id, kConnectBlock);
}
H2Code goaway_code(std::string_view out) {
  // The last GOAWAY of `out`.
  uint32_t code = 0xffffffff;
  while (out.size() >= 9) {
    const auto* p = reinterpret_cast<const uint8_t*>(out.data());
    const size_t size = 9 + load_be24(p);
    if (p[3] == h2::kGoaway) code = load_be<uint32_t>(p + 13);
    out.remove_prefix(std::min(size, out.size()));
  }
  return static_cast<H2Code>(code);
}

TEST(Tunnel, SettingsInTheOrderOfThePeer) {
  TunnelSession client(TunnelRole::kClient, {}, kStart);
  std::string out = take_pending(client);
  ASSERT_TRUE(out.starts_with(h2::kPreface));
  out.erase(0, h2::kPreface.size());
  auto setting = [](uint16_t id, uint32_t value) {
    std::string s(2, '\0');
    s[1] = static_cast<char>(id);
    return s + be32(value);
  };
  EXPECT_EQ(
      out,
      frame(4, 0, 0, setting(2, 0) + setting(4, 262144) + setting(5, 1048576) + setting(6, 65536)) +
          frame(8, 0, 0, be32(16 * 1024 * 1024 - 65535)));
  TunnelSession server(TunnelRole::kServer, {}, kStart);
  EXPECT_EQ(take_pending(server),
            frame(4, 0, 0,
                  setting(3, 200) + setting(4, 262144) + setting(5, 1048576) + setting(6, 65536)) +
                frame(8, 0, 0, be32(16 * 1024 * 1024 - 65535)));
}

// Both ends are ours; the client's bytes arrive in pieces of `step`.
std::vector<std::string> dialogue(size_t step) {
  TunnelSession client(TunnelRole::kClient, {}, kStart), server(TunnelRole::kServer, {}, kStart);
  Log at_client, at_server;
  auto to = [step](TunnelSession& s, Log& log, std::string_view bytes) {
    for (size_t i = 0; i < bytes.size(); i += step) log.feed(s, bytes.substr(i, step));
  };
  to(server, at_server, take_pending(client));
  to(client, at_client, take_pending(server));
  int marker = 0;
  const uint32_t id = client.connect("10.0.0.2:80", kHeaders, &marker).value();
  EXPECT_EQ(client.sendable(id), 0u) << "HEADERS are not out yet";
  std::string out = take_pending(client);
  out += data_frame(client, id, "hello", false) + data_frame(client, id, " world", true);
  to(server, at_server, out);
  const HeaderField answer[] = {{"baggage", "service.name=web"}};
  server.respond(id, 200, answer, false);
  EXPECT_EQ(server.sendable(id), 0u);
  out = take_pending(server);
  out += data_frame(server, id, std::string(1000, 'x'), false);
  out += data_frame(server, id, "", true);
  EXPECT_FALSE(server.known(id));
  to(client, at_client, out);
  EXPECT_FALSE(client.known(id));
  const uint32_t other = client.connect("[fd00::1]:443", {}, nullptr).value();
  to(server, at_server, take_pending(client));
  server.respond(other, 401, {}, true);
  to(client, at_client, take_pending(server));
  EXPECT_EQ(client.stream_count() + server.stream_count(), 0u);
  std::vector<std::string> all = at_server.lines;
  all.insert(all.end(), at_client.lines.begin(), at_client.lines.end());
  all.push_back(at_server.data[id] + at_client.data[id]);
  return all;
}

TEST(Tunnel, SplitAtEveryByte) {
  const std::vector<std::string> whole = dialogue(1 << 20);
  EXPECT_EQ(whole, (std::vector<std::string>{
                       "1 request :method=CONNECT :authority=10.0.0.2:80 "
                       "baggage=k8s.namespace.name=shop forwarded=for=\"10.0.0.1:4711\";host=web",
                       "1 end", "3 request :method=CONNECT :authority=[fd00::1]:443",
                       "1 response :status=200 baggage=service.name=web", "1 end",
                       "3 response :status=401 end", "3 reset NO_ERROR",
                       "hello world" + std::string(1000, 'x')}));
  for (size_t step = 1; step < 60; ++step) EXPECT_EQ(dialogue(step), whole) << step;
}

// --- nghttp2 as the other end -------------------------------------------------------------------
struct Oracle {
  nghttp2_session* session = nullptr;
  std::vector<std::string> lines;
  std::map<int32_t, std::string> data;
  std::map<int32_t, std::string> to_send;  // taken from the front
  std::map<int32_t, bool> finish;

  explicit Oracle(bool server, uint32_t window = 65535) {
    nghttp2_session_callbacks* cb;
    nghttp2_session_callbacks_new(&cb);
    nghttp2_session_callbacks_set_on_header_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, const uint8_t* n, size_t nl,
               const uint8_t* v, size_t vl, uint8_t, void* self) {
          static_cast<Oracle*>(self)->lines.push_back(std::to_string(f->hd.stream_id) + " " +
                                                      std::string(as_text({n, nl})) + "=" +
                                                      std::string(as_text({v, vl})));
          return 0;
        });
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        cb, [](nghttp2_session*, uint8_t, int32_t id, const uint8_t* d, size_t n, void* self) {
          static_cast<Oracle*>(self)->data[id] += as_text({d, n});
          return 0;
        });
    nghttp2_session_callbacks_set_on_frame_recv_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, void* self) {
          auto* o = static_cast<Oracle*>(self);
          if ((f->hd.type == NGHTTP2_DATA || f->hd.type == NGHTTP2_HEADERS) &&
              (f->hd.flags & NGHTTP2_FLAG_END_STREAM))
            o->lines.push_back(std::to_string(f->hd.stream_id) + " end");
          if (f->hd.type == NGHTTP2_GOAWAY)
            o->lines.push_back("goaway " + std::to_string(f->goaway.last_stream_id) + " " +
                               nghttp2_http2_strerror(f->goaway.error_code));
          if (f->hd.type == NGHTTP2_RST_STREAM)
            o->lines.push_back(std::to_string(f->hd.stream_id) + " reset " +
                               nghttp2_http2_strerror(f->rst_stream.error_code));
          return 0;
        });
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
        cb, [](nghttp2_session*, const nghttp2_frame*, int error, void*) {
          ADD_FAILURE() << "nghttp2 refuses our frame: " << nghttp2_strerror(error);
          return 0;
        });
    if (server)
      nghttp2_session_server_new(&session, cb, this);
    else
      nghttp2_session_client_new(&session, cb, this);
    nghttp2_session_callbacks_del(cb);
    const nghttp2_settings_entry iv[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window},
                                         {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 100}};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, iv, 2);
  }
  ~Oracle() { nghttp2_session_del(session); }

  void feed(std::string_view bytes) {
    const auto view = as_bytes(bytes);
    const ssize_t n = nghttp2_session_mem_recv(session, view.data(), view.size());
    EXPECT_EQ(n, static_cast<ssize_t>(bytes.size())) << nghttp2_strerror(static_cast<int>(n));
  }
  std::string out() {
    std::string all;
    const uint8_t* p;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(session, &p)) > 0)
      all += as_text({p, static_cast<size_t>(n)});
    return all;
  }
  static ssize_t read(nghttp2_session*, int32_t id, uint8_t* buf, size_t size, uint32_t* flags,
                      nghttp2_data_source* source, void*) {
    auto* o = static_cast<Oracle*>(source->ptr);
    std::string& body = o->to_send[id];
    const size_t n = std::min(size, body.size());
    std::memcpy(buf, body.data(), n);
    body.erase(0, n);
    if (body.empty() && o->finish[id]) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
    } else if (n == 0) {
      return NGHTTP2_ERR_DEFERRED;
    }
    return static_cast<ssize_t>(n);
  }
  static nghttp2_nv nv(std::string_view n, std::string_view v) {
    return {reinterpret_cast<uint8_t*>(const_cast<char*>(n.data())),
            reinterpret_cast<uint8_t*>(const_cast<char*>(v.data())), n.size(), v.size(), 0};
  }
  int32_t connect(std::string_view authority) {
    const nghttp2_nv headers[] = {nv(":method", "CONNECT"), nv(":authority", authority),
                                  nv("baggage", "service.name=web")};
    nghttp2_data_provider provider{{.ptr = this}, read};
    return nghttp2_submit_request(session, nullptr, headers, 3, &provider, nullptr);
  }
  void respond(int32_t id, std::string_view status) {
    const nghttp2_nv headers[] = {nv(":status", status)};
    nghttp2_data_provider provider{{.ptr = this}, read};
    nghttp2_submit_response(session, id, headers, 1, &provider);
  }
};

void settle(TunnelSession& ours, Log& log, Oracle& oracle) {
  for (int i = 0; i < 10000; ++i) {
    const std::string a = take_pending(ours), b = oracle.out();
    if (a.empty() && b.empty()) return;
    oracle.feed(a);
    log.feed(ours, b);
  }
  FAIL() << "the two do not come to rest";
}

TEST(TunnelOracle, OurClientToNghttp2Server) {
  TunnelSession client(TunnelRole::kClient, {}, kStart);
  Oracle server(true);
  Log log;
  settle(client, log, server);
  EXPECT_TRUE(client.peer_settings_seen());
  const uint32_t id = client.connect("10.0.0.2:80", kHeaders, &log).value();
  EXPECT_EQ(client.user(id), &log);
  settle(client, log, server);
  EXPECT_EQ(server.lines, (std::vector<std::string>{"1 :method=CONNECT", "1 :authority=10.0.0.2:80",
                                                    "1 baggage=k8s.namespace.name=shop",
                                                    "1 forwarded=for=\"10.0.0.1:4711\";host=web"}));
  server.respond(static_cast<int32_t>(id), "200");
  settle(client, log, server);
  EXPECT_EQ(log.status[id], 200);

  // 300 KB through a window of 64 KiB, with the frames the window allows.
  std::mt19937 random(7);
  std::string body(300'000, '\0');
  for (char& c : body) c = static_cast<char>(random());
  size_t sent = 0;
  for (int turn = 0; turn < 10000 && sent < body.size(); ++turn) {
    const size_t n = std::min<size_t>(client.sendable(id), body.size() - sent);
    if (n == 0) {
      settle(client, log, server);
      continue;
    }
    const bool last = sent + n == body.size();
    server.feed(data_frame(client, id, std::string_view(body).substr(sent, n), last));
    sent += n;
  }
  EXPECT_EQ(server.data[1], body);
  EXPECT_FALSE(log.writable.empty());

  server.to_send[1] = body;
  server.finish[1] = true;
  nghttp2_session_resume_data(server.session, 1);
  for (int turn = 0; turn < 1000 && log.data[id].size() < body.size(); ++turn) {
    settle(client, log, server);
    client.consume(id, 100'000);
  }
  EXPECT_EQ(log.data[id], body);
  EXPECT_TRUE(log.has("1 end"));
  EXPECT_FALSE(client.known(id));
  EXPECT_FALSE(client.failed());
}

TEST(TunnelOracle, Nghttp2ClientToOurServer) {
  TunnelOptions options;
  options.initial_stream_window = 70'000;
  TunnelSession server(TunnelRole::kServer, options, kStart);
  Oracle client(false);
  Log log;
  settle(server, log, client);
  // Repeated fields make nghttp2 use its dynamic table and Huffman coding.
  for (int i = 0; i < 5; ++i) client.connect("10.0.0.2:8080");
  settle(server, log, client);
  ASSERT_EQ(log.requests.size(), 5u);
  for (uint32_t id : log.requests)
    EXPECT_TRUE(log.has(std::to_string(id) + " request :method=CONNECT :authority=10.0.0.2:8080 "
                                             "baggage=service.name=web"));
  for (uint32_t id : log.requests) server.respond(id, 200, {}, false);
  settle(server, log, client);

  const std::string body(500'000, 'b');
  client.to_send[1] = body;
  client.finish[1] = true;
  nghttp2_session_resume_data(client.session, 1);
  settle(server, log, client);
  EXPECT_EQ(log.data[1].size(), 70'000u) << "no more than the window";
  EXPECT_TRUE(server.window_limited(1));
  server.grow_window(1, 200'000);
  EXPECT_FALSE(server.window_limited(1));
  settle(server, log, client);
  EXPECT_EQ(log.data[1].size(), 200'000u);
  for (int turn = 0; turn < 100 && !log.has("1 end"); ++turn) {
    server.consume(1, 100'000);
    settle(server, log, client);
  }
  EXPECT_EQ(log.data[1], body);
  // The other direction.
  std::string all;
  while (uint32_t n = server.sendable(1)) {
    const std::string f = data_frame(server, 1, std::string(n, 'c'), false);
    all += std::string(n, 'c');
    client.feed(f);
  }
  EXPECT_EQ(all.size(), 65535u);
  settle(server, log, client);
  EXPECT_EQ(client.data[1], all);
  EXPECT_EQ(log.writable, std::vector<uint32_t>{1});
  client.feed(data_frame(server, 1, "", true));
  EXPECT_FALSE(server.known(1));
  server.reset(3, H2Code::kCancel);
  nghttp2_submit_rst_stream(client.session, 0, 5, NGHTTP2_CONNECT_ERROR);
  settle(server, log, client);
  EXPECT_TRUE(log.has("5 reset CONNECT_ERROR"));
  EXPECT_FALSE(log.has("3 reset CANCEL"));
  EXPECT_EQ(server.stream_count(), 2u);
}

TEST(TunnelOracle, GoawayPair) {
  TunnelSession server(TunnelRole::kServer, {}, kStart);
  Oracle client(false);
  Log log;
  settle(server, log, client);
  client.connect("10.0.0.2:1");
  settle(server, log, client);
  server.drain();
  EXPECT_FALSE(server.finished());
  client.lines.clear();
  settle(server, log, client);
  EXPECT_EQ(client.lines,
            (std::vector<std::string>{"goaway 2147483647 NO_ERROR", "goaway 1 NO_ERROR"}));
  EXPECT_FALSE(server.finished()) << "a stream is open";
  server.respond(1, 200, {}, true);
  EXPECT_TRUE(server.finished());
}

TEST(TunnelOracle, TableSizeOfTheOtherSideDoesNotMatter) {
  for (uint32_t size : {0u, 100u, 4096u, 65536u}) {
    TunnelSession client(TunnelRole::kClient, {}, kStart);
    Oracle server(true);
    const nghttp2_settings_entry iv[] = {{NGHTTP2_SETTINGS_HEADER_TABLE_SIZE, size}};
    nghttp2_submit_settings(server.session, NGHTTP2_FLAG_NONE, iv, 1);
    Log log;
    ASSERT_TRUE(client.connect("a:1", {}, nullptr).has_value()) << "before SETTINGS";
    settle(client, log, server);
    ASSERT_TRUE(client.connect("a:2", kHeaders, nullptr).has_value());
    settle(client, log, server);
    EXPECT_EQ(server.lines.size(), 6u);
    EXPECT_FALSE(client.failed());
  }
}

TEST(TunnelOracle, LongHeadersUseContinuation) {
  TunnelSession client(TunnelRole::kClient, {}, kStart);
  Oracle server(true);
  Log log;
  settle(client, log, server);
  const std::string value(40'000, 'v');
  const HeaderField f[] = {{"X-Long", value}};
  ASSERT_TRUE(client.connect("a:1", f, nullptr).has_value());
  settle(client, log, server);
  EXPECT_EQ(server.lines.back(), "1 x-long=" + value);
}

// --- flow control -------------------------------------------------------------------------------
TEST(TunnelFlow, AStalledStreamDoesNotHoldOthersBack) {
  TunnelOptions options;
  options.connection_window = 65535;  // the smallest floor
  TunnelSession server = ready_server(options);
  Log log;
  constexpr uint32_t kStreams = 60;
  for (uint32_t i = 0; i < kStreams; ++i) log.feed(server, connect_frame(1 + 2 * i));
  // Nobody consumes; every stream can still receive its whole window.
  const std::string chunk(65536, 'z');
  for (int part = 0; part < 4; ++part)
    for (uint32_t i = 0; i < kStreams; ++i) log.feed(server, frame(h2::kData, 0, 1 + 2 * i, chunk));
  EXPECT_FALSE(server.failed()) << server.failure().to_string();
  for (uint32_t i = 0; i < kStreams; ++i) EXPECT_EQ(log.data[1 + 2 * i].size(), 262144u);
  // One byte more on one of them breaks its own window, not the connection's.
  log.feed(server, frame(h2::kData, 0, 7, "x"));
  EXPECT_FALSE(server.failed());
  EXPECT_TRUE(log.has("7 reset FLOW_CONTROL_ERROR"));
}

TEST(TunnelFlow, ConnectionWindowIsEnforced) {
  TunnelSession client = ready_client();
  const uint32_t id = client.connect("a:1", {}, nullptr).value();
  take_pending(client);
  Log log;
  log.feed(client,
           frame(h2::kHeaders, 4, id, "\x88") + frame(h2::kWindowUpdate, 0, id, be32(1 << 30)));
  uint32_t total = 0;
  while (uint32_t n = client.sendable(id)) {
    data_frame(client, id, std::string(n, 'a'), false);
    total += n;
  }
  EXPECT_EQ(total, 65535u);
  EXPECT_EQ(data_frame(client, id, "a", false), "");
  log.feed(client, frame(h2::kWindowUpdate, 0, 0, be32(10)));
  EXPECT_EQ(log.writable, std::vector<uint32_t>{id});
  EXPECT_EQ(client.sendable(id), 10u);
}

TEST(TunnelFlow, WakesBlockedStreamsInTurn) {
  TunnelSession client = ready_client();
  Log log;
  std::vector<uint32_t> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(client.connect("a:1", {}, nullptr).value());
  take_pending(client);
  while (uint32_t n = client.sendable(ids[0]))
    data_frame(client, ids[0], std::string(n, 'a'), false);
  EXPECT_EQ(client.sendable(ids[1]), 0u);
  EXPECT_EQ(client.sendable(ids[2]), 0u);
  EXPECT_EQ(client.sendable(ids[1]), 0u) << "asking twice does not queue twice";
  log.feed(client,
           frame(h2::kWindowUpdate, 0, 0, be32(5)) + frame(h2::kWindowUpdate, 0, ids[0], be32(5)));
  EXPECT_EQ(log.writable, (std::vector<uint32_t>{ids[1], ids[2], ids[0]}));
}

TEST(TunnelFlow, SettingsChangeOpenWindows) {
  TunnelSession client = ready_client({}, std::string("\0\4", 2) + be32(0));
  const uint32_t id = client.connect("a:1", {}, nullptr).value();
  take_pending(client);
  EXPECT_EQ(client.sendable(id), 0u);
  Log log;
  log.feed(client, frame(h2::kSettings, 0, 0, std::string("\0\4", 2) + be32(100)));
  EXPECT_EQ(log.writable, std::vector<uint32_t>{id});
  EXPECT_EQ(client.sendable(id), 100u);
  ASSERT_NE(data_frame(client, id, std::string(60, 'a'), false), "");
  log.feed(client, frame(h2::kSettings, 0, 0, std::string("\0\4", 2) + be32(10)));
  EXPECT_EQ(client.sendable(id), 0u) << "the window is negative";
  log.feed(client, frame(h2::kWindowUpdate, 0, id, be32(50)));
  EXPECT_EQ(client.sendable(id), 0u);
  log.feed(client, frame(h2::kWindowUpdate, 0, id, be32(1)));
  EXPECT_EQ(client.sendable(id), 1u);
}

TEST(TunnelFlow, ConsumingMoreThanCameGrantsNothing) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, connect_frame(1) + frame(h2::kData, 0, 1, "abc"));
  server.consume(1, 0xffffffff);
  EXPECT_EQ(take_pending(server), "") << "3 bytes are less than half of the window";
  EXPECT_EQ(server.window(1), 262144u);
  server.grow_window(1, 0xffffffff);
  EXPECT_EQ(server.window(1), 4u * 1024 * 1024);
  EXPECT_EQ(take_pending(server),
            frame(h2::kWindowUpdate, 0, 1, be32(4 * 1024 * 1024 - 262144 + 3)));
}

TEST(TunnelFlow, PaddingIsReturned) {
  TunnelOptions options;
  options.initial_stream_window = 1000;
  TunnelSession server = ready_server(options);
  Log log;
  log.feed(server, connect_frame(1));
  for (int i = 0; i < 100; ++i) {
    log.feed(server, frame(h2::kData, h2::kFlagPadded, 1,
                           "\xc8"
                           "ab" +
                               std::string(200, '\0')));
    server.consume(1, 2);
    take_pending(server);
  }
  EXPECT_FALSE(server.failed());
  EXPECT_EQ(log.data[1].size(), 200u);
  log.feed(server,
           frame(h2::kData, h2::kFlagPadded | h2::kFlagEndStream, 1, std::string("\3\0\0\0", 4)));
  EXPECT_TRUE(log.has("1 end"));
}

// --- life of streams and connection --------------------------------------------------------------
TEST(TunnelLife, GoawayFreesWhatWasNotProcessed) {
  TunnelSession client = ready_client();
  int a = 0, b = 0;
  const uint32_t first = client.connect("a:1", {}, &a).value();
  const uint32_t second = client.connect("a:2", {}, &b).value();
  take_pending(client);
  Log log;
  log.feed(client, frame(h2::kGoaway, 0, 0, be32(first) + be32(0) + "bye"));
  EXPECT_EQ(log.lines, (std::vector<std::string>{
                           "0 goaway NO_ERROR",
                           std::to_string(second) + " reset REFUSED_STREAM unprocessed"}));
  EXPECT_TRUE(client.known(first));
  EXPECT_FALSE(client.can_connect());
  auto refused = client.connect("a:3", {}, nullptr);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().reason, Reason::kPoolDraining);
  EXPECT_EQ(refused.error().retry, Retry::kSafe);
  EXPECT_FALSE(client.finished());
  client.reset(first, H2Code::kCancel);
  EXPECT_TRUE(client.finished());
}

TEST(TunnelLife, PeersStreamLimitIsKept) {
  TunnelSession client = ready_client({}, std::string("\0\3", 2) + be32(2));
  EXPECT_TRUE(client.connect("a:1", {}, nullptr).has_value());
  EXPECT_TRUE(client.connect("a:1", {}, nullptr).has_value());
  EXPECT_FALSE(client.can_connect());
  EXPECT_EQ(client.connect("a:1", {}, nullptr).error().retry, Retry::kSafe);
}

TEST(TunnelLife, TooManyStreamsAreRefusedOneByOne) {
  TunnelOptions options;
  options.max_concurrent_streams = 2;
  TunnelSession server = ready_server(options);
  Log log;
  log.feed(server, connect_frame(1) + connect_frame(3) + connect_frame(5));
  EXPECT_EQ(log.requests.size(), 2u);
  EXPECT_EQ(take_pending(server), frame(h2::kRstStream, 0, 5, be32(7)));
  log.feed(server, frame(h2::kData, 0, 5, "was under way"));
  EXPECT_FALSE(server.failed());
}

TEST(TunnelLife, KeepaliveFindsTheDead) {
  TunnelSession client = ready_client();
  EXPECT_EQ(client.deadline(), kStart + 10s);
  EXPECT_TRUE(client.on_time(kStart + 5s));
  EXPECT_EQ(take_pending(client), "");
  EXPECT_TRUE(client.on_time(kStart + 10s));
  const std::string ping = take_pending(client);
  ASSERT_EQ(ping.size(), 17u);
  EXPECT_EQ(client.deadline(), kStart + 30s);
  Log log;
  std::string pong = ping;
  pong[4] = h2::kFlagAck;
  log.feed(client, pong, kStart + 29s);
  EXPECT_TRUE(log.lines.empty()) << "keepalive is nobody's business";
  EXPECT_EQ(client.deadline(), kStart + 39s);
  EXPECT_TRUE(client.on_time(kStart + 39s));
  take_pending(client);
  EXPECT_TRUE(client.on_time(kStart + 58s));
  EXPECT_FALSE(client.on_time(kStart + 59s));
  EXPECT_TRUE(client.failed());
  EXPECT_EQ(client.failure().reason, Reason::kConnectTimeout);
  EXPECT_EQ(goaway_code(take_pending(client)), H2Code::kNoError);
}

TEST(TunnelLife, PingIsAnsweredAndAsked) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, frame(h2::kPing, 0, 0, "12345678"));
  EXPECT_EQ(take_pending(server), frame(h2::kPing, h2::kFlagAck, 0, "12345678"));
  const uint8_t payload[8] = {'m', 'e', 'l', 't', 'e', 'm', 'i', '!'};
  server.ping(payload);
  std::string ping = take_pending(server);
  ping[4] = h2::kFlagAck;
  log.feed(server, ping);
  EXPECT_EQ(log.lines, std::vector<std::string>{"0 pong meltemi!"});
}

TEST(TunnelLife, CloseForgetsEverything) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, connect_frame(1));
  server.close(H2Code::kNoError, "bye");
  EXPECT_EQ(goaway_code(take_pending(server)), H2Code::kNoError);
  EXPECT_EQ(server.stream_count(), 0u);
  log.lines.clear();
  log.feed(server, connect_frame(3));
  EXPECT_TRUE(log.lines.empty());
  EXPECT_EQ(take_pending(server), "");
}

// --- broken peers -------------------------------------------------------------------------------
struct Broken {
  const char* name;
  std::string bytes;
  H2Code code;
};
class BrokenConnection : public testing::TestWithParam<Broken> {};
INSTANTIATE_TEST_SUITE_P(
    Tunnel, BrokenConnection,
    testing::Values(
        Broken{"DataOnStream0", frame(0, 0, 0, "x"), H2Code::kProtocolError},
        Broken{"DataOnIdle", frame(0, 0, 9, "x"), H2Code::kProtocolError},
        Broken{"HeadersOnEvenStream", connect_frame(2), H2Code::kProtocolError},
        Broken{"HeadersOnStream0", connect_frame(0), H2Code::kProtocolError},
        Broken{"ContinuationAlone", frame(9, 4, 1, kConnectBlock), H2Code::kProtocolError},
        Broken{"FrameInsideBlock", connect_frame(1, 0) + frame(6, 0, 0, "12345678"),
               H2Code::kProtocolError},
        Broken{"OtherStreamInsideBlock", connect_frame(1, 0) + frame(9, 4, 3, ""),
               H2Code::kProtocolError},
        Broken{"BadHpack", frame(1, 4, 1, "\xff\xff\xff\xff\xff\xff"), H2Code::kCompressionError},
        Broken{"PushPromise", frame(5, 4, 1, be32(2)), H2Code::kProtocolError},
        Broken{"SettingsOnStream", frame(4, 0, 1, ""), H2Code::kProtocolError},
        Broken{"SettingsSize", frame(4, 0, 0, "12345"), H2Code::kFrameSizeError},
        Broken{"SettingsAckSize", frame(4, 1, 0, "123456"), H2Code::kFrameSizeError},
        Broken{"SettingsWindow", frame(4, 0, 0, std::string("\0\4", 2) + be32(0x80000000)),
               H2Code::kFlowControlError},
        Broken{"SettingsFrameSize", frame(4, 0, 0, std::string("\0\5", 2) + be32(100)),
               H2Code::kProtocolError},
        Broken{"PingSize", frame(6, 0, 0, "1234567"), H2Code::kFrameSizeError},
        Broken{"PingOnStream", frame(6, 0, 1, "12345678"), H2Code::kProtocolError},
        Broken{"GoawaySize", frame(7, 0, 0, "1234567"), H2Code::kFrameSizeError},
        Broken{"RstSize", frame(3, 0, 1, "123"), H2Code::kFrameSizeError},
        Broken{"RstOnIdle", frame(3, 0, 1, be32(8)), H2Code::kProtocolError},
        Broken{"WindowSize", frame(8, 0, 0, "123"), H2Code::kFrameSizeError},
        Broken{"WindowZero", frame(8, 0, 0, be32(0)), H2Code::kProtocolError},
        Broken{"WindowOverflow", frame(8, 0, 0, be32(0x7fffffff)), H2Code::kFlowControlError},
        Broken{"WindowOnIdle", frame(8, 0, 1, be32(1)), H2Code::kProtocolError},
        Broken{"PrioritySize", frame(2, 0, 1, "1234"), H2Code::kFrameSizeError},
        Broken{"PaddingTooLong",
               connect_frame(1) + frame(0, 8, 1,
                                        "\x05"
                                        "ab"),
               H2Code::kProtocolError},
        Broken{"PaddingTooLongOnAForgottenStream",
               connect_frame(1) + frame(3, 0, 1, be32(8)) + frame(0, 8, 1,
                                                                  "\x05"
                                                                  "ab"),
               H2Code::kProtocolError},
        Broken{"HeadersBelowAnOpenStream", connect_frame(5) + connect_frame(3),
               H2Code::kProtocolError},
        Broken{"PaddedWithoutLength", connect_frame(1) + frame(0, 8, 1, ""),
               H2Code::kFrameSizeError},
        Broken{"FrameTooLarge", std::string("\x10\x00\x01\x00\x00\x00\x00\x00\x01", 9),
               H2Code::kFrameSizeError}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(BrokenConnection, EndsWithTheRightCode) {
  for (size_t step : {1u, 1000u}) {
    TunnelSession server = ready_server();
    Log log;
    const std::string& bytes = GetParam().bytes;
    for (size_t i = 0; i < bytes.size(); i += step) log.feed(server, bytes.substr(i, step));
    ASSERT_TRUE(server.failed());
    EXPECT_EQ(log.lines.back(), "0 failed");
    EXPECT_EQ(server.failure().reason, Reason::kTunnelH2Error);
    EXPECT_EQ(goaway_code(take_pending(server)), GetParam().code);
    const size_t seen = log.lines.size();
    log.feed(server, connect_frame(11));
    EXPECT_EQ(log.lines.size(), seen) << "a dead session speaks";
    EXPECT_FALSE(server.connect("a:1", {}, nullptr).has_value());
  }
}

// An answered stream is forgotten here before the peer's frames for it are all in.
TEST(TunnelBroken, WindowFaultsOnAnsweredStreamsResetThem) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, connect_frame(1) + connect_frame(3));
  server.respond(1, 503, {}, true);
  server.respond(3, 503, {}, true);
  take_pending(server);
  log.feed(server, frame(8, 0, 1, be32(1000)));
  EXPECT_EQ(take_pending(server), "") << "legal: it was under way";
  log.feed(server, frame(8, 0, 1, be32(0)));
  EXPECT_EQ(take_pending(server), frame(h2::kRstStream, 0, 1, be32(1)));
  log.feed(server, frame(8, 0, 3, be32(0x7fffffff)));
  EXPECT_EQ(take_pending(server), frame(h2::kRstStream, 0, 3, be32(3)));
  EXPECT_FALSE(server.failed());
}

TEST(TunnelLife, OneStreamIsOpenedUntilThePeerHasSaidHowManyItTakes) {
  TunnelOptions options;
  options.assumed_peer_streams = 1;
  TunnelSession client(TunnelRole::kClient, options, kStart);
  EXPECT_TRUE(client.connect("a:1", {}, nullptr).has_value());
  EXPECT_FALSE(client.can_connect());
  Log log;
  log.feed(client, frame(4, 0, 0, ""));
  for (int i = 0; i < 300; ++i) EXPECT_TRUE(client.connect("a:1", {}, nullptr).has_value());
}

TEST(TunnelBroken, FirstFrameMustBeSettings) {
  TunnelSession server(TunnelRole::kServer, {}, kStart);
  Log log;
  log.feed(server, std::string(h2::kPreface) + frame(6, 0, 0, "12345678"));
  EXPECT_TRUE(server.failed());
  TunnelSession other(TunnelRole::kServer, {}, kStart);
  log.feed(other, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(other.failed());
}

std::string literal(std::string_view name, std::string_view value) {
  std::string out("\0", 1);
  out += static_cast<char>(name.size());
  out += name;
  out += static_cast<char>(value.size());
  return out + std::string(value);
}

TEST(TunnelBroken, MalformedRequestsResetTheirStream) {
  const std::string blocks[] = {
      "",                                                       // nothing at all
      literal(":method", "CONNECT"),                            // no authority
      kConnectBlock + literal(":path", "/"),                    // CONNECT with a path
      kConnectBlock + literal(":scheme", "https"),              // or a scheme
      kConnectBlock + literal(":authority", "b:2"),             // twice
      kConnectBlock + literal(":protocol", "websocket"),        // not negotiated
      kConnectBlock + literal("Upper", "x"),                    // upper case
      kConnectBlock + literal("x", "a\nb"),                     // a line feed
      kConnectBlock + literal("connection", "close"),           // connection-specific
      kConnectBlock + literal("transfer-encoding", "chunked"),  //
      kConnectBlock + literal("te", "gzip"),                    //
      literal("x", "y") + kConnectBlock,                        // pseudo after regular
      literal(":method", "GET") + literal(":path", "/"),        // no scheme
      kConnectBlock + literal(":status", "200"),                // of a response
  };
  uint32_t id = 1;
  TunnelSession server = ready_server();
  for (const std::string& block : blocks) {
    Log log;
    log.feed(server, frame(h2::kHeaders, h2::kFlagEndHeaders, id, block));
    EXPECT_TRUE(log.requests.empty()) << id;
    EXPECT_EQ(take_pending(server), frame(h2::kRstStream, 0, id, be32(1))) << id;
    EXPECT_FALSE(server.failed());
    id += 2;
  }
  Log log;
  log.feed(server, connect_frame(id));
  EXPECT_EQ(log.requests.size(), 1u) << "the connection lives on";
}

TEST(TunnelBroken, OtherMethodsAreTheCallersBusiness) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, frame(h2::kHeaders, 5, 1,
                         literal(":method", "GET") + literal(":scheme", "http") +
                             literal(":path", "/") + literal(":authority", "a")));
  EXPECT_EQ(log.lines, std::vector<std::string>{
                           "1 request :method=GET :scheme=http :path=/ :authority=a end"});
  server.respond(1, 400, {}, true);
  EXPECT_EQ(take_pending(server), frame(h2::kHeaders, 5, 1, "\x20\x8c")) << "no RST: it had ended";
}

TEST(TunnelBroken, ResponsesMustBeWellFormed) {
  for (const std::string& block :
       {std::string(""), literal(":status", "20"), literal(":status", "2000"),
        literal(":status", "101"), literal(":status", "099"), std::string("\x88\x88"),
        literal(":method", "GET")}) {
    TunnelSession client = ready_client();
    const uint32_t id = client.connect("a:1", {}, nullptr).value();
    take_pending(client);
    Log log;
    log.feed(client, frame(h2::kHeaders, 4, id, block));
    EXPECT_EQ(log.lines, std::vector<std::string>{"1 reset PROTOCOL_ERROR"});
    EXPECT_FALSE(client.failed());
  }
  TunnelSession client = ready_client();
  const uint32_t id = client.connect("a:1", {}, nullptr).value();
  take_pending(client);
  Log log;
  log.feed(client, frame(h2::kHeaders, 4, id, literal(":status", "100")));
  EXPECT_TRUE(log.lines.empty());
  log.feed(client, frame(h2::kHeaders, 4, id, "\x88"));
  EXPECT_EQ(log.status[id], 200);
  log.feed(client, frame(h2::kHeaders, 5, id, literal("trailer", "x")));
  EXPECT_TRUE(log.has("1 end"));
}

TEST(TunnelBroken, DataBeforeTheResponse) {
  TunnelSession client = ready_client();
  const uint32_t id = client.connect("a:1", {}, nullptr).value();
  take_pending(client);
  Log log;
  log.feed(client, frame(h2::kData, 0, id, "early"));
  EXPECT_EQ(log.lines, std::vector<std::string>{"1 reset PROTOCOL_ERROR"});
  EXPECT_TRUE(log.data.empty());
}

TEST(TunnelBroken, DataAfterTheEnd) {
  TunnelSession server = ready_server();
  Log log;
  log.feed(server, connect_frame(1) + frame(h2::kData, 1, 1, "x") + frame(h2::kData, 0, 1, "y"));
  EXPECT_TRUE(log.has("1 reset STREAM_CLOSED"));
  EXPECT_EQ(log.data[1], "x");
}

// --- abusive peers -------------------------------------------------------------------------------
// `attack(i)` is the i-th blow. The session must die of the named limit, with ENHANCE_YOUR_CALM,
// before `most` of them; `calm` tells how many it must bear.
void expect_limit(TunnelSession& s, TunnelLimit limit, int calm, int most,
                  const std::function<std::string(int)>& attack, bool peer_reads = true) {
  Log log;
  int i = 0;
  for (; i < most && !s.failed(); ++i) {
    log.feed(s, attack(i));
    if (peer_reads && !s.failed()) take_pending(s);
  }
  ASSERT_TRUE(s.failed()) << "it takes " << most << " of them";
  EXPECT_GT(i, calm);
  EXPECT_EQ(s.failure().reason, Reason::kLimitExceeded);
  EXPECT_TRUE(s.failure().detail.starts_with(tunnel_limit_name(limit))) << s.failure().detail;
  EXPECT_LT(s.pending().size(), 65536u);
  EXPECT_EQ(goaway_code(take_pending(s)), H2Code::kEnhanceYourCalm);
}

TEST(TunnelAbuse, RapidReset) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kResetFlood, 400, 2000, [](int i) {
    const uint32_t id = 1 + 2 * static_cast<uint32_t>(i);
    return connect_frame(id) + frame(h2::kRstStream, 0, id, be32(8));
  });
}
TEST(TunnelAbuse, MalformedRequestsInARow) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kResetFlood, 400, 2000,
               [](int i) { return frame(h2::kHeaders, 4, 1 + 2 * static_cast<uint32_t>(i), ""); });
}
TEST(TunnelAbuse, AFewResetsASecondAreFine) {
  TunnelSession s = ready_server();
  Log log;
  for (int i = 0; i < 5000; ++i) {
    const uint32_t id = 1 + 2 * static_cast<uint32_t>(i);
    log.feed(s, connect_frame(id) + frame(h2::kRstStream, 0, id, be32(8)), kStart + i * 25ms);
    take_pending(s);
  }
  EXPECT_FALSE(s.failed());
}
TEST(TunnelAbuse, PingFlood) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kControlFlood, 150, 1000,
               [](int) { return frame(h2::kPing, 0, 0, "12345678"); });
}
TEST(TunnelAbuse, SettingsFlood) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kControlFlood, 150, 1000,
               [](int) { return frame(h2::kSettings, 0, 0, ""); });
}
TEST(TunnelAbuse, HugeSettings) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kControlFlood, 0, 1, [](int) {
    std::string entries;
    for (int i = 0; i < 1000; ++i)
      entries += std::string("\0\4", 2) + be32(static_cast<uint32_t>(i));
    return frame(h2::kSettings, 0, 0, entries);
  });
}
TEST(TunnelAbuse, UnknownFrames) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kControlFlood, 150, 1000,
               [](int) { return frame(0xee, 0xff, 77, "whatever"); });
}
TEST(TunnelAbuse, EmptyData) {
  TunnelSession s = ready_server();
  Log log;
  log.feed(s, connect_frame(1));
  expect_limit(s, TunnelLimit::kEmptyDataFlood, 90, 1000,
               [](int) { return frame(h2::kData, 0, 1, ""); });
}
TEST(TunnelAbuse, ContinuationFlood) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kContinuationFlood, 16, 100, [](int i) {
    return i == 0 ? connect_frame(1, 0) : frame(h2::kContinuation, 0, 1, "");
  });
}
TEST(TunnelAbuse, HeaderBytes) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kHeaderBytes, 0, 100, [](int i) {
    const std::string chunk = std::string("\0\1x\x7f\x81\x7f", 6) + std::string(16384, 'v');
    return i == 0 ? connect_frame(1, 0) : frame(h2::kContinuation, 0, 1, chunk);
  });
}
TEST(TunnelAbuse, HpackBomb) {
  // One large value in the dynamic table, then referred to by one byte each.
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kHeaderBytes, 0, 2, [](int) {
    std::string block =
        kConnectBlock + std::string("\x40\1x\x7f\xa1\x1e", 6) + std::string(4000, 'v');
    return frame(h2::kHeaders, 4, 1, block + std::string(60'000, '\xbe'));
  });
}
TEST(TunnelAbuse, HeaderCount) {
  TunnelSession s = ready_server();
  expect_limit(s, TunnelLimit::kHeaderCount, 0, 1, [](int) {
    std::string block = kConnectBlock;
    for (int i = 0; i < 200; ++i) block += literal("a", "b");
    return frame(h2::kHeaders, 4, 1, block);
  });
}
TEST(TunnelAbuse, WindowUpdates) {
  TunnelSession s = ready_client();
  const uint32_t id = s.connect("a:1", {}, nullptr).value();
  take_pending(s);
  expect_limit(s, TunnelLimit::kWindowFlood, 9000, 20000,
               [id](int) { return frame(h2::kWindowUpdate, 0, id, be32(1)); });
}
TEST(TunnelAbuse, RepliesThatNobodyReads) {
  TunnelSession s = ready_server();
  Log log;
  for (int i = 0; i < 3000 && !s.failed(); ++i)
    log.feed(s, frame(h2::kPing, 0, 0, "12345678"), kStart + i * 60ms);
  ASSERT_TRUE(s.failed());
  EXPECT_TRUE(s.failure().detail.starts_with("h2_unread_replies"));
  EXPECT_LT(s.pending().size(), 1000u);
}

}  // namespace
}  // namespace meltemi::codec
