#include "userspace/config/tree.h"

#include <fmt/format.h>

namespace meltemi::config {

ManifestTree::ManifestTree(ObjectStore* store, ReadOptions options, MeshNames names)
    : store_(store), options_(std::move(options)), names_(std::move(names)) {
  options_.warn_ignored = false;  // said once by `apply`, not at every read
}

ManifestTree::Outcome ManifestTree::put(std::string_view path, std::string_view bytes, int layer) {
  Outcome out;
  ReadResult read = read_and_validate(bytes, path, options_, names_);
  std::map<ObjectKey, Object> fresh;
  for (Object& object : read.objects) {
    ObjectKey key = object.key();
    if (auto [at, added] = fresh.emplace(key, object); !added) {
      read.problems.push_back(
          object.problem(Severity::kError, kCodeDuplicateObject, "metadata.name",
                         fmt::format("{} stands twice in one file (first on line {})",
                                     key.to_string(), at->second.line()),
                         "Remove or rename one of the two"));
    }
  }
  auto known = files_.find(path);
  if (has_errors(read.problems)) {
    // The last good objects stay, whatever else is in the file.
    if (known == files_.end()) known = files_.emplace(std::string(path), File{layer, {}, {}}).first;
    known->second.problems = read.problems;
    out.problems = std::move(read.problems);
    return out;
  }
  std::set<ObjectKey> touched;
  std::string name(path);
  if (known != files_.end()) {
    for (const ObjectKey& key : known->second.keys) {
      claims_[key].erase(Claim{known->second.layer, name});
      touched.insert(key);
    }
  }
  File file{layer, {}, {}};
  for (auto& [key, object] : fresh) {
    auto& claims = claims_[key];
    for (const auto& [claim, other] : claims) {
      if (claim.layer != layer) continue;
      read.problems.push_back(object.problem(
          Severity::kWarning, kCodeDuplicateObject, "metadata.name",
          fmt::format("also defined in {}; the file that sorts first counts", claim.path),
          "Remove one of the two"));
    }
    claims.insert_or_assign(Claim{layer, name}, std::move(object));
    file.keys.push_back(key);
    touched.insert(key);
  }
  for (const ObjectKey& key : touched) settle(key, &out.changes);
  file.problems = read.problems;
  out.problems = std::move(read.problems);
  files_.insert_or_assign(std::move(name), std::move(file));
  return out;
}

ManifestTree::Outcome ManifestTree::remove(std::string_view path) {
  Outcome out;
  auto known = files_.find(path);
  if (known == files_.end()) return out;
  for (const ObjectKey& key : known->second.keys) {
    claims_[key].erase(Claim{known->second.layer, known->first});
    settle(key, &out.changes);
  }
  files_.erase(known);
  return out;
}

// Brings the store to what the claims on `key` say.
void ManifestTree::settle(const ObjectKey& key, std::vector<ObjectChange>* changes) {
  auto claims = claims_.find(key);
  std::optional<ObjectChange> change;
  if (claims == claims_.end() || claims->second.empty()) {
    if (claims != claims_.end()) claims_.erase(claims);
    change = store_->erase(key);
  } else {
    change = store_->upsert(claims->second.begin()->second);
  }
  if (change) changes->push_back(std::move(*change));
}

Problems ManifestTree::problems() const {
  Problems out;
  for (const auto& [path, file] : files_) {
    out.insert(out.end(), file.problems.begin(), file.problems.end());
  }
  return out;
}

std::string_view ManifestTree::file_of(const ObjectKey& key) const {
  auto claims = claims_.find(key);
  if (claims == claims_.end() || claims->second.empty()) return {};
  return claims->second.begin()->first.path;
}

}  // namespace meltemi::config
