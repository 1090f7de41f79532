// A list of header fields in one block of memory: what h1.h and h2.h read into and write from.
// Keeps order, case and duplicates; looks names up without case. Must never normalise a value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace meltemi::codec {

struct HeaderField {
  std::string_view name;
  std::string_view value;
};

class HeaderList {
 public:
  size_t size() const { return fields_.size(); }
  bool empty() const { return fields_.empty(); }
  // The i-th field. Views are valid until the list changes.
  HeaderField operator[](size_t i) const {
    const Slot& s = fields_[i];
    return {{text_.data() + s.name, s.name_size}, {text_.data() + s.value, s.value_size}};
  }
  // Bytes of all names and values.
  size_t bytes() const { return bytes_; }

  // Lists hold at most 4 GiB of text; the codecs' limits are far below.
  void add(std::string_view name, std::string_view value);
  // The first field of that name, compared without case.
  std::optional<std::string_view> get(std::string_view name) const;
  // Value of the first field with that name, or "" if there is none.
  std::string_view value(std::string_view name) const { return get(name).value_or(""); }
  size_t count(std::string_view name) const;
  bool has(std::string_view name) const { return count(name) != 0; }
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
    uint32_t name, name_size, value, value_size;
  };
  std::string text_;  // set() appends; clear() reclaims
  std::vector<Slot> fields_;
  size_t bytes_ = 0;
};

// ASCII, without case.
bool equal_ignoring_case(std::string_view a, std::string_view b);
// A header name is an RFC 9110 token; a value has no byte below 0x20 but tab, no DEL, and no white
// space at its ends.
bool valid_header_name(std::string_view name);
bool valid_header_value(std::string_view value);

}  // namespace meltemi::codec
