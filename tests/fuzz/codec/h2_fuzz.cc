// The waypoint's HTTP/2 session fed with a peer's bytes, while its handler answers, resets, stalls
// and resumes as the input says.
#include <map>
#include <memory>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/h2.h"
#include "userspace/codec/h2_frame.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

const MonoTime kNow{std::chrono::hours(1)};

struct Body : H2Body {
  size_t left;
  bool end;
  HeaderList fields;
  Body(size_t n, bool e) : left(n), end(e) { fields.add("x-trailer", "1"); }
  Ready ready(size_t max) override {
    const size_t n = std::min(left, max);
    return {n, end && n == left};
  }
  void take(size_t n, H2Sink& sink) override {
    fuzz::require(n <= left);
    left -= n;
    const std::string zeros(n, 'z');
    sink.append(as_bytes(zeros));
  }
  const HeaderList* trailers() override { return left % 2 == 0 ? &fields : nullptr; }
};

struct Sink : H2Sink {
  size_t bytes = 0;
  void append(ByteView piece) override {
    for (const uint8_t b : piece) bytes += 1 + (b & 0);  // touch every byte
  }
};

struct End : H2Handler {
  fuzz::Input& script;
  H2Session session;
  std::map<uint32_t, std::unique_ptr<Body>> bodies;
  std::map<uint32_t, size_t> unconsumed;

  End(H2Role role, const H2Options& o, fuzz::Input& s) : script(s), session(role, *this, o) {}

  Body* make(uint32_t id) {
    const uint8_t b = script.byte();
    auto& slot = bodies[id];
    slot = std::make_unique<Body>(size_t{b} * 200, b % 3 != 0);
    return slot.get();
  }
  void on_head(uint32_t id, HeaderList& h, bool) override {
    fuzz::require(!h.empty() && h.size() <= 30);
    if (h[0].name == ":status") return;
    HeaderList answer;
    answer.add(":status", "200");
    switch (script.byte() % 5) {
      case 0:
        return session.reset(id, H2Code::kCancel);
      case 1:
        return void(session.respond(id, answer, nullptr));
      case 2:
        (void)session.respond(id, answer, make(id));
        return session.reset(id, H2Code::kNoError);
      case 3:
        return;
      default:
        return void(session.respond(id, answer, make(id)));
    }
  }
  void on_data(uint32_t id, ByteView d) override {
    fuzz::require(!d.empty());
    unconsumed[id] += d.size();
  }
  void on_end(uint32_t, const HeaderList&) override {}
  void on_closed(uint32_t id, uint32_t, bool) override { bodies.erase(id); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const bool server = in.byte() & 1;
  fuzz::Input script(data, std::min<size_t>(size, 40));
  H2Options options;
  options.max_header_count = 30;
  options.initial_stream_window = 2000;
  options.connection_window = 65535;
  End end(server ? H2Role::kServer : H2Role::kClient, options, script);
  std::string hello = server ? std::string(h2::kPreface) : std::string();
  hello += std::string("\0\0\0\4\0\0\0\0\0", 9);
  fuzz::require(end.session.receive(as_bytes(hello), kNow).has_value());
  if (!server) {
    HeaderList h;
    h.add(":method", "GET");
    h.add(":scheme", "http");
    h.add(":path", "/");
    h.add(":authority", "a");
    for (int i = 0; i < 4; ++i) {
      const auto id = end.session.request(h, nullptr);
      fuzz::require(id.has_value());
    }
  }
  Sink sink;
  while (!in.empty()) {
    const ByteView piece = in.bytes(1 + in.byte());
    if (!end.session.receive(piece, kNow)) break;
    for (auto& [id, n] : end.unconsumed)
      if (script.byte() & 1) end.session.consume(id, n);
    for (auto& [id, body] : end.bodies) {
      body->left += script.byte();
      body->end = true;
      end.session.resume(id);
    }
    end.session.flush(sink, 1 + script.byte() * 40);
  }
  for (int i = 0; i < 100 && end.session.flush(sink, 100'000); ++i) {
  }
  fuzz::require(sink.bytes < 50'000'000);
  return 0;
}
