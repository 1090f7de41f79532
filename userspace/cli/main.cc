// meltemi: the command line. Parses words into options and calls the commands; knows kubectl's and
// istioctl's habits, and nothing of what the commands do.
#include <signal.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <functional>

#include "userspace/base/config.h"
#include "userspace/base/log.h"
#include "userspace/cli/context.h"
#include "userspace/cli/foreign_words.h"
#include "userspace/cli/get.h"
#include "userspace/cli/objects.h"
#include "userspace/cli/rollout.h"
#include "userspace/cli/sandboxes.h"
#include "userspace/cli/sessions.h"
#include "userspace/cli/waypoint.h"
#include "userspace/config/pod_fields.h"
#include "userspace/sandbox/supervisor.h"

namespace meltemi::cli {
namespace {

// A duration in Go's syntax as an option.
CLI::Option* add_duration(CLI::App* app, const std::string& flag, Duration* target,
                          const std::string& doc) {
  return app
      ->add_option_function<std::string>(
          flag,
          [target, flag](const std::string& text) {
            const auto value = parse_duration(text);
            if (!value)
              throw CLI::ValidationError(flag, "\"" + text + "\" is no duration such as 30s or 2m");
            *target = *value;
          },
          doc)
      ->default_str(format_duration(*target));
}

class CommandLine {
 public:
  CommandLine()
      : app_("Meltemi: an ambient service mesh, and a sandbox that runs it on one machine.",
             "meltemi") {
    app_.set_version_flag("--version", std::string("meltemi ") + MELTEMI_VERSION);
    app_.require_subcommand(1);
    app_.fallthrough();
    app_.add_option("--sandbox", sandbox_, "name of the sandbox to talk to")
        ->envname("MELTEMI_SANDBOX");
    app_.add_option("-n,--namespace", ns_, "namespace")->default_str("default");
    app_.footer(
        "Every command takes -n NAMESPACE and --sandbox NAME (or MELTEMI_SANDBOX).\n"
        "Exit codes: 0 done, 1 failed, 64 wrong usage, 65 bad input (nothing was changed).\n"
        "Help of one command: meltemi COMMAND --help.");
    add_sandbox();
    add_objects();
    add_get();
    add_sessions();
    add_waypoint();
    add_other();
  }

  int run(int argc, char** argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::CallForHelp& help) {
      return app_.exit(help);
    } catch (const CLI::CallForAllHelp& help) {
      return app_.exit(help);
    } catch (const CLI::CallForVersion& version) {
      return app_.exit(version);
    } catch (const CLI::ParseError& error) {
      return complain_of(error, {argv + 1, argv + argc});
    }
    if (const Status good = sandbox::check_sandbox_name(sandbox_); !good)
      return report(good.error());
    return command_();
  }

  // What stands after "--" in exec and run; taken out before parsing, so that its dashes are its
  // own.
  std::vector<std::string> rest;

 private:
  using Command = std::function<int(const Context&)>;

  // What the words are to the command that they got to: CLI11 itself only says that it wanted one.
  int complain_of(const CLI::ParseError& error, const std::vector<std::string>& words) const {
    const CLI::App* app = &app_;
    std::string path = "meltemi";
    for (size_t i = 0; i < words.size(); ++i) {
      if (words[i].starts_with('-')) {
        const bool separate = words[i] == "-n" || words[i] == "--namespace" || words[i] == "--sandbox";
        i += separate;
        continue;
      }
      const auto all = app->get_subcommands(nullptr);
      if (all.empty()) break;
      const auto next = std::find_if(all.begin(), all.end(), [&](const CLI::App* each) {
        return each->check_name(words[i]);
      });
      if (next == all.end()) return unknown_command(*app, path, words[i]);
      app = *next;
      path += " " + app->get_name();
    }
    complain("error: {}\nSee: {} --help\n", error.what(), path);
    return kExitUsage;
  }

  static int unknown_command(const CLI::App& app, const std::string& path, const std::string& word) {
    std::vector<std::string> names;
    for (const CLI::App* each : app.get_subcommands(nullptr)) names.push_back(each->get_name());
    const std::vector<std::string_view> views(names.begin(), names.end());
    const std::string_view near = config::did_you_mean(word, views);
    complain("error: unknown command \"{}\" for \"{}\"\n", word, path);
    if (const std::string_view advice = advice_for(word); !advice.empty() && !app.get_parent()) {
      complain("{}.\n", advice);
      return kExitUsage;
    }
    if (!near.empty()) complain("Did you mean: {} {}\n", path, near);
    complain("Known: {}\nSee: {} --help\n", fmt::join(names, ", "), path);
    return kExitUsage;
  }

