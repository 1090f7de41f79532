// The operators' HTTP parser: any bytes give a request, "incomplete", or an error with a status.
#include <cstdlib>

#include "userspace/telemetry/http_server.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi;
  int status = 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto r = telemetry::parse_http_request(text, &status);
  if (r) {
    if (r->path.empty() || r->path.front() != '/' || r->body.size() > size) std::abort();
    if (r->path.find('\0') != std::string::npos) std::abort();
  } else if (r.error().reason != Reason::kNotFound && (status < 400 || status > 599)) {
    std::abort();
  }
  return 0;
}
