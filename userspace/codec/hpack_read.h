// Internal to codec: HPACK reading (RFC 7541), with the dynamic table. Works on whole header
// blocks: the session gathers CONTINUATIONs, within its limits, so there is no state inside a
// block. What is known about a field (field_kind.h) is kept beside it in the table. It must never
// keep more text than the table size that we advertise, nor hand out a view that outlives the next
// field.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/bytes.h"
#include "userspace/codec/field_kind.h"
#include "userspace/codec/hpack_tables.h"

namespace meltemi::codec::hpack {

inline constexpr uint32_t kDefaultTableSize =
    4096;                                       // SETTINGS_HEADER_TABLE_SIZE, never changed by us
inline constexpr uint32_t kFieldOverhead = 32;  // RFC 7541 section 4.1

struct Field {
  std::string_view name, value;  // valid until the next field is read
  FieldKind kind = FieldKind::kPlain;
  bool never_indexed = false;
};

// Appends the decoded text to `out`. False: not a Huffman code, EOS in it, or padding that is too
// long or not all ones.
bool huffman_decode(ByteView in, std::string& out);

class Decoder {
 public:
  // `limit`: the table size that we advertised.
  explicit Decoder(uint32_t limit = kDefaultTableSize) : limit_(limit), max_(limit) {}

  // Calls sink(const Field&) for each field of a whole block. False: COMPRESSION_ERROR, the
  // connection cannot go on; fields before the error were told.
  template <typename Sink>
  bool decode(ByteView block, Sink&& sink) {
    const uint8_t* p = block.data();
    const uint8_t* const end = p + block.size();
    bool first = true;
    Field field;
    while (p != end) {
      if ((*p & 0x80) != 0) {
        uint32_t index = *p & 0x7f;
        if (index != 0x7f) [[likely]]
          ++p;
        else if (!read_integer(p, end, 7, index))
          return false;
        if (!lookup(index, field)) return false;
      } else if ((*p & 0xe0) == 0x20) {
        if (!first || !resize(p, end)) return false;
        continue;
      } else if (!read_literal(p, end, field)) {
        return false;
      }
      first = false;
      sink(static_cast<const Field&>(field));
    }
    return true;
  }
  // After a block: gives back scratch memory above the usual.
  void trim() {
    if (scratch_.capacity() > 1024) std::string().swap(scratch_);
  }

  uint32_t table_bytes() const { return bytes_; }
  size_t table_entries() const { return count_; }

 private:
  struct Entry {
    uint32_t at = 0, name_size = 0, value_size = 0;
    FieldKind kind = FieldKind::kPlain;
    uint32_t cost() const { return name_size + value_size + kFieldOverhead; }
  };

  // The integer of RFC 7541 section 5.1 with this prefix at *p, below 2^28.
  static bool read_integer(const uint8_t*& p, const uint8_t* end, unsigned prefix, uint32_t& out);
  bool read_string(const uint8_t*& p, const uint8_t* end, std::string_view& out, bool& in_scratch);
  bool read_literal(const uint8_t*& p, const uint8_t* end, Field& out);
  bool resize(const uint8_t*& p, const uint8_t* end);
  bool lookup(uint32_t index, Field& out) const {
    if (index - 1 < kStaticFields) return lookup_static(index - 1, out);
    const uint32_t age = index - 1 - static_cast<uint32_t>(kStaticFields);
    if (index == 0 || age >= count_) return false;
    const Entry& e = ring_[(next_ - 1 - age) & (ring_.size() - 1)];
    out.name = {text_.get() + e.at, e.name_size};
    out.value = {text_.get() + e.at + e.name_size, e.value_size};
    out.kind = e.kind;
    out.never_indexed = false;
    return true;
  }
  static bool lookup_static(uint32_t i, Field& out);
  void insert(Field& field);  // its views are into the table afterwards, if it fits
  void evict(uint32_t most);
  char* room_for(uint32_t n);

  uint32_t limit_;      // by our SETTINGS
  uint32_t max_;        // by the peer's last size update
  uint32_t bytes_ = 0;  // as RFC 7541 counts
  uint32_t count_ = 0, next_ = 0;
  std::vector<Entry> ring_;  // a power of two; the newest is at next_ - 1
  // Text of the entries in order of age; the front is dropped by moving the rest down.
  std::unique_ptr<char[]> text_;
  uint32_t used_ = 0, capacity_ = 0;
  std::string scratch_;  // Huffman-decoded text of one field
};

}  // namespace meltemi::codec::hpack
