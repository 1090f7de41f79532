// The waypoint's HTTP/2 against nghttp2 in both roles: random requests with bodies, trailers,
// resets, changing windows and table sizes, carried in random pieces. Every byte must arrive, and
// neither side may find fault with the other.
#include <gtest/gtest.h>
#include <nghttp2/nghttp2.h>

#include <map>
#include <memory>
#include <random>

#include "userspace/codec/h2.h"

namespace meltemi::codec {
namespace {

const MonoTime kStart{std::chrono::hours(1)};

// What a message carried, as text; the same for both ends.
struct Message {
  std::string head, body, trailers;
  bool ended = false;
  bool operator==(const Message&) const = default;
};
using Messages = std::map<uint32_t, Message>;

std::string line(std::string_view name, std::string_view value) {
  return std::string(name) + ": " + std::string(value) + "\n";
}
std::string text(const HeaderList& list) {
  std::string out;
  for (const HeaderField f : list) out += line(f.name, f.value);
  return out;
}

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  size_t below(size_t n) { return engine() % n; }
  bool one_in(size_t n) { return below(n) == 0; }
  std::string letters(size_t n) {
    std::string s(n, ' ');
    for (char& c : s) c = static_cast<char>('a' + below(26));
    return s;
  }
  HeaderList fields() {
    HeaderList list;
    for (size_t i = below(6); i > 0; --i) {
      if (one_in(3))
        list.add("x-id", letters(20));
      else if (one_in(12))
        list.add("x-long", letters(below(5000)));
      else
        list.add("x-" + std::to_string(below(12)), "value " + std::to_string(below(2)));
    }
    return list;
  }
  HeaderList request() {
    HeaderList list;
    list.add(":method", "POST");
    list.add(":scheme", "http");
    list.add(":authority", "a");
    list.add(":path", "/" + letters(below(5)));
    for (const HeaderField f : fields()) list.add(f);
    return list;
  }
  HeaderList response() {
    HeaderList list;
    list.add(":status", one_in(2) ? "200" : "201");
    for (const HeaderField f : fields()) list.add(f);
    return list;
  }
};

struct Body : H2Body {
  std::string left;
  HeaderList fields;
  size_t shown;  // what is there already
  Body(Random& r, std::string t) : left(std::move(t)), shown(r.below(left.size() + 1)) {
    if (r.one_in(2)) fields = r.fields();
  }
  Ready ready(size_t max) override {
    const size_t n = std::min(max, shown);
    return {n, n == left.size()};
  }
  void take(size_t n, H2Sink& sink) override {
    sink.append(as_bytes(std::string_view(left).substr(0, n)));
    left.erase(0, n);
    shown -= n;
  }
  const HeaderList* trailers() override { return &fields; }
};

struct Ours : H2Handler, H2Sink {
  Random& random;
  H2Role role;
  H2Session session;
  std::string out;
  Messages received, sent;
  std::map<uint32_t, std::unique_ptr<Body>> bodies;
  std::map<uint32_t, size_t> held;
  std::map<uint32_t, uint32_t> closed;

