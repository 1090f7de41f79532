#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "userspace/cli/manifests.h"
#include "userspace/cli/objects.h"
#include "userspace/cli/pods.h"
#include "userspace/cli/sessions.h"
#include "userspace/config/validate.h"
#include "userspace/sandbox/pod_worker.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/files.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
namespace kube = config::kube;

constexpr int kPollMilliseconds = 50;

Result<std::pair<std::string, std::string>> key_value(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("\"{}\" is not key=value", text));
  return std::pair(text.substr(0, equals), text.substr(equals + 1));
}

Result<Object> make_pod(const Context& context, const RunOptions& options) {
  Object pod = Object::make(Kind::kPod, context.ns(), options.name);
  (*pod.mutable_meta().mutable_labels())["run"] = options.name;
  for (const std::string& label : options.labels) {
    const auto [key, value] = MELTEMI_TRY(key_value(label));
    (*pod.mutable_meta().mutable_labels())[key] = value;
  }
  kube::PodSpec spec;
  kube::Container* container = spec.add_containers();
  container->set_name(options.name);
  container->set_image(options.image);
  for (const std::string& word : options.command) container->add_command(word);
  for (const std::string& variable : options.environment) {
    const auto [key, value] = MELTEMI_TRY(key_value(variable));
    kube::EnvVar* env = container->add_env();
    env->set_name(key);
    env->set_value(value);
  }
  container->set_stdin(options.stdin_open);
  container->set_stdin_once(options.stdin_open);
  spec.set_service_account_name(options.service_account);
  const bool once = options.attach || options.remove;
  spec.set_restart_policy(!options.restart.empty() ? options.restart : once ? "Never" : "Always");
  if (once) spec.set_termination_grace_period_seconds(1);
  pod.edit<kube::Pod>([&](kube::Pod& body) { *body.mutable_spec() = spec; });
  return pod;
}

Status create(const Context& context, const Object& pod) {
  const config::Problems problems = config::validate(pod);
  if (has_errors(problems)) return fail(to_error(problems));
  Manifests manifests = MELTEMI_TRY(Manifests::open(context));
  if (!manifests.merged().find(Kind::kNamespace, "", pod.ns()))
    return fail(
        Reason::kNotFound, Fault::kConfig,
        fmt::format("namespaces \"{0}\" not found. Create it: meltemi create ns {0}", pod.ns()));
  if (manifests.merged().find(Kind::kPod, pod.ns(), pod.name()))
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("pods \"{0}\" already exists. Delete it: meltemi delete pod {0} -n {1}",
                            pod.name(), pod.ns()));
  MELTEMI_TRY(manifests.apply(pod));
  return {};
}

// The pod as its node reports it, once `met` holds.
Result<ObjectPtr> wait_for(const Context& context, const Object& pod, Duration timeout,
                           const std::function<bool(const Object&)>& met) {
  sandbox::Directory directory = context.open(sandbox::View::kRuntime);
  const MonoTime deadline = MonoClock::now() + timeout;
  while (true) {
    directory.refresh();
    const ObjectPtr now = directory.store().find(Kind::kPod, pod.ns(), pod.name());
    if (now && met(*now)) return now;
    if (MonoClock::now() > deadline) {
      std::string why = now ? now->as<kube::Pod>().status().message() : "";
      if (now)
        for (const auto& c : now->as<kube::Pod>().status().container_statuses())
          if (why.empty()) why = c.state().waiting().message();
      return fail(Reason::kRequestTimeout, Fault::kUpstream,
                  fmt::format("pod {} does not run after {} s{}{}", pod.name(),
                              timeout / std::chrono::seconds(1), why.empty() ? "" : ": ", why));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(kPollMilliseconds));
  }
}

bool has_started(const Object& pod) {
  const auto& status = pod.as<kube::Pod>().status();
  return status.phase() == "Running" || sandbox::is_finished(pod);
}

