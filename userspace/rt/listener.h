// Accepts connections of one listening socket (multishot) on one loop. It shares the socket with
// whoever else holds a descriptor of it: a restarted process goes on accepting.
#pragma once

#include <functional>

#include "userspace/rt/loop.h"

namespace meltemi::rt {

class Listener final : private Completion {
 public:
  // Gets each accepted socket: close-on-exec, TCP_NODELAY set.
  using OnAccept = std::function<void(UniqueFd)>;
  Listener(Loop& loop, UniqueFd fd, OnAccept on_accept);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  int fd() const { return fd_.get(); }
  // Accepts no more; the listening socket stays open until destruction.
  void stop();
  // Accept errors so far (EMFILE and the like): accepting goes on after a pause.
  uint64_t errors() const { return errors_; }

 private:
  void on_complete(int32_t res, bool more) override;
  void arm();

  Loop& loop_;
  UniqueFd fd_;
  OnAccept on_accept_;
  OpId op_;
  FnTimer retry_;
  uint64_t errors_ = 0;
};

}  // namespace meltemi::rt
