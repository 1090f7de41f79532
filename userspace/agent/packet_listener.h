// A listening socket of packets on the loop. A process that is out of descriptors cannot accept, and epoll
// would tell of the same caller for ever: it rests then, and the caller waits in the queue.
#pragma once

#include <functional>
#include <string>

#include "userspace/agent/loop.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::agent {

inline constexpr Duration kAcceptRest = std::chrono::milliseconds(200);

class PacketListener {
 public:
  using Accepted = std::function<void(UniqueFd)>;
  PacketListener(Loop& loop, Accepted accepted) : loop_(loop), accepted_(std::move(accepted)) {}
  ~PacketListener();
  PacketListener(const PacketListener&) = delete;
  PacketListener& operator=(const PacketListener&) = delete;

  // Mode 0600, in place of whatever lies there.
  Status listen(const std::string& path);

 private:
  Status watch();
  void accept();

  Loop& loop_;
  Accepted accepted_;
  std::string path_;
  UniqueFd listener_;
  Loop::TimerId rest_ = 0;
  bool troubled_ = false;  // logged
};

}  // namespace meltemi::agent
