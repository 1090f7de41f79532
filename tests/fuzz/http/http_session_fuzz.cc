// The operators' HTTP server without its socket: any bytes, in two pieces, give requests within the
// limits and responses that end; nothing is kept that the client could make grow.
#include <cstdlib>

#include "userspace/http/session.h"

namespace {

using namespace meltemi;

void drive(http::Session& session, ByteView in, size_t split) {
  const auto produce = [&] {
    std::string out;
    for (int i = 0; i < 64; ++i) {
      out.clear();
      session.produce(out, 1024);
      if (out.empty()) return;
    }
  };
  split = std::min(split, in.size());
  session.receive(in.first(split), MonoTime());
  produce();
  session.receive(in.subspan(split), MonoTime());
  produce();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const http::Limits limits{.head_bytes = 512, .header_count = 8, .body_bytes = 256, .streams = 4};
  const http::Session::Answer answer = [&](const http::Request& request) {
    if (request.body.size() > limits.body_bytes || !request.path.starts_with('/')) std::abort();
    if (request.path.find('\0') != std::string::npos) std::abort();
    return http::Response{200, std::string(3000, 'x')};
  };
  const ByteView in(data + 1, size - 1);
  const auto session = http::version_of(in) == http::Version::kHttp2
                           ? http::make_h2_session(limits, {}, answer)
                           : http::make_h1_session(limits, {}, answer);
  drive(*session, in, data[0]);
  return 0;
}
