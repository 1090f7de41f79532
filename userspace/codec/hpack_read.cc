#include "userspace/codec/hpack_read.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace meltemi::codec::hpack {
namespace {

constexpr unsigned kFastBits = 9;  // codes up to here are found by one look-up
constexpr unsigned kLongestCode = 30;

struct HuffmanTables {
  struct Fast {
    uint8_t symbol, bits;  // bits 0: a longer code
  };
  std::array<Fast, 1 << kFastBits> fast{};
  // Of each length: the first code that is longer, left-aligned in 32 bits; and what to add to a
  // code for the place of its symbol in `symbols`.
  std::array<uint64_t, kLongestCode + 1> limit{};
  std::array<int32_t, kLongestCode + 1> offset{};
  std::array<uint16_t, 257> symbols{};
};

constexpr HuffmanTables make_tables() {
  HuffmanTables t;
  uint32_t code = 0;
  size_t place = 0;
  for (unsigned bits = 1; bits <= kLongestCode; ++bits) {
    code <<= 1;
    t.offset[bits] = static_cast<int32_t>(place) - static_cast<int32_t>(code);
    for (size_t symbol = 0; symbol < kHuffmanBits.size(); ++symbol) {
      if (kHuffmanBits[symbol] != bits) continue;
      t.symbols[place++] = static_cast<uint16_t>(symbol);
      if (bits <= kFastBits) {
        const uint32_t first = code << (kFastBits - bits);
        for (uint32_t i = 0; i < 1u << (kFastBits - bits); ++i)
          t.fast[first + i] = {static_cast<uint8_t>(symbol), static_cast<uint8_t>(bits)};
      }
      ++code;
    }
    t.limit[bits] = uint64_t{code} << (32 - bits);
  }
  return t;
}
constexpr HuffmanTables kHuffman = make_tables();

constexpr std::array<FieldKind, kStaticFields> make_static_kinds() {
  std::array<FieldKind, kStaticFields> kinds{};
  for (size_t i = 0; i < kStaticFields; ++i) {
    const std::string_view n = kStaticTable[i].name;
    const bool empty = kStaticTable[i].value.empty();
    FieldKind k = FieldKind::kPlain;
    if (n == ":method") k = FieldKind::kMethod;
    if (n == ":path") k = FieldKind::kPath;
    if (n == ":scheme") k = FieldKind::kScheme;
    if (n == ":status") k = FieldKind::kStatus;
    // These three must have a value.
    if ((n == ":authority" || n == "host" || n == "content-length") && empty)
      k = FieldKind::kMalformed;
    if (n == "cookie") k = FieldKind::kCookie;
    if (n == "transfer-encoding") k = FieldKind::kConnectionSpecific;
    kinds[i] = k;
  }
  return kinds;
}
constexpr std::array<FieldKind, kStaticFields> kStaticKinds = make_static_kinds();

}  // namespace

bool huffman_decode(ByteView in, std::string& out) {
  // The shortest code has 5 bits.
  const size_t before = out.size();
  out.resize(before + in.size() * 8 / 5 + 1);
  char* to = out.data() + before;
  uint64_t window = 0;  // the bits that come next, left-aligned
  unsigned have = 0;
  const uint8_t* p = in.data();
  const uint8_t* const end = p + in.size();
  while (true) {
    while (have <= 56 && p != end) {
      window |= uint64_t{*p++} << (56 - have);
      have += 8;
    }
    if (have == 0) break;
    const auto fast = kHuffman.fast[window >> (64 - kFastBits)];
    if (fast.bits != 0 && fast.bits <= have) [[likely]] {
      *to++ = static_cast<char>(fast.symbol);
      window <<= fast.bits;
      have -= fast.bits;
      continue;
    }
    const uint64_t top = window >> 32;
    unsigned bits = fast.bits != 0 ? fast.bits : kFastBits + 1;
    while (bits <= kLongestCode && top >= kHuffman.limit[bits]) ++bits;
    if (bits > kLongestCode) bits = kLongestCode;
    if (bits > have) {  // padding: at most 7 bits, the first of EOS, which are ones
      if (have > 7 || window >> (64 - have) != (uint64_t{1} << have) - 1) return false;
      break;
    }
    const int32_t place = static_cast<int32_t>(window >> (64 - bits)) + kHuffman.offset[bits];
    const uint16_t symbol = kHuffman.symbols[static_cast<size_t>(place)];
    if (symbol == 256) return false;
    *to++ = static_cast<char>(symbol);
    window <<= bits;
    have -= bits;
  }
  out.resize(static_cast<size_t>(to - out.data()));
  return true;
}

bool Decoder::read_integer(const uint8_t*& p, const uint8_t* end, unsigned prefix, uint32_t& out) {
  const uint32_t mask = (1u << prefix) - 1;
  out = *p++ & mask;
  if (out != mask) return true;
  for (unsigned shift = 0; shift <= 21; shift += 7) {
    if (p == end) return false;
    const uint8_t b = *p++;
    out += uint32_t{b & 0x7fu} << shift;
    if ((b & 0x80) == 0) return true;
  }
  return false;
}

