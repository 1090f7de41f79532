// Waits until one of some directories changes (inotify). A hint, not a truth: whoever is woken
// reads the directories again, and does so now and then without being woken.
#pragma once

#include <string>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sandbox {

class Watch {
 public:
  static Result<Watch> create();
  // Files that appear, vanish or are replaced by rename.
  Status add(const std::string& directory);
  int fd() const { return fd_.get(); }  // readable when something happened
  void drain();

 private:
  explicit Watch(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// SIGTERM and SIGINT as a readable descriptor; blocks their default action in the calling thread
// and all that it starts from here on.
Result<UniqueFd> termination_fd();

}  // namespace meltemi::sandbox