  Ours(H2Role r, Random& x, const H2Options& o) : random(x), role(r), session(r, *this, o) {}
  void append(ByteView piece) override { out += as_text(piece); }
  void on_head(uint32_t id, HeaderList& h, bool end) override {
    received[id].head = text(h);
    received[id].ended = end;
    if (role == H2Role::kServer) answer(id);
  }
  void on_data(uint32_t id, ByteView d) override {
    received[id].body += as_text(d);
    held[id] += d.size();
  }
  void on_end(uint32_t id, const HeaderList& t) override {
    received[id].trailers = text(t);
    received[id].ended = true;
  }
  void on_closed(uint32_t id, uint32_t code, bool) override {
    closed[id] = code;
    bodies.erase(id);
  }
  Body* body() {
    if (random.one_in(4)) return nullptr;
    next_ = std::make_unique<Body>(random, random.letters(random.below(40'000)));
    return next_.get();
  }
  void note(uint32_t id, const HeaderList& head, Body* b) {
    sent[id] = {text(head), b ? b->left : "", b ? text(b->fields) : "", true};
    if (b) bodies[id] = std::move(next_);
  }
  void answer(uint32_t id) {
    const HeaderList head = random.response();
    Body* b = body();
    EXPECT_TRUE(session.respond(id, head, b).has_value());
    note(id, head, b);
  }
  void ask() {
    if (!session.can_request()) return;
    const HeaderList head = random.request();
    Body* b = body();
    const auto id = session.request(head, b);
    ASSERT_TRUE(id.has_value());
    note(*id, head, b);
  }
  // Something happens: bytes become available, window is given back.
  void move() {
    for (auto& [id, b] : bodies) {
      b->shown += random.below(b->left.size() - b->shown + 1);
      if (random.one_in(4)) b->shown = b->left.size();
      session.resume(id);
    }
    for (auto& [id, n] : held) {
      const size_t some = random.one_in(3) ? n : random.below(n + 1);
      session.consume(id, some);
      n -= some;
    }
    while (session.flush(*this, 1 + random.below(100'000))) {
    }
  }

 private:
  std::unique_ptr<Body> next_;
};

struct Theirs {
  Random& random;
  bool server;
  nghttp2_session* session = nullptr;
  Messages received, sent;
  std::map<uint32_t, std::string> to_send;
  std::map<uint32_t, HeaderList> trailers;
  std::map<uint32_t, uint32_t> closed;
  std::vector<std::string> faults;

  Theirs(bool s, Random& r) : random(r), server(s) {
    nghttp2_session_callbacks* cb;
    nghttp2_session_callbacks_new(&cb);
    nghttp2_session_callbacks_set_on_header_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, const uint8_t* n, size_t nl,
               const uint8_t* v, size_t vl, uint8_t, void* self) {
          Message& m = of(self).received[static_cast<uint32_t>(f->hd.stream_id)];
          const bool trailing = f->headers.cat == NGHTTP2_HCAT_HEADERS;
          (trailing ? m.trailers : m.head) += line(as_text({n, nl}), as_text({v, vl}));
          return 0;
        });
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        cb, [](nghttp2_session*, uint8_t, int32_t id, const uint8_t* d, size_t n, void* self) {
          of(self).received[static_cast<uint32_t>(id)].body += as_text({d, n});
          return 0;
        });
    nghttp2_session_callbacks_set_on_frame_recv_callback(
        cb, [](nghttp2_session*, const nghttp2_frame* f, void* self) {
          of(self).on_frame(*f);
          return 0;
        });
    nghttp2_session_callbacks_set_on_stream_close_callback(
        cb, [](nghttp2_session*, int32_t id, uint32_t code, void* self) {
          of(self).closed[static_cast<uint32_t>(id)] = code;
          return 0;
        });
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
        cb, [](nghttp2_session*, const nghttp2_frame*, int error, void* self) {
          of(self).faults.push_back(nghttp2_strerror(error));
          return 0;
        });
    if (server)
      nghttp2_session_server_new(&session, cb, this);
    else
      nghttp2_session_client_new(&session, cb, this);
    nghttp2_session_callbacks_del(cb);
    const nghttp2_settings_entry iv[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(r.below(100'000))},
        {NGHTTP2_SETTINGS_HEADER_TABLE_SIZE, static_cast<uint32_t>(r.below(8000))},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 20}};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, iv, 3);
  }
  ~Theirs() { nghttp2_session_del(session); }
  static Theirs& of(void* self) { return *static_cast<Theirs*>(self); }

  void on_frame(const nghttp2_frame& f) {
    const auto id = static_cast<uint32_t>(f.hd.stream_id);
    if (f.hd.type == NGHTTP2_GOAWAY && f.goaway.error_code != 0) faults.push_back("GOAWAY");
    if (f.hd.type != NGHTTP2_DATA && f.hd.type != NGHTTP2_HEADERS) return;
    if ((f.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) received[id].ended = true;
    if (server && f.hd.type == NGHTTP2_HEADERS && f.headers.cat == NGHTTP2_HCAT_REQUEST)
      send(random.response(), id);
  }
  static std::vector<nghttp2_nv> nv(const HeaderList& list) {
    std::vector<nghttp2_nv> out;
    for (const HeaderField f : list)
      out.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(f.name.data())),
                     reinterpret_cast<uint8_t*>(const_cast<char*>(f.value.data())), f.name.size(),
                     f.value.size(), 0});
    return out;
  }
  static ssize_t read(nghttp2_session* session, int32_t id, uint8_t* buf, size_t size,
                      uint32_t* flags, nghttp2_data_source* source, void*) {
    Theirs& me = of(source->ptr);
    std::string& body = me.to_send[static_cast<uint32_t>(id)];
    const size_t n = std::min(size, body.size());
    std::copy_n(body.data(), n, buf);
    body.erase(0, n);
    if (!body.empty()) return static_cast<ssize_t>(n);
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    const HeaderList& list = me.trailers[static_cast<uint32_t>(id)];
    if (!list.empty()) {
      *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
      const auto fields = nv(list);
      nghttp2_submit_trailer(session, id, fields.data(), fields.size());
    }
    return static_cast<ssize_t>(n);
  }
  // A response on `id`, or a request.
  void send(const HeaderList& head, uint32_t id) {
    const bool with_body = !random.one_in(4);
    const auto fields = nv(head);
    nghttp2_data_provider provider{{.ptr = this}, read};
    const std::string body = with_body ? random.letters(random.below(40'000)) : "";
    const HeaderList list = with_body && random.one_in(2) ? random.fields() : HeaderList();
    if (server)
      nghttp2_submit_response(session, static_cast<int32_t>(id), fields.data(), fields.size(),
                              with_body ? &provider : nullptr);
    else
      id = static_cast<uint32_t>(nghttp2_submit_request(session, nullptr, fields.data(),
                                                        fields.size(),
                                                        with_body ? &provider : nullptr, nullptr));
    to_send[id] = body;
    trailers[id] = list;
    sent[id] = {text(head), body, text(list), true};
  }
  void ask() { send(random.request(), 0); }
  void move() {
    if (random.one_in(6)) {
      const nghttp2_settings_entry iv[] = {
          {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(random.below(100'000))},
          {NGHTTP2_SETTINGS_HEADER_TABLE_SIZE, static_cast<uint32_t>(random.below(6000))}};
      nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, iv, 2);
    }
  }
  // The last stream, if it is open: nghttp2 would send RST_STREAM on an idle one.
  void reset_one() {
    if (sent.empty()) return;
    const auto id = static_cast<int32_t>(sent.rbegin()->first);
    if (nghttp2_session_find_stream(session, id) != nullptr)
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
  }
  std::string out() {
    std::string all;
    const uint8_t* p;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(session, &p)) > 0)
      all += as_text({p, static_cast<size_t>(n)});
    return all;
  }
};

void run(bool we_serve, unsigned seed, bool resets) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random(seed);
  H2Options options;
  options.initial_stream_window = static_cast<uint32_t>(random.below(100'000));
  options.connection_window = static_cast<uint32_t>(65'535 + random.below(200'000));
  options.control_burst = options.reset_burst = 100'000;
  Ours ours(we_serve ? H2Role::kServer : H2Role::kClient, random, options);
  Theirs theirs(!we_serve, random);
  int requests = 60;
  int quiet = 0;
  for (int round = 0; quiet < 60; ++round) {
    ASSERT_LT(round, 20'000) << "they do not come to rest";
    if (requests > 0 && random.one_in(2)) {
      --requests;
      if (we_serve)
        theirs.ask();
      else
        ours.ask();
    }
    ours.move();
    if (requests > 0) theirs.move();
    if (resets && random.one_in(10) && !ours.bodies.empty()) {
      const uint32_t id = ours.bodies.begin()->first;
      ours.session.reset(id, H2Code::kCancel);
      ours.bodies.erase(id);
    }
    if (resets && random.one_in(10)) theirs.reset_one();
    const std::string a = std::exchange(ours.out, {}), b = theirs.out();
    for (size_t at = 0; at < a.size();) {
      const ByteView piece =
          as_bytes(a).subspan(at, std::min(1 + random.below(9000), a.size() - at));
      ASSERT_EQ(nghttp2_session_mem_recv(theirs.session, piece.data(), piece.size()),
                static_cast<ssize_t>(piece.size()));
      at += piece.size();
    }
    for (size_t at = 0; at < b.size();) {
      const ByteView piece =
          as_bytes(b).subspan(at, std::min(1 + random.below(9000), b.size() - at));
      const Status ok = ours.session.receive(piece, kStart);
      ASSERT_TRUE(ok.has_value()) << ok.error().to_string();
      at += piece.size();
    }
    quiet = a.empty() && b.empty() && requests == 0 ? quiet + 1 : 0;
  }
  EXPECT_TRUE(theirs.faults.empty()) << theirs.faults[0];
  auto compare = [&](const Messages& sent, const Messages& received) {
    for (const auto& [id, m] : sent) {
      const bool cut = (ours.closed.contains(id) && ours.closed[id] != 0) ||
                       (theirs.closed.contains(id) && theirs.closed[id] != 0);
      if (cut) continue;
      const auto got = received.find(id);
      ASSERT_NE(got, received.end()) << id;
      EXPECT_EQ(got->second.head, m.head) << id;
      EXPECT_EQ(got->second.trailers, m.trailers) << id;
      EXPECT_TRUE(got->second.body == m.body) << id;
      EXPECT_TRUE(got->second.ended) << id;
    }
  };
  compare(ours.sent, theirs.received);
  compare(theirs.sent, ours.received);
  EXPECT_FALSE(ours.sent.empty() || theirs.sent.empty());
  EXPECT_EQ(ours.session.stream_count(), 0u);
  EXPECT_TRUE(ours.bodies.empty());
}

TEST(H2Oracle, WeServeNghttp2) {
  for (unsigned seed = 1; seed <= 60; ++seed) run(true, seed, false);
}
TEST(H2Oracle, WeAskNghttp2) {
  for (unsigned seed = 1; seed <= 60; ++seed) run(false, seed, false);
}
TEST(H2Oracle, WeServeWithResets) {
  for (unsigned seed = 1; seed <= 60; ++seed) run(true, seed, true);
}
TEST(H2Oracle, WeAskWithResets) {
  for (unsigned seed = 1; seed <= 60; ++seed) run(false, seed, true);
}

}  // namespace
}  // namespace meltemi::codec