// Standard input and output of a pod, until it ends.
class Attachment {
 public:
  Attachment(const Context& context, const ObjectPtr& pod, bool with_stdin)
      : pod_(pod), directory_(context.open(sandbox::View::kRuntime)) {
    const auto& spec = pod->as<kube::Pod>().spec();
    const std::string& container = spec.containers(0).name();
    const sandbox::Layout& layout = context.layout();
    log_path_ = sandbox::container_log(layout, spec.node_name(), pod->meta().uid(), container, 0);
    if (!with_stdin) return;
    const std::string fifo =
        sandbox::container_stdin(layout, spec.node_name(), pod->meta().uid(), container);
    input_.reset(::open(fifo.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    // From here on the end of our input is the end of the pod's.
    (void)sys::write_file_atomically(fifo + ".attached", "", 0600);
  }

  // True if the pod has ended by itself, false if the caller interrupted.
  bool run(int interrupt_fd) {
    while (true) {
      const bool ended = has_ended();
      copy_output();
      if (ended) return true;
      pollfd polled[] = {{interrupt_fd, POLLIN, 0},
                         {input_.valid() && pending_.empty() ? 0 : -1, POLLIN, 0}};
      ::poll(polled, 2, kPollMilliseconds);
      if (polled[0].revents != 0) return false;
      if (polled[1].revents != 0) read_input();
      write_input();
    }
  }

  int exit_code() const {
    const ObjectPtr pod = directory_.store().find(Kind::kPod, pod_->ns(), pod_->name());
    if (!pod) return kExitFailure;
    for (const auto& c : pod->as<kube::Pod>().status().container_statuses())
      return c.state().has_terminated() ? c.state().terminated().exit_code() : kExitFailure;
    return kExitFailure;
  }

 private:
  bool has_ended() {
    directory_.refresh();
    const ObjectPtr pod = directory_.store().find(Kind::kPod, pod_->ns(), pod_->name());
    return !pod || pod->meta().uid() != pod_->meta().uid() || sandbox::is_finished(*pod);
  }

  void copy_output() {
    if (!log_.valid()) log_.reset(::open(log_path_.c_str(), O_RDONLY | O_CLOEXEC));
    char buffer[16384];
    ssize_t n;
    while (log_.valid() && (n = ::read(log_.get(), buffer, sizeof buffer)) > 0)
      if (::write(1, buffer, static_cast<size_t>(n)) < 0) return;
  }

  void read_input() {
    char buffer[16384];
    const ssize_t n = ::read(0, buffer, sizeof buffer);
    if (n > 0)
      pending_.assign(buffer, static_cast<size_t>(n));
    else
      input_.reset();
  }

  void write_input() {
    if (!input_.valid() || pending_.empty()) return;
    const ssize_t n = ::write(input_.get(), pending_.data(), pending_.size());
    if (n > 0)
      pending_.erase(0, static_cast<size_t>(n));
    else if (errno != EAGAIN)
      input_.reset();
  }

  ObjectPtr pod_;
  sandbox::Directory directory_;
  std::string log_path_, pending_;
  UniqueFd log_, input_;
};

Result<UniqueFd> interrupt_fd() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int s : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, s);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!fd.valid()) return fail_errno(errno, "signalfd");
  return fd;
}

Result<int> run_attached(const Context& context, const Object& pod, const RunOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);
  const UniqueFd interrupted = MELTEMI_TRY(interrupt_fd());
  const ObjectPtr started = MELTEMI_TRY(wait_for(context, pod, options.timeout, has_started));
  Attachment attachment(context, started, options.stdin_open);
  return attachment.run(interrupted.get()) ? attachment.exit_code() : 130;
}

}  // namespace

int run_command(const Context& context, const RunOptions& options) {
  if (options.command.empty()) {
    complain("error: a command is needed, as images are not pulled: run {} -- COMMAND\n",
             options.name);
    return kExitUsage;
  }
  const auto pod = make_pod(context, options);
  if (!pod) return report(pod.error());
  if (const Status created = create(context, *pod); !created) return report(created.error());
  if (!options.attach) {
    print("pod/{} created\n", options.name);
    return kExitOk;
  }
  const auto code = run_attached(context, *pod, options);
  if (options.remove) {
    DeleteOptions deletion;
    deletion.words = {"pod", options.name};
    deletion.grace_seconds = 1;
    // kubectl says that it deletes; on stderr here, so that the output is the pod's alone.
    const int saved = ::dup(1);
    ::dup2(2, 1);
    const int deleted = delete_command(context, deletion);
    ::fflush(stdout);
    ::dup2(saved, 1);
    ::close(saved);
    if (code && deleted != kExitOk) return deleted;
  }
  return code ? *code : report(code.error());
}

}  // namespace meltemi::cli
