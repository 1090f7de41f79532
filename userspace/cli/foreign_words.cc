#include "userspace/cli/foreign_words.h"

namespace meltemi::cli {
namespace {

struct Advice {
  std::string_view word, text;
};

constexpr std::string_view kChange =
    "Change the manifest: meltemi get KIND NAME -o yaml > FILE, edit FILE, meltemi apply -f FILE";
constexpr std::string_view kFindings =
    "Findings are told by: meltemi get KIND, meltemi describe KIND NAME, meltemi apply --dry-run "
    "-f FILE";
constexpr std::string_view kDump =
    "Every proxy has its configuration at port 15000 of its own loopback. meltemi get mesh -o wide "
    "names its network namespace; then: ip netns exec NETNS curl -s localhost:15000/config_dump";
constexpr std::string_view kInstall =
    "There is nothing to install on this machine: meltemi sandbox up --nodes 2 runs the whole mesh, "
    "meltemi sandbox down ends it";
constexpr std::string_view kMetrics =
    "Every process serves Prometheus' format at port 15020 (meltemid: 15014), path /metrics. "
    "meltemi get mesh -o wide names its network namespace";
constexpr std::string_view kSchedule =
    "Nodes of a sandbox take pods as long as it runs; nodeSelector in a pod's spec chooses one";

constexpr Advice kAdvice[] = {
    // kubectl
    {"api-versions", "meltemi api-resources lists the kinds with their versions"},
    {"attach", "meltemi logs -f POD shows the output; meltemi exec -i POD -- COMMAND talks to a pod"},
    {"auth", "Who may call whom is written in AuthorizationPolicies; meltemi describe pod NAME lists "
             "those that apply"},
    {"autoscale", "meltemi scale deploy/NAME --replicas N sets the number by hand"},
    {"cluster-info", "meltemi get mesh"},
    {"config", "A sandbox is chosen by --sandbox NAME or MELTEMI_SANDBOX; meltemi sandbox list shows "
               "them"},
    {"cordon", kSchedule},
    {"cp", "meltemi exec POD -- cat PATH > FILE, or meltemi exec -i POD -- tee PATH < FILE"},
    {"debug", "meltemi describe pod NAME; meltemi exec POD -- COMMAND"},
    {"diff", "meltemi apply --dry-run -f FILE tells what would change"},
    {"drain", kSchedule},
    {"edit", kChange},
    {"events", "meltemi describe KIND NAME shows the state and its reasons"},
    {"explain", "meltemi pod-fields lists the fields of a Pod; other fields are as in Kubernetes and "
                "Istio"},
    {"expose", "Write a Service and apply it: meltemi apply -f FILE"},
    {"kustomize", "kustomize build DIR | meltemi apply -f -"},
    {"patch", kChange},
    {"replace", "meltemi apply -f FILE"},
    {"set", kChange},
    {"taint", kSchedule},
    {"top", kMetrics},
    {"uncordon", kSchedule},
    // istioctl
    {"admin", kDump},
    {"analyze", kFindings},
    {"bug-report", "meltemi get mesh -o wide names the log of every process; meltemi describe KIND NAME "
                   "tells the state of an object"},
    {"create-remote-secret", "A mesh of several clusters is not there yet"},
    {"d", kMetrics},
    {"dashboard", kMetrics},
    {"experimental", "meltemi describe KIND NAME is what `istioctl x describe` shows"},
    {"install", kInstall},
    {"kube-inject", "Nothing needs injecting: meltemi label ns NAME istio.io/dataplane-mode=ambient"},
    {"manifest", kInstall},
    {"pc", kDump},
    {"precheck", "./meltemi check tells what this machine lacks"},
    {"profile", kInstall},
    {"proxy-config", kDump},
    {"proxy-status", "meltemi get mesh"},
    {"ps", "meltemi get mesh"},
    {"remote-clusters", "A mesh of several clusters is not there yet"},
    {"tag", "A sandbox has one revision of the mesh"},
    {"uninstall", kInstall},
    {"upgrade", kInstall},
    {"validate", kFindings},
    {"verify-install", "meltemi sandbox status"},
    {"x", "meltemi describe KIND NAME is what `istioctl x describe` shows"},
    {"zc", kDump},
    {"ztunnel-config", kDump},
};

}  // namespace

std::string_view advice_for(std::string_view word) {
  for (const Advice& advice : kAdvice)
    if (advice.word == word) return advice.text;
  return {};
}

}  // namespace meltemi::cli
