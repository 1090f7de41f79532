// Internal to codec: whether a header block is a request, a response or trailers that HTTP/2 allows
// (RFC 9113 section 8). Fed field by field as they are decoded. It must never change a field: what
// is malformed is refused, never mended.
#pragma once

#include <cstdint>

#include "userspace/codec/header_list.h"
#include "userspace/codec/hpack_read.h"

namespace meltemi::codec::h2 {

class MessageRules {
 public:
  void add(const hpack::Field& field) {
    if (field.kind == FieldKind::kPlain) [[likely]]
      regular_ = true;
    else
      add_special(field);
  }
  // `list` holds the same fields. `extended`: CONNECT may have :protocol (RFC 8441).
  bool valid_request(const HeaderList& list, bool extended) const;
  bool valid_response() const { return good() && pseudo_ == kStatusBit && status_ != 101; }
  bool valid_trailers() const { return good() && pseudo_ == 0; }
  bool good() const { return !malformed_; }

  uint16_t status() const { return status_; }  // 0 without :status
  uint32_t cookies() const { return cookies_; }  // fields of that name
  // -1 without Content-Length.
  int64_t content_length() const { return content_length_; }

 private:
  static constexpr uint8_t kMethodBit = 1, kSchemeBit = 2, kAuthorityBit = 4, kPathBit = 8,
                           kProtocolBit = 16, kStatusBit = 32;
  void add_special(const hpack::Field& field);
  void add_pseudo(uint8_t bit);

  uint8_t pseudo_ = 0;  // that were seen
  bool malformed_ = false;
  bool regular_ = false;  // a field that is no pseudo-header was seen
  bool host_ = false;
  bool connect_ = false, options_ = false;  // the method
  bool http_ = false;                       // the scheme is http or https
  bool slash_ = false, star_ = false;       // the path
  uint16_t status_ = 0;
  uint32_t cookies_ = 0;
  int64_t content_length_ = -1;
};

}  // namespace meltemi::codec::h2
