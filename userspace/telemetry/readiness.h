// Whether a process can do its work, asked at every probe of /healthz/ready: start-up tasks that are
// still pending, and checks that the process registered ("my ports answer", "what the control plane
// sent was taken"). Notes say what is worth knowing but keeps nobody from work (configuration that is
// old). It must never remember an answer: a probe hears what is true now.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/fd.h"

namespace meltemi::telemetry {

class Readiness {
 public:
  // "" while all is well, else what is wrong, in a few words. Called on the thread of the pages, so
  // it must not block nor take a lock that is held long; what it reaches must outlive the pages.
  using Question = std::function<std::string()>;

  // A task of the start; any thread. A task may become pending again (a certificate that expired).
  void pending(const std::string& task);
  void done(const std::string& task);
  // Unready for as long as `ask` returns text: "not ready, NAME: TEXT". A second one of the same
  // name takes the place of the first.
  void check(std::string name, Question ask);
  // Said beside the verdict, which it does not change: "NAME: TEXT".
  void note(std::string name, Question ask);

  struct Verdict {
    bool ready = true;
    std::string text;  // "ready\n" or one line a reason, then the notes; ends in '\n'
  };
  Verdict verdict() const;
  bool ready() const { return verdict().ready; }

 private:
  mutable std::mutex mutex_;
  std::set<std::string> pending_;
  std::map<std::string, Question> checks_, notes_;
};

// Whether somebody takes the connections of a listening socket. The kernel says how many stand in its
// queue: a port whose queue stands while the count of accepted connections does not move, or is
// full, does not answer, whatever the process believes. No connection is made to find out.
class AcceptQueue {
 public:
  // A queue that nobody took from for this long: far above any scheduling delay, far below the
  // patience of a client.
  static constexpr Duration kStands = std::chrono::seconds(3);

  // `listening`: kept as a duplicate. `accepted` counts up with each connection taken; any thread.
  AcceptQueue(int listening, std::function<uint64_t()> accepted);
  // A Readiness::Question.
  std::string ask(MonoTime now);

 private:
  std::mutex mutex_;
  UniqueFd fd_;
  std::function<uint64_t()> accepted_;
  uint64_t last_accepted_ = 0;
  MonoTime moved_{};  // when the queue was last seen empty or moving
};

}  // namespace meltemi::telemetry
