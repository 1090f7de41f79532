// The user's manifests in a sandbox's config directory: what `apply`, `label` and `delete` write.
// One file an object, replaced atomically, under a lock, so that two commands never lose each
// other's change. A file that a user has put there by hand may hold several objects: the one that
// changes moves out.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/fd.h"
#include "userspace/cli/context.h"
#include "userspace/config/object.h"

namespace meltemi::cli {

// Holds the sandbox's config lock while it lives.
class Manifests {
 public:
  static Result<Manifests> open(const Context& context);

  // The objects as the user has applied them, and as the whole mesh sees them.
  const config::ObjectStore& user() const { return user_.store(); }
  const config::ObjectStore& merged() const { return merged_.store(); }

  enum class Outcome : uint8_t { kCreated, kConfigured, kUnchanged };
  // As `kubectl apply`: labels and annotations that were set otherwise stay, the rest is replaced.
  Result<Outcome> apply(const config::Object& object);
  // What apply() would do, without doing it.
  Result<Outcome> foresee(const config::Object& object) const;
  // Writes the object as it is; it must be one of user().
  Status write(const config::Object& object);
  // No error if it is not there.
  Status erase(const config::ObjectKey& key);

 private:
  Manifests(const Context& context, UniqueFd lock);
  std::string canonical_path(const config::ObjectKey& key) const;
  Status move_out(const config::ObjectKey& key);

  std::string config_dir_;
  UniqueFd lock_;
  sandbox::Directory user_, merged_;
};

std::string_view outcome_name(Manifests::Outcome outcome);  // "created", ...

// What kubectl keeps for its three-way merge.
inline constexpr std::string_view kLastApplied = "kubectl.kubernetes.io/last-applied-configuration";

// `applied` with those labels and annotations of `live` that a command has set, not an earlier
// apply. Uid, creation time and generation come from `live`. Pure.
config::Object merge_applied(const config::Object& applied, const config::Object* live);

// All of a file, or of standard input for "-".
Result<std::string> read_source(const std::string& file);

}  // namespace meltemi::cli
