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
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(),
                                            [](char x, char y) { return lower(x) == lower(y); });
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

void HeaderList::add(std::string_view name, std::string_view value) {
  // The arguments may be views into text_: reserve by hand so that append() does not move them
  // away.
  const size_t at = text_.size();
  if (text_.capacity() < at + name.size() + value.size()) {
    // One allocation for the usual head.
    std::string bigger;
    bigger.reserve(std::max<size_t>({2 * text_.capacity(), at + name.size() + value.size(), 500}));
    if (fields_.empty()) fields_.reserve(12);
    bigger.append(text_).append(name).append(value);
    text_.swap(bigger);
  } else {
    text_.append(name).append(value);
  }
  fields_.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(name.size()),
                     static_cast<uint32_t>(at + name.size()), static_cast<uint32_t>(value.size())});
  bytes_ += name.size() + value.size();
}

std::optional<std::string_view> HeaderList::get(std::string_view name) const {
  for (const HeaderField f : *this)
    if (equal_ignoring_case(f.name, name)) return f.value;
  return std::nullopt;
}

size_t HeaderList::count(std::string_view name) const {
  size_t n = 0;
  for (const HeaderField f : *this) n += equal_ignoring_case(f.name, name);
  return n;
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
  const std::string copy(value);  // may be a view into this list
  const std::string wanted(name);
  bytes_ += copy.size();
  bytes_ -= fields_[first].value_size;
  fields_[first].value = static_cast<uint32_t>(text_.size());
  fields_[first].value_size = static_cast<uint32_t>(copy.size());
  text_ += copy;
  for (size_t i = size(); i-- > first + 1;) {
    if (!equal_ignoring_case((*this)[i].name, wanted)) continue;
    bytes_ -= fields_[i].name_size + fields_[i].value_size;
    fields_.erase(fields_.begin() + static_cast<ptrdiff_t>(i));
  }
}

size_t HeaderList::remove(std::string_view name) {
  return std::erase_if(fields_, [&](const Slot& s) {
    if (!equal_ignoring_case({text_.data() + s.name, s.name_size}, name)) return false;
    bytes_ -= s.name_size + s.value_size;
    return true;
  });
}

void HeaderList::clear() {
  text_.clear();
  fields_.clear();
  bytes_ = 0;
}

void HeaderList::release() {
  std::string().swap(text_);
  std::vector<Slot>().swap(fields_);
  bytes_ = 0;
}

}  // namespace meltemi::codec
