#include "userspace/codec/h2_message.h"

#include <charconv>

namespace meltemi::codec::h2 {
namespace {

std::string_view without_port(std::string_view host, std::string_view port) {
  if (host.ends_with(port)) host.remove_suffix(port.size());
  return host;
}

// RFC 9113 section 8.3.1: a Host that names another than :authority could be routed by one and
// authorized by the other.
bool same_host(const HeaderList& list) {
  const std::string_view authority = list.value(":authority"), host = list.value("host");
  if (equal_ignoring_case(authority, host)) return true;
  const std::string_view port =
      equal_ignoring_case(list.value(":scheme"), "https") ? ":443" : ":80";
  return equal_ignoring_case(without_port(authority, port), without_port(host, port));
}

}  // namespace

void MessageRules::add_pseudo(uint8_t bit) {
  if (regular_ || (pseudo_ & bit) != 0) malformed_ = true;
  pseudo_ |= bit;
}

void MessageRules::add_special(const hpack::Field& f) {
  switch (f.kind) {
    case FieldKind::kPlain:
      return;
    case FieldKind::kMethod:
      connect_ = f.value == "CONNECT";
      options_ = f.value == "OPTIONS";
      return add_pseudo(kMethodBit);
    case FieldKind::kScheme:
      http_ = equal_ignoring_case(f.value, "http") || equal_ignoring_case(f.value, "https");
      return add_pseudo(kSchemeBit);
    case FieldKind::kAuthority:
      return add_pseudo(kAuthorityBit);
    case FieldKind::kPath:
      slash_ = f.value.starts_with('/');
      star_ = f.value == "*";
      return add_pseudo(kPathBit);
    case FieldKind::kProtocol:
      return add_pseudo(kProtocolBit);
    case FieldKind::kStatus:
      std::from_chars(f.value.data(), f.value.data() + f.value.size(), status_);
      return add_pseudo(kStatusBit);
    case FieldKind::kContentLength:
      regular_ = true;
      // Two of them, even if they agree, is how requests are smuggled.
      if (content_length_ >= 0) malformed_ = true;
      std::from_chars(f.value.data(), f.value.data() + f.value.size(), content_length_);
      return;
    case FieldKind::kHost:
      regular_ = true;
      if (host_) malformed_ = true;
      host_ = true;
      return;
    case FieldKind::kCookie:
      regular_ = true;
      ++cookies_;
      return;
    case FieldKind::kConnectionSpecific:
    case FieldKind::kMalformed:
      malformed_ = true;
      return;
  }
}

bool MessageRules::valid_request(const HeaderList& list, bool extended) const {
  if (malformed_ || (pseudo_ & kMethodBit) == 0 || (pseudo_ & kStatusBit) != 0) return false;
  const bool protocol = (pseudo_ & kProtocolBit) != 0;
  if (protocol && (!connect_ || !extended)) return false;
  if (connect_ && !protocol) return pseudo_ == (kMethodBit | kAuthorityBit);
  if ((pseudo_ & (kSchemeBit | kPathBit)) != (kSchemeBit | kPathBit)) return false;
  const bool authority = (pseudo_ & kAuthorityBit) != 0;
  if (protocol && !authority) return false;
  if (http_ && !authority && !host_) return false;
  if (http_ && !slash_ && !(options_ && star_)) return false;
  return !authority || !host_ || same_host(list);
}

}  // namespace meltemi::codec::h2
