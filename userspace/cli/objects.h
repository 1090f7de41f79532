// Commands that change objects: apply, create, delete, label, annotate.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/cli/context.h"

namespace meltemi::cli {

struct ApplyOptions {
  std::vector<std::string> files;  // "-" is standard input; a folder means its manifests
  std::string kustomize;           // a folder: refused with the way to do it
  bool only_new = false;           // `create`: an error if one of them is there
  std::string dry_run = "none";    // "none", "client", "server": the last two change nothing
};
// All or nothing: one bad object, and nothing is changed (exit 65).
int apply_command(const Context& context, const ApplyOptions& options);

int create_namespace_command(const Context& context, const std::string& name);
int create_service_account_command(const Context& context, const std::string& name);

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

// The object as the user wrote it. Error if there is none, or if a controller made it.
class Manifests;
Result<config::ObjectPtr> find_mine(const Manifests& manifests, const config::KindInfo& kind,
                                    std::string_view ns, const std::string& name);

}  // namespace meltemi::cli
