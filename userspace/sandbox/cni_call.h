// Calls the real CNI plugin of the mesh (CNI spec 1.0), chained behind the sandbox's own network:
// the result that it gets as prevResult is what the sandbox has made. Must never touch the network
// itself.
#pragma once

#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/sandbox/topology.h"

namespace meltemi::sandbox {

struct CniPod {
  std::string ns, name, uid;
  std::string netns_path;
  PodNetwork network;
};

class CniPlugin {
 public:
  // `binary`: meltemi-cni. `agent_socket` goes into its configuration, `log_file` too.
  CniPlugin(std::string binary, std::string agent_socket, std::string log_file);

  // Blocks until the plugin has answered, at most `deadline`. The error is the plugin's own
  // message.
  Status add(const CniPod& pod, Duration deadline) const;
  Status del(const CniPod& pod, Duration deadline) const;

  // Standard input of the plugin. Public for tests.
  std::string configuration(const CniPod& pod) const;

 private:
  Status call(std::string_view command, const CniPod& pod, Duration deadline) const;

  std::string binary_, agent_socket_, log_file_;
};

}  // namespace meltemi::sandbox
