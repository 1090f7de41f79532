// The tunnel's HTTP/2 in both roles: what arrives must mean the same however it is cut, windows
// must hold, and memory stays bounded whatever the peer sends.
#include <string>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/h2_frame.h"
#include "userspace/codec/h2_tunnel.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

const MonoTime kNow{std::chrono::hours(1)};

// All that a peer's bytes cause, as one text.
std::string run(bool server, bool polite, ByteView wire, size_t step) {
  TunnelOptions options;
  options.initial_stream_window = 1000;
  options.max_stream_window = 5000;
  options.max_concurrent_streams = 5;
  TunnelSession s(server ? TunnelRole::kServer : TunnelRole::kClient, options, kNow);
  std::string log;
  std::string hello = server ? std::string(h2::kPreface) : std::string();
  hello += std::string("\0\0\0\4\0\0\0\0\0", 9);  // SETTINGS
  ByteView first = as_bytes(hello);
  fuzz::require(s.next(first, kNow).kind == TunnelEventKind::kNone);
  if (!server)
    for (int i = 0; i < 3; ++i) fuzz::require(s.connect("10.0.0.1:80", {}, nullptr).has_value());
  s.clear_pending();
  uint64_t data = 0;
  while (!wire.empty()) {
    ByteView piece = wire.first(std::min(step, wire.size()));
    wire = wire.subspan(piece.size());
    for (;;) {
      const TunnelEvent e = s.next(piece, kNow);
      if (e.kind == TunnelEventKind::kNone) break;
      if (e.kind == TunnelEventKind::kData) {
        data += e.data.size();
        log += as_text(e.data);
        if (e.end_stream) log += "<end>";
        if (polite) s.consume(e.stream, static_cast<uint32_t>(e.data.size()));
        continue;
      }
      log += "<" + std::to_string(static_cast<int>(e.kind)) + " " + std::to_string(e.stream) + " " +
             std::to_string(e.code) + " " + std::to_string(e.status);
      for (const HeaderField& f : e.headers)
        log.append(" ").append(f.name).append("=").append(f.value);
      if (e.end_stream) log += " end";
      log += ">";
      if (e.kind == TunnelEventKind::kRequest) {
        fuzz::require(s.known(e.stream) && !e.headers.empty());
        if (polite) s.respond(e.stream, 200, {}, e.stream % 4 == 3);
      }
      if (e.kind == TunnelEventKind::kReset) fuzz::require(!s.known(e.stream));
      if (e.kind == TunnelEventKind::kWritable) fuzz::require(s.sendable(e.stream) > 0);
    }
    fuzz::require(piece.empty() && s.stream_count() <= 5);
    fuzz::require(s.pending().size() < 100'000);
  }
  if (!polite) fuzz::require(data <= 1000 * (1 + wire.size() + 10'000));
  for (uint32_t id = 1; id < 20; id += 2) s.sendable(id);
  return log;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const uint8_t choice = in.byte();
  const size_t step = 1 + in.byte();
  const ByteView wire = in.rest();
  const std::string whole = run(choice & 1, choice & 2, wire, wire.size() + 1);
  fuzz::require(run(choice & 1, choice & 2, wire, step) == whole);
  return 0;
}
