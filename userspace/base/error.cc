// Texts of the reason codes and the errno mappings. Must never allocate for a lookup.
#include "userspace/base/error.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

namespace meltemi {

std::string_view reason_name(Reason reason) {
  switch (reason) {
#define MELTEMI_REASON_CASE(id, text, meaning) \
  case Reason::id:                             \
    return text;
    MELTEMI_REASONS(MELTEMI_REASON_CASE)
#undef MELTEMI_REASON_CASE
  }
  return "internal";
}

std::string_view reason_meaning(Reason reason) {
  switch (reason) {
#define MELTEMI_REASON_CASE(id, text, meaning) \
  case Reason::id:                             \
    return meaning;
    MELTEMI_REASONS(MELTEMI_REASON_CASE)
#undef MELTEMI_REASON_CASE
  }
  return "a defect of ours";
}

std::string Error::to_string() const {
  if (detail.empty()) return std::string(reason_name(reason));
  return fmt::format("{}: {}", reason_name(reason), detail);
}

std::unexpected<Error> fail_errno(int err, std::string_view what) {
  return fail(Reason::kSystem, Fault::kInternal,
              fmt::format("{}: {} (errno {})", what, strerror(err), err));
}

Reason reason_of_connect_errno(int err) {
  switch (err) {
    case ECONNREFUSED:
      return Reason::kConnectRefused;
    case ETIMEDOUT:
      return Reason::kConnectTimeout;
    case ECONNRESET:
    case EPIPE:
    case ECONNABORTED:
      return Reason::kConnectReset;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EADDRNOTAVAIL:
      return Reason::kConnectUnreachable;
    case ECANCELED:
      return Reason::kCancelled;
    default:
      return Reason::kSystem;
  }
}

}  // namespace meltemi
