// A byte stream in both directions, pushed to its user: a TCP connection or one CONNECT stream of an
// HBONE tunnel. What proxies relay and what HTTP runs over.
//
// Rules, the same for every kind:
//  - A new stream is paused and silent until set_events() and resume_read().
//  - Received bytes are the stream's memory, valid until on_data() returns: pass them on or copy
//    them. Returning without pausing means "consumed": the peer's window opens again.
//  - write() takes everything. What cannot go out now is copied and held; then it returns false and
//    the user stops producing until on_writable(). write_room() says how much would go out at once.
//  - No callback comes from inside a call of the user's. on_closed() is the last one, always comes
//    exactly once unless the stream is destroyed before, and never before data that was received in
//    order has been delivered, save for an abort.
//  - What all streams hold together is bounded by a budget: the stream that would exceed it is cut
//    with kLimitExceeded.
//  - Destroying a stream that is not closed aborts it. Streams live on one loop's thread.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"
#include "userspace/rt/loop.h"

namespace meltemi::net {

// A gather of byte pieces. Views only.
struct Slices {
  const iovec* pieces = nullptr;
  size_t count = 0;
  size_t bytes = 0;  // of all pieces together
};

// One piece as Slices; lives as long as the caller's full expression.
class OneSlice {
 public:
  explicit OneSlice(ByteView b) : piece_{const_cast<uint8_t*>(b.data()), b.size()} {}
  operator Slices() const { return {&piece_, 1, piece_.iov_len}; }

 private:
  iovec piece_;
};

// How a stream ended.
struct StreamEnd {
  Reason reason = Reason::kOk;  // kOk: both sides said they were done
  bool by_peer = false;         // the peer ended it (reset, tunnel lost), not this side
  bool reset = false;           // not in order: bytes may be missing
};

class StreamEvents {
 public:
  virtual void on_data(const Slices& data) = 0;
  // The peer sends no more; writing goes on. Comes at most once, after the last on_data().
  virtual void on_read_end() = 0;
  virtual void on_writable() = 0;
  virtual void on_closed(const StreamEnd& end) = 0;

 protected:
  ~StreamEvents() = default;
};

class ByteStream : public rt::Retirable {
 public:
  // REQUIRES: before resume_read(); may be changed later, also from inside a callback.
  void set_events(StreamEvents* events) { events_ = events; }

  virtual rt::Loop& loop() = 0;
  // Takes all bytes. false: more than can go out is held, wait for on_writable(). After
  // shutdown_write() or the end: no effect, true.
  virtual bool write(const Slices& data) = 0;
  bool write(ByteView data) { return write(Slices(OneSlice(data))); }
  // Bytes that would go out (or into the kernel) without being held; a hint, at least 1 while
  // write() would return true.
  virtual size_t write_room() const = 0;
  // Sends what is held, then the end (FIN, END_STREAM). When the read side has ended as well, the
  // stream closes with kOk.
  virtual void shutdown_write() = 0;
  // Sends what is held, then ends both directions in order; bytes that still arrive are dropped.
  // on_closed(kOk) follows, on TCP when the peer has closed too, 2 s later at most. Destroying the
  // stream before may cost the peer our last bytes.
  virtual void close() = 0;
  // Ends both directions now: RST, or RST_STREAM. on_closed() follows with this reason.
  virtual void abort(Reason reason) = 0;
  virtual void pause_read() = 0;
  virtual void resume_read() = 0;
  // The most bytes that one on_data() should carry; a hint.
  virtual void limit_read(size_t bytes) = 0;

  uint64_t bytes_read() const { return bytes_read_; }        // delivered by on_data()
  uint64_t bytes_written() const { return bytes_written_; }  // taken by write()

  // The owner lets go: abort without a word. Called by StreamPtr.
  virtual void detach() = 0;

 protected:
  StreamEvents* events_ = nullptr;
  uint64_t bytes_read_ = 0;
  uint64_t bytes_written_ = 0;
};

// Destroys a stream safely even from inside its own callbacks: its events stop at once, the object
// goes at the end of the loop's turn.
struct RetireStream {
  void operator()(ByteStream* stream) const;
};
using StreamPtr = std::unique_ptr<ByteStream, RetireStream>;

}  // namespace meltemi::net
