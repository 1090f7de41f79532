// Commands that change objects: apply, create namespace, delete, label, annotate, scale, rollout
// restart.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/cli/context.h"

namespace meltemi::cli {

struct ApplyOptions {
  std::vector<std::string> files;  // "-" is standard input; a folder means its manifests
  bool force = false;              // also with references to what is not there
};
// All or nothing: one bad object, and nothing is changed (exit 65).
int apply_command(const Context& context, const ApplyOptions& options);

int create_namespace_command(const Context& context, const std::string& name);

struct DeleteOptions {
  std::vector<std::string> files;
  std::vector<std::string> words;  // KIND NAME..., KIND/NAME...
  std::string selector;
  bool all = false;
  bool ignore_not_found = false;
  bool wait = true;
  std::optional<int64_t> grace_seconds;
};
int delete_command(const Context& context, const DeleteOptions& options);

struct LabelOptions {
  std::vector<std::string> words;  // KIND NAME key=value... key-...
  bool overwrite = false;
  bool annotations = false;  // annotate instead
};
int label_command(const Context& context, const LabelOptions& options);

int scale_command(const Context& context, const std::string& target, int replicas);
int rollout_restart_command(const Context& context, const std::string& target);
int rollout_status_command(const Context& context, const std::string& target, Duration timeout);

struct WaitOptions {
  std::vector<std::string> words;
  std::string selector;
  std::string condition;  // "condition=Ready", "delete"
  bool all = false;
  Duration timeout = std::chrono::seconds(30);
};
int wait_command(const Context& context, const WaitOptions& options);

// "pod/x" or "pod x": the kind and the names of the following words.
struct Target {
  const config::KindInfo* kind = nullptr;
  std::vector<std::string> names;
};
Result<Target> parse_target(const std::vector<std::string>& words);
// "a=b,c!=d,e": label selector of the command line. Error names the part.
Result<std::vector<std::pair<std::string, std::optional<std::string>>>> parse_selector(
    std::string_view text);
bool selected(const config::Object& object,
              const std::vector<std::pair<std::string, std::optional<std::string>>>& selector);

}  // namespace meltemi::cli
