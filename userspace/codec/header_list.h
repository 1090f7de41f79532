// A list of header fields in one block of memory: what h1.h and h2.h read into and write from.
// Keeps order, case and duplicates; looks names up without case. Must never normalise a value.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace meltemi::codec {

struct HeaderField {
  std::string_view name;
  std::string_view value;
  bool never_indexed = false;  // HPACK: who forwards it must keep it out of tables too
};

class HeaderList {
 public:
  HeaderList() = default;
  HeaderList(const HeaderList& other) { *this = other; }
  HeaderList& operator=(const HeaderList& other);
  HeaderList(HeaderList&& other) noexcept { swap(other); }  // `other` is empty afterwards
  HeaderList& operator=(HeaderList&& other) noexcept {
    HeaderList(std::move(other)).swap(*this);
    return *this;
  }
  ~HeaderList() = default;
  void swap(HeaderList& other) noexcept;

  size_t size() const { return fields_.size(); }
  bool empty() const { return fields_.empty(); }
  // The i-th field. Views are valid until the list changes.
  HeaderField operator[](size_t i) const {
    const Slot& s = fields_[i];
    return {{text_.get() + s.name, s.name_size},
            {text_.get() + s.value, s.value_size},
            s.never_indexed != 0};
  }
  // Bytes of all names and values.
  size_t bytes() const { return bytes_; }

  // Lists hold less than 2 GiB of text; the codecs' limits are far below. The arguments may be
  // views into this list.
  void add(std::string_view name, std::string_view value, bool never_indexed = false) {
    if (room_ - used_ <= name.size() + value.size()) [[unlikely]]
      return add_and_grow(name, value, never_indexed);
    char* to = text_.get() + used_;
    copy(to, name);
    copy(to + name.size(), value);
    add_slot(name.size(), value.size(), never_indexed);
  }
  void add(HeaderField field) { add(field.name, field.value, field.never_indexed); }
  // The first field of that name, compared without case.
  std::optional<std::string_view> get(std::string_view name) const;
  // Value of the first field with that name, or "" if there is none.
  std::string_view value(std::string_view name) const { return get(name).value_or(""); }
  size_t count(std::string_view name) const;
  bool has(std::string_view name) const { return get(name).has_value(); }
  // Makes one field of all of that name: the first, with every value in order.
  void join(std::string_view name, std::string_view separator);
  // Every value of that name, in order, joined with ", ".
  std::string joined(std::string_view name) const;
  // Replaces the first field of that name (keeping its place and case) and removes the others; adds
  // at the end if there is none.
  void set(std::string_view name, std::string_view value);
  // Removes every field of that name; returns how many there were.
  size_t remove(std::string_view name);
  void clear();
  // Gives memory back; the list is empty afterwards.
  void release();

  class Iterator {
   public:
    Iterator(const HeaderList* list, size_t i) : list_(list), i_(i) {}
    HeaderField operator*() const { return (*list_)[i_]; }
    Iterator& operator++() {
      ++i_;
      return *this;
    }
    bool operator==(const Iterator& o) const { return i_ == o.i_; }

   private:
    const HeaderList* list_;
    size_t i_;
  };
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, fields_.size()}; }

 private:
  struct Slot {
    uint32_t name, name_size, value;
    uint32_t value_size : 31;
    uint32_t never_indexed : 1;
  };
  bool named(const Slot& s, std::string_view name) const;
  // Names and values are short: a call of memcpy() would cost more than the bytes.
  static void copy(char* to, std::string_view from) {
    const char* p = from.data();
    const size_t n = from.size();
    if (n > 16) {
      std::memcpy(to, p, n);
    } else if (n >= 8) {
      copy_ends<uint64_t>(to, p, n);
    } else if (n >= 4) {
      copy_ends<uint32_t>(to, p, n);
    } else if (n != 0) {
      const char first = p[0], middle = p[n / 2], last = p[n - 1];
      to[0] = first;
      to[n / 2] = middle;
      to[n - 1] = last;
    }
  }
  // Between one and two words, which overlap.
  template <typename Word>
  static void copy_ends(char* to, const char* from, size_t n) {
    Word first, last;
    std::memcpy(&first, from, sizeof first);
    std::memcpy(&last, from + n - sizeof last, sizeof last);
    std::memcpy(to, &first, sizeof first);
    std::memcpy(to + n - sizeof last, &last, sizeof last);
  }
  // The text that was just written at used_ becomes a field.
  void add_slot(size_t name_size, size_t value_size, bool never_indexed) {
    fields_.push_back({used_, static_cast<uint32_t>(name_size),
                       used_ + static_cast<uint32_t>(name_size), static_cast<uint32_t>(value_size),
                       never_indexed});
    used_ += static_cast<uint32_t>(name_size + value_size);
    bytes_ += name_size + value_size;
  }
  void add_and_grow(std::string_view name, std::string_view value, bool never_indexed);
  std::unique_ptr<char[]> grown(size_t more);

  std::unique_ptr<char[]> text_;  // set() appends; clear() reclaims
  uint32_t used_ = 0, room_ = 0;
  std::vector<Slot> fields_;
  size_t bytes_ = 0;
};

// ASCII, without case.
bool equal_ignoring_case(std::string_view a, std::string_view b);
// Whether there is any of 'A' to 'Z'.
bool has_upper_case(std::string_view text);
// A header name is an RFC 9110 token; a value has no byte below 0x20 but tab, no DEL, and no white
// space at its ends.
bool valid_header_name(std::string_view name);
bool valid_header_value(std::string_view value);

}  // namespace meltemi::codec