  CLI::App* add(CLI::App* parent, const std::string& name, const std::string& doc) {
    return parent->add_subcommand(name, doc)->fallthrough();
  }
  // A command that needs a running sandbox.
  void bind(CLI::App* app, Command command) {
    app->callback([this, app, command] {
      if (!app->get_subcommands().empty()) return;  // theirs is meant
      command_ = [this, command] {
        const Context context(sandbox_, ns_);
        if (const Status up = sandbox::require_running(context.layout()); !up)
          return report(up.error());
        return command(context);
      };
    });
  }
  void bind_free(CLI::App* app, std::function<int()> command) {
    app->callback([this, command] { command_ = command; });
  }

  void add_sandbox() {
    CLI::App* group = add(&app_, "sandbox", "run a whole mesh on this machine");
    group->require_subcommand(1);
    CLI::App* up = add(group, "up", "start a sandbox and wait until its mesh is ready");
    up->add_option("--nodes", nodes_, "number of nodes")->default_val(1);
    up->add_option("--name", sandbox_, "name of the sandbox");
    bind_free(up, [this] { return sandbox_up_command(sandbox_, nodes_); });
    CLI::App* down = add(group, "down", "stop a sandbox and remove all that it made");
    down->add_option("--name", sandbox_, "name of the sandbox");
    down->add_flag("--all", all_, "every sandbox of this machine");
    bind_free(down, [this] { return sandbox_down_command(sandbox_, all_); });
    CLI::App* status = add(group, "status", "nodes and processes; exit code 1 if one is down");
    status->add_option("--name", sandbox_, "name of the sandbox");
    bind_free(status, [this] { return sandbox_status_command(sandbox_); });
    bind_free(add(group, "list", "all sandboxes of this machine"),
              [] { return sandbox_list_command(); });
  }

