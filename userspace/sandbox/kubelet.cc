#include "userspace/sandbox/kubelet.h"

#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <memory>

#include "userspace/base/log.h"
#include "userspace/sandbox/pod_worker.h"
#include "userspace/sandbox/services.h"
#include "userspace/sandbox/watch.h"
#include "userspace/sys/files.h"

namespace meltemi::sandbox {
namespace {

using config::Object;

const log::Scope scope("kubelet");
constexpr int kRescanMilliseconds = 2000;
constexpr int kReapMilliseconds = 100;  // while a worker is about to be gone

class Kubelet {
 public:
  Kubelet(Layout layout, int index, std::string bin_dir, TokenIssuer tokens)
      : node_(std::move(layout), index, std::move(bin_dir), std::move(tokens)) {}

  // What an earlier kubelet of this node has left: its pods' processes end and start anew, because
  // only the parent of a process learns how it ends.
  void clear_leftovers() {
    clear_cgroup(node_.layout.node_cgroup(node_.node) + "/pods");
    for (const auto& [uid, path] : files()) {
      const Status removed = remove_pod_network(node_.layout, node_.index, uid);
      if (!removed) scope.warn("{}: {}", uid, removed.error().to_string());
    }
  }

  void scan() {
    for (const auto& [uid, path] : files()) {
      std::error_code error;
      const auto modified = std::filesystem::last_write_time(path, error);
      if (error) continue;
      Known& known = pods_[uid];
      if (known.worker && known.modified == modified) continue;
      const auto pod = read(path);
      if (!pod) continue;
      known.modified = modified;
      if (known.worker)
        known.worker->update(*pod);
      else
        known.worker = std::make_unique<PodWorker>(&node_, *pod);
    }
  }

  // True if some pods are on their way out.
  bool reap() {
    bool leaving = false;
    for (auto it = pods_.begin(); it != pods_.end();) {
      if (it->second.worker && it->second.worker->gone()) {
        it = pods_.erase(it);
        continue;
      }
      std::error_code error;
      leaving = leaving || !std::filesystem::exists(path_of(it->first), error);
      ++it;
    }
    return leaving;
  }

 private:
  struct Known {
    std::filesystem::file_time_type modified;
    std::unique_ptr<PodWorker> worker;
  };

  std::string path_of(const std::string& uid) const {
    return node_.layout.node_pods_dir(node_.node) + "/" + uid + ".yaml";
  }

  std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> out;
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(node_.layout.node_pods_dir(node_.node), error)) {
      const std::string name = entry.path().filename();
      if (!name.starts_with('.') && name.ends_with(".yaml"))
        out[name.substr(0, name.size() - 5)] = entry.path();
    }
    return out;
  }

  static std::optional<Object> read(const std::string& path) {
    const auto bytes = sys::read_file(path);
    if (!bytes) return std::nullopt;
    const auto result = config::read_objects(*bytes, path, runtime_read_options());
    if (result.objects.size() == 1 && result.objects[0].kind() == config::Kind::kPod)
      return result.objects[0];
    scope.error("{} holds no pod", path);
    return std::nullopt;
  }

  NodeContext node_;
  std::map<std::string, Known> pods_;
};

}  // namespace

Status run_kubelet(const KubeletOptions& options) {
  MELTEMI_TRY(check_sandbox_name(options.sandbox));
  const Layout layout(options.sandbox);
  const UniqueFd stop = MELTEMI_TRY(termination_fd());
  TokenIssuer tokens = MELTEMI_TRY(TokenIssuer::load(layout));
  Watch watch = MELTEMI_TRY(Watch::create());
  MELTEMI_TRY(watch.add(layout.node_pods_dir(node_name(options.node_index))));

  // Never destroyed: it would wait for its pods.
  auto* kubelet = new Kubelet(layout, options.node_index, options.bin_dir, std::move(tokens));
  kubelet->clear_leftovers();
  bool leaving = false;
  while (true) {
    kubelet->scan();
    leaving = kubelet->reap();
    pollfd polled[] = {{stop.get(), POLLIN, 0}, {watch.fd(), POLLIN, 0}};
    ::poll(polled, 2, leaving ? kReapMilliseconds : kRescanMilliseconds);
    if (polled[0].revents != 0) break;
    watch.drain();
  }
  log::flush();
  ::_exit(0);
}

}  // namespace meltemi::sandbox
