#include <fcntl.h>
#include <unistd.h>

#include <thread>

#include "userspace/cli/pods.h"
#include "userspace/cli/processes.h"
#include "userspace/cli/sessions.h"
#include "userspace/cli/targets.h"
#include "userspace/sandbox/pod_worker.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/files.h"

namespace meltemi::cli {
namespace {

using config::Object;
using config::ObjectPtr;

constexpr auto kPollInterval = std::chrono::milliseconds(100);

void write_out(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(1, text.data(), text.size());
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

struct LogFile {
  std::string path;
  std::string uid;  // of the pod; "" for a process of the mesh
  config::ObjectKey key;
  std::string node, container;  // of a pod
  int start = 0;                // which start of the container
  std::string prefix;           // before each line; "" where there is one source only
};

int restarts_of(const Object& pod, const std::string& container) {
  for (const auto& c : pod.as<config::kube::Pod>().status().container_statuses())
    if (c.name() == container) return c.restart_count();
  return 0;
}

Result<LogFile> log_of_pod(const Context& context, const Object& pod, const LogsOptions& options) {
  const std::string container = MELTEMI_TRY(choose_container(pod, options.container));
  const auto& node = pod.as<config::kube::Pod>().spec().node_name();
  int start = restarts_of(pod, container);
  const auto path = [&](int n) {
    return sandbox::container_log(context.layout(), node, pod.meta().uid(), container, n);
  };
  // Between two starts of a container its last output is that of the start before.
  if (options.previous || ::access(path(start).c_str(), F_OK) < 0) --start;
  if (start < 0 || ::access(path(start).c_str(), F_OK) < 0)
    return fail(Reason::kNotFound, Fault::kConfig,
                fmt::format("{}container {} of pod {} has not started{}",
                            options.previous ? "previous " : "", container, pod.name(),
                            options.previous ? " before" : " yet"));
  return LogFile{path(start), pod.meta().uid(), pod.key(), node, container, start, ""};
}

// The mesh's own processes answer to the names that their pods would have, and to those of their
// DaemonSet or Deployment: "ztunnel-node1", "ds/ztunnel" and "ztunnel" for all nodes. Empty: no such
// process.
Result<std::vector<LogFile>> logs_of_mesh(const Context& context, const std::string& name) {
  const std::string workload = name.substr(name.find('/') + 1);  // all of it where there is no slash
  std::vector<LogFile> out;
  for (const MeshProcess& process : MELTEMI_TRY(mesh_processes(context.layout()))) {
    LogFile log{.path = process.log};
    if (process.pod_name() == name) return std::vector<LogFile>{log};
    if (process.name != workload) continue;
    log.prefix = fmt::format("[{}] ", process.pod_name());
    out.push_back(std::move(log));
  }
  if (out.size() == 1) out[0].prefix.clear();
  return out;
}

// "-l app=ztunnel", as the pods of the field's charts are labelled; "" for any other selector.
std::string mesh_workload_of(const Selector& selector) {
  if (selector.size() != 1 || selector[0].op != Requirement::Operator::kIn) return {};
  const std::string& key = selector[0].key;
  return key == "app" || key == "k8s-app" || key == "app.kubernetes.io/name" ? selector[0].values[0]
                                                                            : std::string();
}

Result<std::vector<LogFile>> find_logs(const Context& context, const config::ObjectStore& store,
                                       const LogsOptions& options) {
  std::vector<LogFile> out;
  if (!options.selector.empty()) {
    const auto selector = MELTEMI_TRY(parse_selector(options.selector));
    if (context.ns() == sandbox::kSystemNamespace)
      out = MELTEMI_TRY(logs_of_mesh(context, mesh_workload_of(selector)));
    for (const ObjectPtr& pod : store.list(config::Kind::kPod, context.ns()))
      if (selected(*pod, selector)) out.push_back(MELTEMI_TRY(log_of_pod(context, *pod, options)));
    return out;
  }
  if (context.ns() == sandbox::kSystemNamespace) {
    out = MELTEMI_TRY(logs_of_mesh(context, options.pod));
    if (!out.empty()) return out;
  }
  const ObjectPtr pod = MELTEMI_TRY(find_pod(context, store, options.pod));
  out.push_back(MELTEMI_TRY(log_of_pod(context, *pod, options)));
  return out;
}

bool still_there(const sandbox::Directory& directory, const LogFile& log) {
  if (log.uid.empty()) return true;
  const ObjectPtr pod = directory.store().find(log.key.kind, log.key.ns, log.key.name);
  return pod && pod->meta().uid() == log.uid && !sandbox::is_finished(*pod);
}

// Writes what a log gains, and goes on with the next start of its container.
class Follower {
 public:
  Follower(const Context& context, LogFile log, size_t from)
      : context_(&context),
        log_(std::move(log)),
        fd_(::open(log_.path.c_str(), O_RDONLY | O_CLOEXEC)),
        at_(static_cast<off_t>(from)) {}

  const LogFile& log() const { return log_; }

  void copy() {
    // Looked for before the last read, so that nothing written before the end is missed.
    const std::string next =
        log_.uid.empty() ? ""
                         : sandbox::container_log(context_->layout(), log_.node, log_.uid,
                                                  log_.container, log_.start + 1);
    const bool restarted = !next.empty() && ::access(next.c_str(), F_OK) == 0;
    char buffer[16384];
    ssize_t n;
    while ((n = ::pread(fd_.get(), buffer, sizeof buffer, at_)) > 0) {
      write_out(prefix_lines({buffer, static_cast<size_t>(n)}, log_.prefix, &at_line_start_));
      at_ += n;
    }
    if (!restarted) return;
    ++log_.start;
    fd_.reset(::open(next.c_str(), O_RDONLY | O_CLOEXEC));
    at_ = 0;
  }

 private:
  const Context* context_;  // a pointer, so that followers can be moved
  LogFile log_;
  UniqueFd fd_;
  off_t at_;
  bool at_line_start_ = true;
};

// Until all of their pods have ended.
void follow(const Context& context, std::vector<Follower> followers) {
  sandbox::Directory directory = context.open(sandbox::View::kMerged);
  while (!followers.empty()) {
    directory.refresh();
    std::erase_if(followers, [&](Follower& follower) {
      const bool there = still_there(directory, follower.log());
      follower.copy();
      return !there;
    });
    if (!followers.empty()) std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace

std::string_view tail_lines(std::string_view text, size_t lines) {
  if (lines == 0) return {};
  size_t at = text.size();
  if (at > 0 && text[at - 1] == '\n') --at;
  while (lines > 0 && at > 0) {
    const size_t newline = text.rfind('\n', at - 1);
    if (newline == std::string_view::npos) return text;
    at = newline;
    --lines;
  }
  return text.substr(std::min(at + 1, text.size()));
}

std::string prefix_lines(std::string_view text, std::string_view prefix, bool* at_start) {
  if (prefix.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size() + prefix.size());
  for (const char c : text) {
    if (*at_start) out += prefix;
    out += c;
    *at_start = c == '\n';
  }
  return out;
}

int logs_command(const Context& context, const LogsOptions& options) {
  const auto show = [&]() -> Status {
    const sandbox::Directory directory = context.open(sandbox::View::kMerged);
    const auto logs = MELTEMI_TRY(find_logs(context, directory.store(), options));
    if (logs.empty()) complain("No resources found in {} namespace.\n", context.ns());
    std::vector<Follower> followers;
    for (const LogFile& log : logs) {
      const std::string text = MELTEMI_TRY(sys::read_file(log.path, SIZE_MAX));
      const std::string_view shown = options.tail && *options.tail >= 0
                                         ? tail_lines(text, static_cast<size_t>(*options.tail))
                                         : std::string_view(text);
      bool at_start = true;
      write_out(prefix_lines(shown, log.prefix, &at_start));
      if (options.follow) followers.emplace_back(context, log, text.size());
    }
    follow(context, std::move(followers));
    return {};
  };
  return finish(show());
}

}  // namespace meltemi::cli
