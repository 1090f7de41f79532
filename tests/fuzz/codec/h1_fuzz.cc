// HTTP/1: a message must mean the same however it is cut, and a request that we accept must,
// written out again, be read as exactly that one request.
#include <string>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/h1.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

H1Limits small_limits() {
  H1Limits l;
  l.head_bytes = 2000;
  l.header_count = 20;
  l.target_bytes = 500;
  l.chunk_line_bytes = 64;
  return l;
}

struct Seen {
  std::string log;
  std::string rewritten;  // of all messages that were complete
};

Seen run(H1Role role, ByteView wire, size_t step) {
  H1Parser parser(role, small_limits());
  Seen r;
  std::string body, head;
  while (!wire.empty()) {
    ByteView piece = wire.first(std::min(step, wire.size()));
    wire = wire.subspan(piece.size());
    for (;;) {
      const H1Event e = parser.next(piece);
      if (e.kind == H1EventKind::kNeedMore) break;
      if (e.kind == H1EventKind::kBody) {
        body += as_text(e.data);
        continue;
      }
      r.log += "<" + std::to_string(static_cast<int>(e.kind)) + ":" + body + ">";
      const H1Head& h = parser.head();
      if (e.kind == H1EventKind::kError) {
        fuzz::require(e.status >= 400 && !parser.error().detail.empty());
        return r;
      }
      if (e.kind == H1EventKind::kHead) {
        fuzz::require(h.headers.size() <= 20 && h.headers.bytes() <= 2000);
        head.clear();
        const Status written =
            role == H1Role::kRequests
                ? append_request_head(head, h.method, h.target, h.headers, h.minor_version)
                : append_response_head(head, h.status, h.reason, h.headers, h.minor_version);
        fuzz::require(written.has_value() || role == H1Role::kResponses);
        r.log += head;
      }
      if (e.kind == H1EventKind::kComplete || e.kind == H1EventKind::kUpgrade) {
        r.rewritten += head;
        if (h.framing == H1Framing::kChunked) {
          uint8_t line[18];
          if (!body.empty()) {
            r.rewritten +=
                as_text({line, write_chunk_header(body.size(), std::span<uint8_t, 18>(line))});
            r.rewritten += body + std::string(kChunkEnd);
          }
          fuzz::require(append_last_chunk(r.rewritten, parser.trailers()).has_value());
        } else {
          fuzz::require(h.framing != H1Framing::kLength || body.size() == h.content_length);
          r.rewritten += body;
        }
        body.clear();
        if (e.kind == H1EventKind::kUpgrade) return r;
      }
    }
    fuzz::require(piece.empty());
  }
  r.log += "<open:" + body + ">";
  parser.finish();
  return r;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const H1Role role = in.byte() & 1 ? H1Role::kResponses : H1Role::kRequests;
  const size_t step = 1 + in.byte() % 64;
  const ByteView wire = in.rest();
  const Seen whole = run(role, wire, wire.size() + 1);
  const Seen cut = run(role, wire, step);
  fuzz::require(whole.log == cut.log && whole.rewritten == cut.rewritten);
  if (role == H1Role::kRequests && !whole.rewritten.empty())
    fuzz::require(run(role, as_bytes(whole.rewritten), 1 << 20).rewritten == whole.rewritten);
  return 0;
}