  void add_objects() {
    CLI::App* apply =
        add(&app_, "apply", "create or change objects; all of them, or none if one is bad");
    apply->add_option("-f,--filename", apply_.files, "file or folder; - is standard input");
    apply->add_option("-k,--kustomize", apply_.kustomize, "not built in; tells how it is done");
    apply->add_option("--dry-run", apply_.dry_run, "client or server: check and tell, change nothing")
        ->expected(0, 1)
        ->default_str("client")
        ->check(CLI::IsMember({"none", "client", "server"}));
    bind(apply, [this](const Context& c) { return apply_command(c, apply_); });

    CLI::App* create =
        add(&app_, "create", "create objects of files, a namespace or a service account");
    create->require_subcommand(0, 1);
    create->add_option("-f,--filename", apply_.files, "file or folder; - is standard input");
    create->add_option("-k,--kustomize", apply_.kustomize, "not built in; tells how it is done");
    bind(create, [this](const Context& c) {
      if (apply_.files.empty() && apply_.kustomize.empty()) {
        complain("error: say what to create: -f FILE, namespace NAME or serviceaccount NAME\n");
        return static_cast<int>(kExitUsage);
      }
      apply_.only_new = true;
      return apply_command(c, apply_);
    });
    CLI::App* ns = add(create, "namespace", "create a namespace");
    ns->alias("ns");
    ns->add_option("name", name_, "its name")->required();
    bind(ns, [this](const Context& c) { return create_namespace_command(c, name_); });
    CLI::App* account = add(create, "serviceaccount", "create a service account");
    account->alias("sa");
    account->add_option("name", name_, "its name")->required();
    bind(account, [this](const Context& c) { return create_service_account_command(c, name_); });

    CLI::App* del = add(&app_, "delete", "delete objects by file, or by kind and name");
    del->add_option("-f,--filename", delete_.files, "file or folder; - is standard input");
    del->add_option("what", delete_.words, "KIND NAME... or KIND/NAME");
    del->add_option("-l,--selector", delete_.selector, "label selector");
    del->add_flag("--all", delete_.all, "all of the kind in the namespace");
    del->add_flag("--ignore-not-found", delete_.ignore_not_found, "no error if it is not there");
    del->add_option("--grace-period", delete_.grace_seconds, "seconds until pods are killed");
    del->add_flag_callback("--now", [this] { delete_.grace_seconds = 1; }, "--grace-period 1");
    del->add_flag_callback("--force", [this] { delete_.grace_seconds = 0; }, "--grace-period 0");
    del->add_flag("--wait,!--no-wait", delete_.wait, "wait until pods are gone (default)");
    bind(del, [this](const Context& c) { return delete_command(c, delete_); });

    add_label("label", "set or remove labels: key=value, key-", false);
    add_label("annotate", "set or remove annotations: key=value, key-", true);

    CLI::App* scale = add(&app_, "scale", "set the number of replicas");
    scale->add_option("what", workloads_, "deployment/NAME or deployment NAME")->required();
    scale->add_option("--replicas", replicas_, "how many")->required()->check(CLI::Range(0, 250));
    bind(scale, [this](const Context& c) { return scale_command(c, workloads_, replicas_); });

    CLI::App* rollout = add(&app_, "rollout", "restart a Deployment, or wait for its rollout");
    rollout->require_subcommand(1);
    CLI::App* restart = add(rollout, "restart", "replace all pods, new ones first");
    restart->add_option("what", workloads_, "deployment/NAME or deployment NAME")->required();
    bind(restart, [this](const Context& c) { return rollout_restart_command(c, workloads_); });
    CLI::App* status = add(rollout, "status", "wait until all pods are new and ready");
    status->add_option("what", workloads_, "deployment/NAME or deployment NAME")->required();
    add_duration(status, "--timeout", &rollout_timeout_, "how long to wait");
    bind(status, [this](const Context& c) {
      return rollout_status_command(c, workloads_, rollout_timeout_);
    });

    CLI::App* wait = add(&app_, "wait", "wait for a condition of objects");
    wait->add_option("what", wait_.words, "KIND NAME... or KIND/NAME")->required();
    wait->add_option("--for", wait_.condition, "condition=NAME[=VALUE], create or delete")->required();
    wait->add_option("-l,--selector", wait_.selector, "label selector");
    wait->add_flag("--all", wait_.all, "all of the kind");
    add_duration(wait, "--timeout", &wait_.timeout, "how long to wait");
    bind(wait, [this](const Context& c) { return wait_command(c, wait_); });
  }

  void add_label(const std::string& verb, const std::string& doc, bool annotations) {
    CLI::App* label = add(&app_, verb, doc);
    label->add_option("what", label_.words, "KIND NAME key=value... key-...")->required();
    label->add_flag("--overwrite", label_.overwrite, "change values that are there");
    bind(label, [this, annotations](const Context& c) {
      label_.annotations = annotations;
      return label_command(c, label_);
    });
  }

  void add_get() {
    CLI::App* get =
        add(&app_, "get", "show objects, \"nodes\", or the mesh's own processes (\"mesh\")");
    get->add_option("what", get_.words, "KIND[,KIND] [NAME...]")->required();
    get->add_option("-o,--output", get_.output, "wide, yaml, json, name or jsonpath=TEMPLATE");
    get->add_flag("-A,--all-namespaces", get_.all_namespaces, "of all namespaces");
    get->add_option("-l,--selector", get_.selector, "label selector");
    get->add_option("-L,--label-columns", get_.label_columns, "labels to show as columns")
        ->delimiter(',')
        ->expected(1);
    get->add_flag("--show-labels", get_.show_labels, "show all labels");
    get->add_flag("--no-headers", get_.no_headers, "rows only");
    get->add_flag("-w,--watch", get_.watch, "go on and tell changes, until interrupted");
    bind(get, [this](const Context& c) { return get_command(c, get_); });
    CLI::App* describe =
        add(&app_, "describe", "what there is to know of objects: state, conditions, mesh, findings");
    describe->add_option("what", describe_.words, "KIND [NAME...] or KIND/NAME...")->required();
    describe->add_option("-l,--selector", describe_.selector, "label selector");
    bind(describe, [this](const Context& c) { return describe_command(c, describe_); });
    bind_free(add(&app_, "api-resources", "the kinds that Meltemi knows"),
              [] { return api_resources_command(); });
  }