bool Decoder::read_string(const uint8_t*& p, const uint8_t* end, std::string_view& out,
                          bool& in_scratch) {
  if (p == end) return false;
  const bool huffman = (*p & 0x80) != 0;
  uint32_t n = 0;
  if (!read_integer(p, end, 7, n) || n > static_cast<size_t>(end - p)) return false;
  const ByteView raw(p, n);
  p += n;
  in_scratch = huffman;
  if (!huffman) {
    out = as_text(raw);
    return true;
  }
  const size_t at = scratch_.size();
  if (!huffman_decode(raw, scratch_)) return false;
  out = std::string_view(scratch_).substr(at);
  return true;
}

bool Decoder::read_literal(const uint8_t*& p, const uint8_t* end, Field& out) {
  const bool indexing = (*p & 0x40) != 0;
  out.never_indexed = !indexing && (*p & 0x10) != 0;
  const bool never = out.never_indexed;
  uint32_t index = 0;
  if (!read_integer(p, end, indexing ? 6 : 4, index)) return false;
  scratch_.clear();
  bool name_in_scratch = false, value_in_scratch = false;
  if (index == 0) {
    if (!read_string(p, end, out.name, name_in_scratch)) return false;
  } else if (!lookup(index, out)) {
    return false;
  }
  const size_t name_size = out.name.size();
  if (!read_string(p, end, out.value, value_in_scratch)) return false;
  // Reading the value may have moved the scratch.
  if (name_in_scratch) out.name = std::string_view(scratch_).substr(0, name_size);
  out.never_indexed = never;
  out.kind = classify_field(out.name, out.value);
  if (indexing) insert(out);
  return true;
}

bool Decoder::resize(const uint8_t*& p, const uint8_t* end) {
  uint32_t size = 0;
  if (!read_integer(p, end, 5, size) || size > limit_) return false;
  max_ = size;
  evict(max_);
  return true;
}

bool Decoder::lookup_static(uint32_t i, Field& out) {
  out.name = kStaticTable[i].name;
  out.value = kStaticTable[i].value;
  out.kind = kStaticKinds[i];
  out.never_indexed = false;
  return true;
}

// Until the table has at most `most` bytes.
void Decoder::evict(uint32_t most) {
  while (bytes_ > most) {
    const Entry& oldest = ring_[(next_ - count_) & (ring_.size() - 1)];
    bytes_ -= oldest.cost();
    --count_;
  }
}

// Where n bytes of text go, behind those of the newest entry. Never nullptr, also for 0.
char* Decoder::room_for(uint32_t n) {
  if (capacity_ - used_ > n) return text_.get() + used_;
  uint32_t first = used_;
  if (count_ != 0) first = ring_[(next_ - count_) & (ring_.size() - 1)].at;
  const uint32_t live = used_ - first;
  // Twice what the table may hold, so that moving is rare; small while little is used.
  const uint32_t wanted = std::max<uint32_t>(512, 2 * (live + n));
  char* from = text_.get() + first;
  std::unique_ptr<char[]> bigger;
  if (wanted > capacity_) bigger = std::make_unique_for_overwrite<char[]>(wanted);
  if (live != 0) std::memmove(bigger ? bigger.get() : text_.get(), from, live);
  if (bigger) {
    text_ = std::move(bigger);
    capacity_ = wanted;
  }
  for (uint32_t i = 1; i <= count_; ++i) ring_[(next_ - i) & (ring_.size() - 1)].at -= first;
  used_ = live;
  return text_.get() + used_;
}

// `field` may have views into the table, even into an entry that goes for it.
void Decoder::insert(Field& field) {
  Entry e;
  e.name_size = static_cast<uint32_t>(field.name.size());
  e.value_size = static_cast<uint32_t>(field.value.size());
  e.kind = field.kind;
  if (e.cost() > max_) return evict(0);  // RFC 7541 section 4.4: not an error, empties the table
  evict(max_ - e.cost());
  if (ring_.size() == count_) {
    std::vector<Entry> bigger(std::max<size_t>(8, ring_.size() * 2));
    for (uint32_t i = 1; i <= count_; ++i)
      bigger[(next_ - i) & (bigger.size() - 1)] = ring_[(next_ - i) & (ring_.size() - 1)];
    ring_ = std::move(bigger);
  }
  const uint32_t n = e.name_size + e.value_size;
  std::string moved;
  if (capacity_ - used_ <= n) {  // the name may be a view into text that moves
    moved = field.name;
    field.name = moved;
  }
  char* to = room_for(n);
  std::memcpy(to, field.name.data(), e.name_size);
  std::memcpy(to + e.name_size, field.value.data(), e.value_size);
  field.name = {to, e.name_size};
  field.value = {to + e.name_size, e.value_size};
  e.at = used_;
  used_ += n;
  bytes_ += e.cost();
  ring_[next_++ & (ring_.size() - 1)] = e;
  ++count_;
}

}  // namespace meltemi::codec::hpack
