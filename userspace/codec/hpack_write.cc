#include "userspace/codec/hpack_write.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "userspace/codec/hpack_tables.h"

namespace meltemi::codec::hpack {
namespace {

// Indices of the static table (RFC 7541 appendix A).
constexpr uint8_t kAuthority = 1;
constexpr uint8_t kMethod = 2;
constexpr uint8_t kStatus = 8;

// RFC 7541 section 5.1 with a prefix of 7 bits; strings are never Huffman-coded (top bit 0).
void write_length(std::string& out, size_t n) {
  if (n < 127) {
    out.push_back(static_cast<char>(n));
    return;
  }
  out.push_back(127);
  for (n -= 127; n >= 128; n >>= 7) out.push_back(static_cast<char>(n | 0x80));
  out.push_back(static_cast<char>(n));
}

void write_string(std::string& out, std::string_view s) {
  write_length(out, s.size());
  out.append(s);
}

}  // namespace

void write_status(std::string& out, uint16_t status) {
  constexpr uint16_t kIndexed[] = {200, 204, 206, 304, 400, 404, 500};  // entries 8 to 14
  for (size_t i = 0; i < std::size(kIndexed); ++i) {
    if (kIndexed[i] != status) continue;
    out.push_back(static_cast<char>(0x80 | (kStatus + i)));
    return;
  }
  const char digits[] = {static_cast<char>('0' + status / 100 % 10),
                         static_cast<char>('0' + status / 10 % 10),
                         static_cast<char>('0' + status % 10)};
  out.push_back(kStatus);
  write_string(out, {digits, sizeof digits});
}

void write_method_connect(std::string& out) {
  out.push_back(kMethod);
  write_string(out, "CONNECT");
}

void write_authority(std::string& out, std::string_view authority) {
  out.push_back(kAuthority);
  write_string(out, authority);
}

void write_field(std::string& out, std::string_view name, std::string_view value) {
  out.push_back(0);
  write_length(out, name.size());
  for (char c : name) out.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c);
  write_string(out, value);
}

// --- with a dynamic table ------------------------------------------------------------------------