  void add_sessions() {
    CLI::App* exec = add(&app_, "exec", "run a command in a pod: exec POD -- COMMAND");
    exec->add_option("pod", exec_.pod, "NAME, deploy/NAME or svc/NAME")->required();
    exec->add_option("command", words_, "to be written behind --");
    exec->add_option("-c,--container", exec_.container, "container; the first if not given");
    exec->add_flag("-i,--stdin", exec_.stdin_open, "pass standard input");
    exec->add_flag("-t,--tty", exec_.tty, "accepted; the command shares this terminal anyway");
    bind(exec, [this](const Context& c) {
      if (!words_.empty()) {
        complain("error: write the command behind --: exec {} -- {}\n", exec_.pod,
                 fmt::join(words_, " "));
        return static_cast<int>(kExitUsage);
      }
      exec_.command = rest;
      return exec_command(c, exec_);
    });

    CLI::App* logs =
        add(&app_, "logs", "output of a pod, or of a process of the mesh (-n istio-system)");
    logs->add_option("pod", logs_.pod, "NAME, deploy/NAME or job/NAME");
    logs->add_option("-c,--container", logs_.container, "container; the first if not given");
    logs->add_option("-l,--selector", logs_.selector, "label selector, instead of a name");
    logs->add_flag("-f,--follow", logs_.follow, "go on until the pod ends");
    logs->add_flag("-p,--previous", logs_.previous, "of the start before the last");
    logs->add_option("--tail", logs_.tail, "only the last lines");
    bind(logs, [this](const Context& c) {
      if (logs_.pod.empty() && logs_.selector.empty()) {
        complain("error: name a pod, or give -l SELECTOR\n");
        return static_cast<int>(kExitUsage);
      }
      return logs_command(c, logs_);
    });

    CLI::App* run =
        add(&app_, "run", "run a command in a pod of its own: run -i --rm NAME -- COMMAND");
    run->add_option("name", run_.name, "name of the pod")->required();
    run->add_option("--image", run_.image, "kept in the manifest; not pulled");
    run->add_option("--serviceaccount", run_.service_account, "service account")
        ->default_str("default");
    run->add_option("-l,--labels", run_.labels, "key=value,...")->delimiter(',');
    run->add_option("--env", run_.environment, "NAME=value");
    run->add_option("--restart", run_.restart, "Always, OnFailure or Never");
    run->add_flag("-i,--stdin", run_.stdin_open, "pass standard input and show the output");
    run->add_flag("-t,--tty", exec_.tty, "accepted without effect");
    run->add_flag("--command", exec_.tty, "accepted: what stands behind -- is always the command");
    run->add_flag("--attach", run_.attach, "show the output");
    run->add_flag("--rm", run_.remove, "delete the pod when the command has ended");
    run->add_flag("-q,--quiet", run_.quiet, "no messages");
    bind(run, [this](const Context& c) {
      run_.command = rest;
      run_.attach = run_.attach || run_.stdin_open || run_.remove;
      return run_command(c, run_);
    });

    CLI::App* forward = add(&app_, "port-forward",
                            "reach a pod's port from this machine: port-forward svc/NAME 8080:80");
    forward->add_option("target", forward_.target, "svc/NAME, deploy/NAME or pod NAME")->required();
    forward->add_option("ports", forward_.ports, "LOCAL:REMOTE, PORT or :REMOTE")->required();
    forward->add_option("--address", forward_.address, "address to listen on")
        ->capture_default_str();
    bind(forward, [this](const Context& c) { return port_forward_command(c, forward_); });
  }

