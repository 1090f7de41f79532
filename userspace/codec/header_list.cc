#include "userspace/codec/header_list.h"

#include <algorithm>
#include <array>

namespace meltemi::codec {
namespace {

constexpr char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

constexpr std::array<bool, 256> token_table() {
  std::array<bool, 256> t{};
  for (int c = '0'; c <= '9'; ++c) t[c] = true;
  for (int c = 'a'; c <= 'z'; ++c) t[c] = t[c - 32] = true;
  for (char c : std::string_view("!#$%&'*+-.^_`|~")) t[static_cast<uint8_t>(c)] = true;
  return t;
}
constexpr auto kToken = token_table();

constexpr std::array<bool, 256> value_table() {
  std::array<bool, 256> t{};
  for (int c = 0x20; c < 256; ++c) t[c] = c != 0x7f;
  t['\t'] = true;
  return t;
}
constexpr auto kValue = value_table();

}  // namespace

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  if (a.empty()) return true;
  if (lower(a[0]) != lower(b[0])) return false;                     // most that differ
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return true;  // most that do not
  return std::equal(a.begin(), a.end(), b.begin(),
                    [](char x, char y) { return lower(x) == lower(y); });
}

bool has_upper_case(std::string_view text) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  // Bit 7 of each byte that is 'A' to 'Z'.
  const auto upper = [](uint64_t bytes) {
    const uint64_t low = bytes & 0x7f * kOnes;
    return (low + (0x80 - 'A') * kOnes) & ~(low + (0x7f - 'Z') * kOnes) & ~bytes & 0x80 * kOnes;
  };
  const char* p = text.data();
  size_t n = text.size();
  uint64_t bytes = 0, found = 0;
  for (; n >= 8; n -= 8, p += 8) {
    std::memcpy(&bytes, p, 8);
    found |= upper(bytes);
  }
  for (bytes = 0; n > 0; --n) bytes = bytes << 8 | static_cast<uint8_t>(*p++);
  return (found | upper(bytes)) != 0;
}

bool valid_header_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(),
                                      [](char c) { return kToken[static_cast<uint8_t>(c)]; });
}

bool valid_header_value(std::string_view value) {
  auto white = [](char c) { return c == ' ' || c == '\t'; };
  if (!value.empty() && (white(value.front()) || white(value.back()))) return false;
  return std::all_of(value.begin(), value.end(),
                     [](char c) { return kValue[static_cast<uint8_t>(c)]; });
}

HeaderList& HeaderList::operator=(const HeaderList& other) {
  if (this == &other) return *this;
  clear();
  if (room_ < other.used_) {
    text_ = std::make_unique_for_overwrite<char[]>(other.used_);
    room_ = other.used_;
  }
  if (other.used_ != 0) std::memcpy(text_.get(), other.text_.get(), other.used_);
  used_ = other.used_;
  fields_ = other.fields_;
  bytes_ = other.bytes_;
  return *this;
}

void HeaderList::swap(HeaderList& other) noexcept {
  text_.swap(other.text_);
  fields_.swap(other.fields_);
  std::swap(used_, other.used_);
  std::swap(room_, other.room_);
  std::swap(bytes_, other.bytes_);
}

// Makes room for `more` bytes. Returns the text that was there before, to which views may be held.
std::unique_ptr<char[]> HeaderList::grown(size_t more) {
  // One allocation for the usual head.
  const size_t room = std::max<size_t>({size_t{2} * room_, used_ + more + 1, 512});
  auto bigger = std::make_unique_for_overwrite<char[]>(room);
  if (used_ != 0) std::memcpy(bigger.get(), text_.get(), used_);
  room_ = static_cast<uint32_t>(room);
  text_.swap(bigger);
  return bigger;
}

void HeaderList::add_and_grow(std::string_view name, std::string_view value, bool never_indexed) {
  if (fields_.empty()) fields_.reserve(12);
  const auto before = grown(name.size() + value.size());
  add(name, value, never_indexed);
}

bool HeaderList::named(const Slot& s, std::string_view name) const {
  return s.name_size == name.size() &&
         equal_ignoring_case({text_.get() + s.name, s.name_size}, name);
}

std::optional<std::string_view> HeaderList::get(std::string_view name) const {
  for (const Slot& s : fields_)
    if (named(s, name)) return std::string_view(text_.get() + s.value, s.value_size);
  return std::nullopt;
}

size_t HeaderList::count(std::string_view name) const {
  return static_cast<size_t>(
      std::count_if(fields_.begin(), fields_.end(), [&](const Slot& s) { return named(s, name); }));
}

void HeaderList::join(std::string_view name, std::string_view separator) {
  std::string all;
  bool first = true;
  for (const HeaderField f : *this) {
    if (!equal_ignoring_case(f.name, name)) continue;
    if (!first) all += separator;
    first = false;
    all += f.value;
  }
  if (!first) set(name, all);
}

std::string HeaderList::joined(std::string_view name) const {
  std::string out;
  bool first = true;
  for (const HeaderField f : *this) {
    if (!equal_ignoring_case(f.name, name)) continue;
    if (!first) out += ", ";
    first = false;
    out += f.value;
  }
  return out;
}

void HeaderList::set(std::string_view name, std::string_view value) {
  size_t first = 0;
  while (first < size() && !equal_ignoring_case((*this)[first].name, name)) ++first;
  if (first == size()) return add(name, value);
  std::unique_ptr<char[]> before;  // `name` and `value` may be views into this list
  if (room_ - used_ < value.size()) before = grown(value.size());
  copy(text_.get() + used_, value);
  bytes_ += value.size();
  bytes_ -= fields_[first].value_size;
  fields_[first].value = used_;
  fields_[first].value_size = static_cast<uint32_t>(value.size());
  used_ += static_cast<uint32_t>(value.size());
  for (size_t i = size(); i-- > first + 1;) {
    if (!equal_ignoring_case((*this)[i].name, name)) continue;
    bytes_ -= fields_[i].name_size + fields_[i].value_size;
    fields_.erase(fields_.begin() + static_cast<ptrdiff_t>(i));
  }
}

size_t HeaderList::remove(std::string_view name) {
  return std::erase_if(fields_, [&](const Slot& s) {
    if (!named(s, name)) return false;
    bytes_ -= s.name_size + s.value_size;
    return true;
  });
}

void HeaderList::clear() {
  used_ = 0;
  fields_.clear();
  bytes_ = 0;
}

void HeaderList::release() {
  HeaderList().swap(*this);
}

}  // namespace meltemi::codec