namespace {

constexpr uint32_t kMultiplier = 0x9e3779b1;

inline uint64_t load64(const char* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline uint32_t load32(const char* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

bool equal(std::string_view a, const char* b, size_t size) {
  return a.size() == size && std::memcmp(a.data(), b, size) == 0;
}

// The static table by hash: open addressing, built once.
struct StaticIndex {
  static constexpr size_t kSlots = 256;
  struct Slot {
    uint32_t hash = 0;
    uint8_t index = 0;  // 0: free
  };
  std::array<Slot, kSlots> both, name;

  template <typename Hash>
  explicit StaticIndex(Hash&& hash) {
    for (size_t i = 0; i < kStaticFields; ++i) {
      const StaticField& f = kStaticTable[i];
      const uint32_t name_hash = hash(f.name, 0);
      if (!find_name(f.name, name_hash)) put(name, name_hash, i + 1);
      // No message may have it, so it must not pass as a field that was checked.
      if (f.name != "transfer-encoding") put(both, hash(f.value, name_hash), i + 1);
    }
  }
  static void put(std::array<Slot, kSlots>& slots, uint32_t hash, size_t index) {
    size_t at = hash % kSlots;
    while (slots[at].index != 0) at = (at + 1) % kSlots;
    slots[at] = {hash, static_cast<uint8_t>(index)};
  }
  uint32_t find(HeaderField f, uint32_t hash) const {
    for (size_t at = hash % kSlots; both[at].index != 0; at = (at + 1) % kSlots) {
      if (both[at].hash != hash) continue;
      const StaticField& known = kStaticTable[both[at].index - 1];
      if (known.name == f.name && known.value == f.value) return both[at].index;
    }
    return 0;
  }
  uint32_t find_name(std::string_view n, uint32_t hash) const {
    for (size_t at = hash % kSlots; name[at].index != 0; at = (at + 1) % kSlots)
      if (name[at].hash == hash && kStaticTable[name[at].index - 1].name == n)
        return name[at].index;
    return 0;
  }
};

// Secrets that could be guessed by watching sizes (RFC 7541 section 7.1.3).
bool sensitive(std::string_view name, std::string_view value) {
  switch (name.size()) {
    case 6:
      return name == "cookie" && value.size() < 20;
    case 10:
      return name == "set-cookie" && value.size() < 20;
    case 13:
      return name == "authorization";
    case 19:
      return name == "proxy-authorization";
    default:
      return false;
  }
}

}  // namespace

uint32_t Encoder::hash(std::string_view text, uint32_t seed) {
  const char* p = text.data();
  size_t n = text.size();
  uint64_t h = (seed ^ n) * uint64_t{0x9e3779b97f4a7c15};
  for (; n > 8; n -= 8, p += 8) h = (h ^ load64(p)) * 0xff51afd7ed558ccd, h ^= h >> 32;
  uint64_t tail = 0;
  if (n >= 4)
    tail = uint64_t{load32(p)} << 32 | load32(p + n - 4);
  else if (n != 0)
    tail = uint64_t{static_cast<uint8_t>(p[0])} << 16 |
           uint64_t{static_cast<uint8_t>(p[n / 2])} << 8 | static_cast<uint8_t>(p[n - 1]);
  h = (h ^ tail) * 0xff51afd7ed558ccd;
  return static_cast<uint32_t>(h >> 32) * kMultiplier;
}

static const StaticIndex& static_index(auto&& hash) {
  static const StaticIndex index(hash);
  return index;
}

void Encoder::write_integer(std::string& out, uint8_t first, unsigned prefix, uint32_t n) {
  const uint32_t mask = (1u << prefix) - 1;
  if (n < mask) {
    out.push_back(static_cast<char>(first | n));
    return;
  }
  out.push_back(static_cast<char>(first | mask));
  for (n -= mask; n >= 128; n >>= 7) out.push_back(static_cast<char>(n | 0x80));
  out.push_back(static_cast<char>(n));
}

uint32_t Encoder::find(HeaderField field, uint32_t both) const {
  if (table_) {
    // The newest of a bucket first; older ones are reached through it, and evicted ones end the
    // walk because all behind them are older still.
    for (uint32_t number = table_->by_both[both % kBuckets]; live(number);) {
      const Entry& e = entry(number);
      if (e.hashes.both == both && equal(field.name, &table_->text[e.at], e.name_size) &&
          equal(field.value, &table_->text[e.at + e.name_size], e.value_size))
        return static_cast<uint32_t>(kStaticFields) + next_ - number;
      number = e.older_both;
    }
  }
  return static_index(hash).find(field, both);
}

uint32_t Encoder::find_name(std::string_view name, uint32_t name_hash) const {
  if (const uint32_t index = static_index(hash).find_name(name, name_hash)) return index;
  if (!table_) return 0;
  for (uint32_t number = table_->by_name[name_hash % kBuckets]; live(number);) {
    const Entry& e = entry(number);
    if (e.hashes.name == name_hash && equal(name, &table_->text[e.at], e.name_size))
      return static_cast<uint32_t>(kStaticFields) + next_ - number;
    number = e.older_name;
  }
  return 0;
}

void Encoder::write_new(std::string& out, HeaderField field) {
  const bool secret = field.never_indexed || sensitive(field.name, field.value);
  if (field.never_indexed) last_ = {hash(field.name, 0), 0};
  const uint32_t name_index = find_name(field.name, last_.name);
  bool index = false;
  if (!secret) {
    if (!table_) table_ = std::make_unique<Table>();
    uint32_t& seen = table_->seen[last_.both % kBuckets];
    // More than half of the table for one field would be a bad bargain.
    index = seen == last_.both && field.name.size() + field.value.size() + 32 <= limit_ / 2;
    seen = last_.both;
  }
  if (index)
    write_integer(out, 0x40, 6, name_index);
  else
    write_integer(out, secret ? 0x10 : 0x00, 4, name_index);
  if (name_index == 0) write_string(out, field.name);
  write_string(out, field.value);
  if (index) insert(field, last_);
}

void Encoder::evict(uint32_t most) {
  while (bytes_ > most) {
    bytes_ -= entry(oldest()).cost();
    --count_;
  }
}

void Encoder::insert(HeaderField field, Hashes hashes) {
  Entry e{};
  e.hashes = hashes;
  e.name_size = static_cast<uint32_t>(field.name.size());
  e.value_size = static_cast<uint32_t>(field.value.size());
  evict(limit_ - e.cost());
  const uint32_t n = e.name_size + e.value_size;
  Table& t = *table_;
  if (used_ + n > t.text.size()) {  // drop the text of what was evicted
    const uint32_t first = count_ == 0 ? used_ : entry(oldest()).at;
    std::memmove(t.text.data(), t.text.data() + first, used_ - first);
    for (uint32_t number = oldest(); number != next_; ++number) entry(number).at -= first;
    used_ -= first;
  }
  e.at = used_;
  std::memcpy(&t.text[used_], field.name.data(), e.name_size);
  std::memcpy(&t.text[used_ + e.name_size], field.value.data(), e.value_size);
  used_ += n;
  bytes_ += e.cost();
  e.older_name = std::exchange(t.by_name[hashes.name % kBuckets], next_);
  e.older_both = std::exchange(t.by_both[hashes.both % kBuckets], next_);
  entry(next_) = e;
  ++next_;
  ++count_;
}

void Encoder::set_peer_limit(uint32_t bytes) {
  const uint32_t limit = std::min(bytes, kMaxTable);
  if (limit == limit_ && lowest_ == kNone) return;
  lowest_ = std::min(lowest_, limit);
  limit_ = limit;
  evict(lowest_);
}

// RFC 7541 section 4.2: the smallest limit in between first, then what holds now.
void Encoder::write_size_updates(std::string& out) {
  if (lowest_ < limit_) write_integer(out, 0x20, 5, lowest_);
  write_integer(out, 0x20, 5, limit_);
  lowest_ = kNone;
}

}  // namespace meltemi::codec::hpack