  void add_waypoint() {
    CLI::App* group = add(&app_, "waypoint", "L7 proxies of a namespace or a service account");
    group->require_subcommand(1);
    group->alias("wp");
    CLI::App* apply = add(group, "apply", "deploy a waypoint");
    CLI::App* generate = add(group, "generate", "print the Gateway that apply would write");
    for (CLI::App* app : {apply, generate}) {
      app->add_option("--name", waypoint_.name, "name of the waypoint")->capture_default_str();
      app->add_option("--for", waypoint_.traffic, "service, workload, all or none");
      app->add_option("--for-service-account", waypoint_.service_account,
                      "serve only what runs as this service account");
    }
    apply->add_flag("--enroll-namespace", waypoint_.enroll_namespace, "make the namespace use it, once it is programmed");
    apply->add_flag("--overwrite", waypoint_.overwrite,
                    "also where the namespace uses another one");
    apply->add_flag("-w,--wait", waypoint_.wait, "wait until it is programmed");
    add_duration(apply, "--waypoint-timeout", &waypoint_.timeout, "how long to wait");
    bind(apply, [this](const Context& c) { return waypoint_apply(c, waypoint_); });
    bind_free(generate, [this] { return waypoint_generate(Context(sandbox_, ns_), waypoint_); });
    CLI::App* list = add(group, "list", "the waypoints of a namespace");
    list->add_flag("-A,--all-namespaces", waypoint_.all_namespaces, "of all namespaces");
    bind(list, [this](const Context& c) { return waypoint_list(c, waypoint_); });
    CLI::App* status = add(group, "status", "whether waypoints are programmed, and why not");
    status->add_option("name", waypoint_.names, "name of the waypoint");
    status->add_flag("-A,--all-namespaces", waypoint_.all_namespaces, "of all namespaces");
    bind(status, [this](const Context& c) { return waypoint_status(c, waypoint_); });
    CLI::App* del = add(group, "delete", "delete waypoints");
    del->add_option("names", waypoint_.names, "names");
    del->add_flag("--all", waypoint_.all, "all waypoints of the namespace");
    bind(del, [this](const Context& c) { return waypoint_delete(c, waypoint_); });
  }

  void add_other() {
    bind_free(add(&app_, "pod-fields",
                  "the fields of a Pod that the sandbox honours, accepts or refuses (Markdown)"),
              [] {
                print("{}", config::pod_fields_markdown());
                return static_cast<int>(kExitOk);
              });
    bind_free(add(&app_, "version", "the version"), [] {
      print("meltemi {}\n", MELTEMI_VERSION);
      return static_cast<int>(kExitOk);
    });
  }

  CLI::App app_;
  std::string sandbox_{sandbox::kDefaultName}, ns_ = "default", name_;
  int nodes_ = 1, replicas_ = 1;
  bool all_ = false;
  Duration rollout_timeout_ = std::chrono::minutes(2);
  ApplyOptions apply_;
  DeleteOptions delete_;
  LabelOptions label_;
  WaitOptions wait_;
  GetOptions get_;
  DescribeOptions describe_;
  std::vector<std::string> workloads_, words_;
  ExecOptions exec_;
  LogsOptions logs_;
  RunOptions run_;
  PortForwardOptions forward_;
  WaypointOptions waypoint_;
  std::function<int()> command_;
};

// "meltemi sandbox get ..." is "meltemi get ...": every verb acts on a sandbox.
bool is_sandbox_verb(std::string_view word) {
  return word == "up" || word == "down" || word == "status" || word == "list" ||
         word.starts_with('-');
}

// kubectl's "-o=yaml" is "-oyaml" to CLI11, which would take the "=" for a part of the value.
void drop_equals_signs(std::vector<std::string>* words) {
  for (std::string& word : *words)
    if (word.size() > 2 && word[0] == '-' && word[1] != '-' && word[2] == '=') word.erase(2, 1);
}

// The log writes on a thread of its own. It must not be the one that a signal finds: commands wait
// for theirs on the main thread.
void keep_signals_from_other_threads(const std::function<void()>& start_threads) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  start_threads();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

int run_main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  const bool internal = !words.empty() && words[0] == "internal";
  // A command's own exit codes and messages only: no log lines between them.
  Status logging;
  keep_signals_from_other_threads(
      [&] { logging = log::init(internal ? "info" : "error", log::Format::kPlain); });
  if (!logging) return report(logging.error());
  if (internal) return internal_command({words.begin() + 1, words.end()});
  CommandLine line;
  if (const auto dashes = std::find(words.begin(), words.end(), "--"); dashes != words.end()) {
    line.rest.assign(dashes + 1, words.end());
    words.erase(dashes, words.end());
  }
  drop_equals_signs(&words);
  if (words.size() >= 2 && words[0] == "sandbox" && !is_sandbox_verb(words[1]))
    words.erase(words.begin());
  std::vector<char*> rewritten{argv[0]};
  for (std::string& word : words) rewritten.push_back(word.data());
  const int code = line.run(static_cast<int>(rewritten.size()), rewritten.data());
  std::fflush(stdout);
  return code;
}

}  // namespace
}  // namespace meltemi::cli

int main(int argc, char** argv) {
  return meltemi::cli::run_main(argc, argv);
}
