#include "userspace/cli/manifests.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <filesystem>

#include "userspace/base/clock.h"
#include "userspace/config/value.h"
#include "userspace/sys/files.h"

namespace meltemi::cli {
namespace {

using config::Object;
using config::ObjectKey;
using Labels = google::protobuf::Map<std::string, std::string>;

constexpr size_t kMaxInputBytes = 64 << 20;

std::string new_uid() {  // RFC 9562 version 4
  uint64_t a = 0, b = 0;
  (void)!::getrandom(&a, sizeof a, 0);
  (void)!::getrandom(&b, sizeof b, 0);
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", static_cast<uint32_t>(a >> 32),
                     (a >> 16) & 0xffff, a & 0xfff, 0x8000 | ((b >> 48) & 0x3fff),
                     b & 0xffffffffffff);
}

// Keys of metadata.<map> in the manifest that was applied last.
bool was_applied(const config::Value* last, std::string_view map, std::string_view key) {
  if (last == nullptr) return false;
  const config::Value* meta = last->find("metadata");
  const config::Value* entries = meta == nullptr ? nullptr : meta->find(map);
  return entries != nullptr && entries->find(key) != nullptr;
}

void merge_map(const Labels& live, const config::Value* last, std::string_view map, Labels* out) {
  for (const auto& [key, value] : live)
    if (!out->contains(key) && !was_applied(last, map, key) && key != kLastApplied)
      (*out)[key] = value;
}

}  // namespace

std::string_view outcome_name(Manifests::Outcome outcome) {
  switch (outcome) {
    case Manifests::Outcome::kCreated:
      return "created";
    case Manifests::Outcome::kConfigured:
      return "configured";
    case Manifests::Outcome::kUnchanged:
      return "unchanged";
  }
  return "";
}

Object merge_applied(const Object& applied, const Object* live) {
  Object out = applied;
  config::kube::ObjectMeta& meta = out.mutable_meta();
  std::string text = config::to_json(applied.to_value(), true);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (live != nullptr) {
    const auto parsed = config::parse_documents(live->annotation(kLastApplied), "");
    const config::Value* last = parsed.documents.empty() ? nullptr : &parsed.documents.front();
    merge_map(live->meta().labels(), last, "labels", meta.mutable_labels());
    merge_map(live->meta().annotations(), last, "annotations", meta.mutable_annotations());
    meta.set_uid(live->meta().uid());
    meta.set_creation_timestamp(live->meta().creation_timestamp());
    meta.set_generation(live->meta().generation());
  }
  (*meta.mutable_annotations())[std::string(kLastApplied)] = text;
  return out;
}

Result<std::string> read_source(const std::string& file) {
  if (file != "-") return sys::read_file(file, kMaxInputBytes);
  std::string out;
  char buffer[16384];
  ssize_t n;
  while ((n = ::read(0, buffer, sizeof buffer)) > 0) {
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > kMaxInputBytes)
      return fail(Reason::kLimitExceeded, Fault::kConfig, "standard input is larger than 64 MiB");
  }
  if (n < 0) return fail_errno(errno, "read standard input");
  return out;
}

Manifests::Manifests(const Context& context, UniqueFd lock)
    : config_dir_(context.layout().config_dir()),
      lock_(std::move(lock)),
      user_(context.open(sandbox::View::kUser)),
      merged_(context.open(sandbox::View::kMerged)) {}

Result<Manifests> Manifests::open(const Context& context) {
  const std::string path = context.layout().config_lock();
  UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid()) return fail_errno(errno, "open " + path);
  while (::flock(lock.get(), LOCK_EX) < 0)
    if (errno != EINTR) return fail_errno(errno, "lock " + path);
  return Manifests(context, std::move(lock));
}

std::string Manifests::canonical_path(const ObjectKey& key) const {
  const std::string_view plural = config::kind_info(key.kind).plural;
  return key.ns.empty() ? fmt::format("{}/{}.{}.yaml", config_dir_, plural, key.name)
                        : fmt::format("{}/{}.{}.{}.yaml", config_dir_, plural, key.ns, key.name);
}

// Takes the object out of a file that is not its own.
Status Manifests::move_out(const ObjectKey& key) {
  const std::string file = user_.file_of(key);
  if (file.empty() || file == canonical_path(key)) return {};
  const std::string bytes = MELTEMI_TRY(sys::read_file(file));
  std::vector<Object> rest =
      config::read_objects(bytes, file, sandbox::runtime_read_options()).objects;
  std::erase_if(rest, [&](const Object& object) { return object.key() == key; });
  if (!rest.empty()) return sys::write_file_atomically(file, config::objects_to_yaml(rest), 0644);
  if (::unlink(file.c_str()) < 0 && errno != ENOENT) return fail_errno(errno, "remove " + file);
  return {};
}

Status Manifests::write(const Object& object) {
  MELTEMI_TRY(move_out(object.key()));
  MELTEMI_TRY(sys::write_file_atomically(canonical_path(object.key()),
                                         config::objects_to_yaml({object}), 0644));
  user_.refresh();
  merged_.refresh();
  return {};
}

Result<Manifests::Outcome> Manifests::foresee(const Object& object) const {
  const config::ObjectPtr live = user().find(object.kind(), object.ns(), object.name());
  if (!live) return Outcome::kCreated;
  return merge_applied(object, live.get()).same_content(*live) ? Outcome::kUnchanged
                                                                : Outcome::kConfigured;
}

Result<Manifests::Outcome> Manifests::apply(const Object& object) {
  const config::ObjectPtr live = user().find(object.kind(), object.ns(), object.name());
  Object merged = merge_applied(object, live.get());
  if (live && merged.same_content(*live)) return Outcome::kUnchanged;
  if (!live) {
    merged.mutable_meta().set_uid(new_uid());
    const std::string now = format_rfc3339(std::chrono::system_clock::now());
    merged.mutable_meta().set_creation_timestamp(now.substr(0, 19) + "Z");
    merged.mutable_meta().set_generation(1);
  } else if (!merged.same_spec(*live)) {
    merged.mutable_meta().set_generation(live->meta().generation() + 1);
  }
  MELTEMI_TRY(write(merged));
  return live ? Outcome::kConfigured : Outcome::kCreated;
}

Status Manifests::erase(const ObjectKey& key) {
  const std::string file = user_.file_of(key);
  if (file.empty()) return {};
  MELTEMI_TRY(move_out(key));
  const std::string path = canonical_path(key);
  if (::unlink(path.c_str()) < 0 && errno != ENOENT) return fail_errno(errno, "remove " + path);
  user_.refresh();
  merged_.refresh();
  return {};
}

}  // namespace meltemi::cli
