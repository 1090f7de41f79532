// The ztunnel's end of key keeping: its certificates lie in sealed memory files of which the agent has
// descriptors too, so that they outlive a kill -9 of this process, and those of this process outlive a
// restart of the agent (codec/key_packet.h). A thread of its own. No agent, or one of Istio: nothing
// is kept, and a restart asks the control plane. Must never let a key touch a disk or a log.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/pki/certificate.h"

namespace meltemi::ztunnel {

// How long a start waits for what the agent kept: it answers from memory, on the same machine.
inline constexpr Duration kKeptKeysPatience = std::chrono::seconds(2);

class KeyClient {
 public:
  // `restored` is called on the client's thread for each certificate that the agent kept and that
  // still holds.
  using Restored = std::function<void(const pki::WorkloadCertificatePtr&)>;
  KeyClient(std::string path, Restored restored);
  ~KeyClient();  // stops

  // Returns when the agent has given back what it kept, or has none to give, or after the patience.
  void start();
  void stop();  // idempotent; joins
  // Any thread.
  void keep(const pki::WorkloadCertificatePtr& certificate);
  void forget(const std::string& identity);

 private:
  struct Key {
    std::shared_ptr<UniqueFd> file;
    WallTime not_after{};
    uint64_t sent_in = 0;  // session that has told the agent, or was told by it
  };
  void run();
  Status session(int socket);
  Status receive(int socket);
  void restore(const std::string& identity, WallTime not_after, UniqueFd file);
  Status send_news(int socket);
  void answered();
  bool sleep(Duration duration);  // false: stopping
  void wake() const;

  const std::string path_;
  const Restored restored_;
  UniqueFd wake_;  // eventfd: something to send, or the end
  std::thread thread_;
  mutable std::mutex mutex_;
  std::condition_variable first_answer_;
  std::map<std::string, Key> keys_;  // by identity
  std::set<std::string> forgotten_;  // to tell
  uint64_t session_ = 0;
  bool stopping_ = false, answered_ = false;
};

}  // namespace meltemi::ztunnel
