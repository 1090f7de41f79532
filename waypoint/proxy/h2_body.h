// Bytes of a body that wait for their HTTP/2 stream to be allowed to send them, and the sink that
// gathers a connection's frames into one write. Memory is kept for the next message unless it grew
// large. The bound is the caller's: put() says how much is held.
#pragma once

#include <string>

#include "userspace/codec/h2.h"

namespace meltemi::waypoint {

class BodyBuffer {
 public:
  static constexpr size_t kKeep = 16 * 1024;  // bytes of capacity that an empty buffer may keep

  size_t size() const { return data_.size() - read_; }
  void put(ByteView bytes) {
    if (read_ >= kKeep && read_ * 2 >= data_.size()) {  // a stream that never runs dry
      data_.erase(0, read_);
      read_ = 0;
    }
    data_.append(as_text(bytes));
  }
  ByteView front(size_t n) const { return as_bytes(std::string_view(data_).substr(read_, n)); }
  void drop(size_t n) {
    read_ += n;
    if (read_ == data_.size()) clear();
  }
  void clear() {
    read_ = 0;
    data_.clear();
    if (data_.capacity() > kKeep) data_.shrink_to_fit();
  }

 private:
  std::string data_;
  size_t read_ = 0;
};

// Frames of one flush, gathered in a buffer that all connections of a thread share.
class FlushSink final : public codec::H2Sink {
 public:
  static constexpr size_t kFlush = 256 * 1024;  // bytes of one write
  FlushSink() : out_(buffer()) { out_.clear(); }
  void append(ByteView piece) override { out_.append(as_text(piece)); }
  ByteView bytes() const { return as_bytes(out_); }
  bool empty() const { return out_.empty(); }
  void clear() { out_.clear(); }

 private:
  static std::string& buffer() {
    thread_local std::string shared = [] {
      std::string s;
      s.reserve(kFlush + 32 * 1024);
      return s;
    }();
    return shared;
  }
  std::string& out_;
};

}  // namespace meltemi::waypoint
