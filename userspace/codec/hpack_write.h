// Internal to codec: HPACK (RFC 7541) writing, without Huffman coding: inside of a cluster a copy
// is cheaper than the bytes that it saves. Two writers. The functions keep nothing per connection
// and use no dynamic table: for tunnels, which write one block a stream. Encoder has the dynamic
// table: for requests, whose fields repeat. It must never put into a table what must not be guessed
// by its size; the two must never be mixed on one connection.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/codec/header_list.h"

namespace meltemi::codec::hpack {

// First byte(s) of a connection's first header block: the peer may free its table, and later
// changes of SETTINGS_HEADER_TABLE_SIZE need no answer from us.
inline constexpr uint8_t kNoDynamicTable = 0x20;

void write_status(std::string& out, uint16_t status);  // 100..999
void write_method_connect(std::string& out);
void write_authority(std::string& out, std::string_view authority);
// Literal without indexing, name spelled out; upper-case ASCII in the name becomes lower case.
void write_field(std::string& out, std::string_view name, std::string_view value);

class Encoder {
 public:
  // The peer's SETTINGS_HEADER_TABLE_SIZE; told to it in the next block.
  void set_peer_limit(uint32_t bytes);
  // Call before the first field of each block.
  void begin_block(std::string& out) {
    if (lowest_ != kNone) [[unlikely]]
      write_size_updates(out);
  }
  // Writes a field that is in the static or the dynamic table as one index. False: it is not,
  // nothing was written. What is in a table was checked when it came there.
  bool write_known(std::string& out, HeaderField field) {
    if (field.never_indexed) [[unlikely]]
      return false;
    const uint32_t name_hash = hash(field.name, 0);
    last_ = {name_hash, hash(field.value, name_hash)};
    const uint32_t index = find(field, last_.both);
    if (index == 0) return false;
    if (index < 127) [[likely]]
      out.push_back(static_cast<char>(0x80 | index));
    else
      write_integer(out, 0x80, 7, index);
    return true;
  }
  // Writes any field. The name is in lower case. REQUIRES: write_known() of the same field was the
  // last call, and false.
  void write_new(std::string& out, HeaderField field);

  // Empties the table, and the peer's with the next block: for a block that was begun and is not
  // sent.
  void forget() {
    evict(0);
    lowest_ = 0;
  }

  size_t table_entries() const { return count_; }
  uint32_t table_bytes() const { return bytes_; }

 private:
  static constexpr uint32_t kNone = 0xffffffff;
  static constexpr uint32_t kMaxTable = 4096;  // bytes, as RFC 7541 counts
  static constexpr uint32_t kRing = 128;       // entries: 4096 / 32
  static constexpr uint32_t kBuckets = 256;

  struct Hashes {
    uint32_t name, both;
  };
  struct Entry {
    Hashes hashes;
    uint32_t older_name, older_both;  // the next older entries of the same bucket, as numbers
    uint32_t at;
    uint32_t name_size, value_size;
    uint32_t cost() const { return name_size + value_size + 32; }
  };
  // What a connection needs once it has a field to remember.
  struct Table {
    std::array<Entry, kRing> ring;
    std::array<uint32_t, kBuckets> by_name{}, by_both{};  // newest entry's number; may be evicted
    // Hashes of fields that were written once. Only what comes again enters the table, so that
    // request IDs do not push out what repeats.
    std::array<uint32_t, kBuckets> seen{};
    std::array<char, 2 * kMaxTable> text;
  };

  static uint32_t hash(std::string_view text, uint32_t seed);
  static void write_integer(std::string& out, uint8_t first, unsigned prefix, uint32_t n);
  uint32_t find(HeaderField field, uint32_t both) const;
  uint32_t find_name(std::string_view name, uint32_t name_hash) const;
  bool live(uint32_t number) const { return number - oldest() < count_; }
  uint32_t oldest() const { return next_ - count_; }
  Entry& entry(uint32_t number) const { return table_->ring[number % kRing]; }
  void insert(HeaderField field, Hashes hashes);
  void evict(uint32_t most);
  void write_size_updates(std::string& out);

  std::unique_ptr<Table> table_;
  // Entries are numbered from 1 as they come; those in the table are next_ - count_ .. next_ - 1.
  uint32_t next_ = 1, count_ = 0, bytes_ = 0, used_ = 0;
  uint32_t limit_ = kMaxTable;
  uint32_t lowest_ = kNone;  // the smallest limit since the last block; kNone: unchanged
  Hashes last_{};
};

}  // namespace meltemi::codec::hpack
