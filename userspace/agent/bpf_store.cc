// libbpf behind results; see bpf_store.h.
#include "userspace/agent/bpf_store.h"

#include <dirent.h>
#include <errno.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "userspace/agent/bpf_store_impl.h"
#include "userspace/base/log.h"
#include "userspace/sys/files.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("bpf");

int to_log(enum libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  char line[2048];
  const int n = std::vsnprintf(line, sizeof line, format, arguments);
  std::string_view text(line,
                        std::clamp<size_t>(n < 0 ? 0 : static_cast<size_t>(n), 0, sizeof line - 1));
  while (text.ends_with('\n')) text.remove_suffix(1);
  scope.debug("{}", log::escape(text));
  return n;
}

// FNV-1a over every property of the maps that two versions of the programs must agree on.
class LayoutHash {
 public:
  void add(const void* data, size_t size) {
    for (size_t i = 0; i < size; ++i)
      value_ = (value_ ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3ull;
  }
  void add(const bpf_object* object) {
    const bpf_map* map;
    bpf_object__for_each_map(map, object) {
      const std::string name = bpf_map__name(map);
      if (name.find(".rodata") != std::string::npos) continue;  // never shared
      const uint32_t shape[] = {static_cast<uint32_t>(bpf_map__type(map)), bpf_map__key_size(map),
                                bpf_map__value_size(map), bpf_map__max_entries(map),
                                bpf_map__map_flags(map)};
      add(name.data(), name.size());
      add(shape, sizeof shape);
    }
  }
  void add(std::string_view text) { add(text.data(), text.size()); }
  std::string text() const { return fmt::format("{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

Status remove_pins(const std::string& path) {
  for (const std::string& name : MELTEMI_TRY(list_directory(path)))
    MELTEMI_TRY(remove_pins(path + "/" + name));
  if (::rmdir(path.c_str()) < 0 && ::unlink(path.c_str()) < 0 && errno != ENOENT)
    return fail_errno(errno, "remove " + path);
  return {};
}

// A version directory is done with when no link is left in it: without a link its maps do nothing.
Result<bool> has_links(const std::string& version) {
  for (const std::string& cookie : MELTEMI_TRY(list_directory(version + "/pods")))
    if (::access(fmt::format("{}/pods/{}/link", version, cookie).c_str(), F_OK) == 0 || errno != ENOENT)
      return true;
  return !MELTEMI_TRY(list_directory(version + "/links")).empty() ||
         !MELTEMI_TRY(list_directory(version + "/guards")).empty();
}

}  // namespace

std::unexpected<Error> load_failed(int error, std::string_view what) {
  Error e = fail_errno(error, fmt::format("load {}", what)).error();
  if (error == EPERM)
    e.detail += "; needs CAP_BPF and CAP_NET_ADMIN (run as root)";
  else if (error == EINVAL || error == ENOTSUP || error == EACCES)
    e.detail +=
        "; needs Linux 5.17 or newer with CONFIG_CGROUP_BPF (log level bpf=debug shows the "
        "verifier)";
  return fail(std::move(e));
}

Result<std::vector<std::string>> list_directory(const std::string& path) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir && (errno == ENOENT || errno == ENOTDIR)) return out;
  if (!dir) return fail_errno(errno, "list " + path);
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr && errno != 0) return fail_errno(errno, "list " + path);
    if (entry == nullptr) return out;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") out.push_back(name);
  }
}

Result<std::optional<UniqueFd>> open_pin(const std::string& path) {
  UniqueFd fd(bpf_obj_get(path.c_str()));
  if (fd) return std::optional<UniqueFd>(std::move(fd));
  if (errno == ENOENT) return std::optional<UniqueFd>();
  return fail_errno(errno, "open pin " + path);
}

Result<bpf_link_info> link_info(int fd) {
  bpf_link_info info{};
  uint32_t size = sizeof info;
  if (bpf_obj_get_info_by_fd(fd, &info, &size) < 0) return fail_errno(errno, "BPF link info");
  return info;
}

Status pin(int fd, const std::string& path) {
  if (bpf_obj_pin(fd, path.c_str()) < 0) return fail_errno(errno, "pin " + path);
  return {};
}

void drop_link(UniqueFd link, const std::string& path) {
  bpf_link_detach(link.get());
  ::unlink(path.c_str());
}

meltemi_address to_abi(const IpAddress& ip) {
  meltemi_address out;
  static_assert(sizeof out == sizeof(ip.bytes()));
  std::memcpy(&out, ip.bytes().data(), sizeof out);
  return out;
}

// --- loading -------------------------------------------------------------------------------------

Status BpfStore::Impl::open_skeletons() {
  // The version directory is known only when the objects are open, so that they are opened twice:
  // once for their layout, then with the place of their pins.
  LayoutHash hash;
  {
    const ConnectSkeleton c(meltemi_connect_skel__open());
    const LookupSkeleton l(meltemi_lookup_skel__open());
    if (!c || !l) return load_failed(errno, "the BPF programs");
    hash.add(c->obj);  // with all maps that the programs share
    hash.add(l->obj);
    hash.add(options.layout_salt);
  }
  directory = fmt::format("{}/v{}-{}", options.directory, MELTEMI_ABI_VERSION, hash.text());
  const std::string maps = maps_directory();
  LIBBPF_OPTS(bpf_object_open_opts, open_options, .pin_root_path = maps.c_str());
  connect.reset(meltemi_connect_skel__open_opts(&open_options));
  probe.reset(meltemi_probe_skel__open_opts(&open_options));
  lookup.reset(meltemi_lookup_skel__open_opts(&open_options));
  guard.reset(meltemi_guard_skel__open_opts(&open_options));
  if (!connect || !probe || !lookup || !guard) return load_failed(errno, "the BPF programs");
  return {};
}

Status BpfStore::Impl::make_directories() {
  MELTEMI_TRY(sys::make_directories(options.directory, 0700));
  if (!MELTEMI_TRY(sys::is_bpffs(options.directory)))
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("{} is not on a bpffs; mount one: mount -t bpf bpf {}",
                            options.directory, options.directory));
  for (const std::string& path : {maps_directory(), links_directory(), guards_directory(),
                                  directory + "/pods"})
    MELTEMI_TRY(sys::make_directories(path, 0700));
  return {};
}

Status BpfStore::Impl::set_constants() {
  connect->rodata->capture_mark = options.capture_mark;
  connect->rodata->tunnel_mark = options.tunnel_mark;
  probe->rodata->node_netns_cookie = options.node_netns_cookie;
  const meltemi_address v4 = to_abi(options.probe_v4), v6 = to_abi(options.probe_v6);
  std::memcpy(const_cast<meltemi_address*>(&probe->rodata->probe_v4), &v4, sizeof v4);
  std::memcpy(const_cast<meltemi_address*>(&probe->rodata->probe_v6), &v6, sizeof v6);
  std::memcpy(const_cast<meltemi_address*>(&lookup->rodata->probe_v4), &v4, sizeof v4);
  std::memcpy(const_cast<meltemi_address*>(&lookup->rodata->probe_v6), &v6, sizeof v6);
  return {};
}

Status BpfStore::Impl::load_programs() {
  if (const int e = meltemi_connect_skel__load(connect.get()); e < 0)
    return load_failed(-e, "the connect hooks");
  if (const int e = meltemi_probe_skel__load(probe.get()); e < 0)
    return load_failed(-e, "the probe hooks");
  if (const int e = meltemi_guard_skel__load(guard.get()); e < 0)
    return load_failed(-e, "the guard");
  // The template of all pods' programs: loaded for its relocated instructions, never attached.
  if (const int e = meltemi_lookup_skel__load(lookup.get()); e < 0)
    return load_failed(-e, "the lookup program");
  return {};
}

BpfStore::BpfStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BpfStore::~BpfStore() = default;

Result<std::unique_ptr<BpfStore>> BpfStore::load(BpfOptions options) {
  libbpf_set_print(to_log);
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  if (!impl->options.node_netns.valid())
    impl->options.node_netns = MELTEMI_TRY(sys::Netns::current());
  MELTEMI_TRY(impl->open_skeletons());
  MELTEMI_TRY(impl->make_directories());
  MELTEMI_TRY(impl->set_constants());
  MELTEMI_TRY(impl->load_programs());
  return std::unique_ptr<BpfStore>(new BpfStore(std::move(impl)));
}

const std::string& BpfStore::version_directory() const {
  return impl_->directory;
}

// --- links ---------------------------------------------------------------------------------------

Result<std::optional<std::string>> BpfStore::Impl::foreign_pin(const std::string& relative) const {
  for (const std::string& name : MELTEMI_TRY(list_directory(options.directory))) {
    const std::string version = options.directory + "/" + name;
    const std::string path = version + "/" + relative;
    if (version != directory && name.starts_with('v') && ::access(path.c_str(), F_OK) == 0)
      return std::optional(path);
  }
  return std::optional<std::string>();
}

// The link pinned under this name; one of another layout is moved here first.
Result<std::optional<UniqueFd>> BpfStore::Impl::take_link(const std::string& relative) {
  const std::string path = directory + "/" + relative;
  if (::access(path.c_str(), F_OK) != 0)
    if (const auto other = MELTEMI_TRY(foreign_pin(relative)))
      if (::rename(other->c_str(), path.c_str()) < 0)
        return fail_errno(errno, fmt::format("move pin {} to {}", *other, path));
  return open_pin(path);
}

Status BpfStore::Impl::attach_hook(const Hook& hook, const sys::Cgroup& cgroup,
                                   uint64_t cgroup_id) {
  const std::string relative = fmt::format("links/{}", hook.name);
  const std::string path = directory + "/" + relative;
  const int program = bpf_program__fd(hook.program);
  std::optional<UniqueFd> old = MELTEMI_TRY(take_link(relative));
  if (old) {
    const bpf_link_info info = MELTEMI_TRY(link_info(old->get()));
    if (info.type == BPF_LINK_TYPE_CGROUP && info.cgroup.cgroup_id == cgroup_id &&
        bpf_link_update(old->get(), program, nullptr) == 0)
      return {};
    scope.info("link {} is attached to a cgroup that is gone or another one; attaching it anew",
               hook.name);
    drop_link(std::move(*old), path);
  }
  const UniqueFd link(bpf_link_create(program, cgroup.fd(), hook.type, nullptr));
  if (!link)
    return fail_errno(errno, fmt::format("attach {} to cgroup {}", hook.name, cgroup.path()));
  return pin(link.get(), path);
}

// What cannot be looked at stays, until the next start.
Status BpfStore::Impl::remove_other_versions() {
  for (const std::string& name : MELTEMI_TRY(list_directory(options.directory))) {
    const std::string version = options.directory + "/" + name;
    if (version == directory || !name.starts_with('v') || MELTEMI_TRY(has_links(version))) continue;
    MELTEMI_TRY(remove_pins(version));
    scope.info("removed the pins of another layout: {}", name);
  }
  return {};
}

Status BpfStore::attach(const sys::Cgroup& cgroup) {
  const uint64_t id = MELTEMI_TRY(cgroup.id());
  for (const Hook& hook : impl_->hooks()) MELTEMI_TRY(impl_->attach_hook(hook, cgroup, id));
  if (const Status removed = impl_->remove_other_versions(); !removed)
    scope.warn("pins of other layouts stay: {}", removed.error().to_string());
  return {};
}

Result<bool> BpfStore::attached(const sys::Cgroup& cgroup) const {
  const uint64_t id = MELTEMI_TRY(cgroup.id());
  for (const Hook& hook : impl_->hooks()) {
    const auto link =
        MELTEMI_TRY(open_pin(fmt::format("{}/{}", impl_->links_directory(), hook.name)));
    if (!link) return false;
    const bpf_link_info info = MELTEMI_TRY(link_info(link->get()));
    if (info.type != BPF_LINK_TYPE_CGROUP || info.cgroup.cgroup_id != id) return false;
  }
  return true;
}

// --- pods ----------------------------------------------------------------------------------------

// The map pinned at `path`, or a new one shaped like the template's.
Result<UniqueFd> BpfStore::Impl::ensure_map(const bpf_map* like, const std::string& path) const {
  std::optional<UniqueFd> old = MELTEMI_TRY(open_pin(path));
  if (old) return std::move(*old);
  LIBBPF_OPTS(bpf_map_create_opts, create, .map_flags = bpf_map__map_flags(like));
  UniqueFd fd(bpf_map_create(bpf_map__type(like), bpf_map__name(like), bpf_map__key_size(like),
                             bpf_map__value_size(like), bpf_map__max_entries(like), &create));
  if (!fd) return fail_errno(errno, "create a pod's map");
  MELTEMI_TRY(pin(fd.get(), path));
  return fd;
}

Result<const PodMaps*> BpfStore::Impl::maps_of(uint64_t cookie) {
  const auto found = pod_maps.find(cookie);
  if (found != pod_maps.end()) return &found->second;
  const std::string dir = pod_directory(cookie);
  MELTEMI_TRY(sys::make_directories(dir, 0700));
  PodMaps maps;
  maps.config = MELTEMI_TRY(ensure_map(lookup->maps.pod_config, dir + "/config"));
  maps.listeners = MELTEMI_TRY(ensure_map(lookup->maps.listeners, dir + "/listeners"));
  return &pod_maps.emplace(cookie, std::move(maps)).first->second;
}

Status BpfStore::ensure_pod(uint64_t cookie, const meltemi_pod& config) {
  const PodMaps* maps = MELTEMI_TRY(impl_->maps_of(cookie));
  const uint32_t key = 0;
  if (bpf_map_update_elem(maps->config.get(), &key, &config, BPF_ANY) < 0)
    return fail_errno(errno, "write a pod's configuration");
  return {};
}

Status BpfStore::set_listener(uint64_t cookie, meltemi_listener_slot slot, int listener_fd) {
  const PodMaps* maps = MELTEMI_TRY(impl_->maps_of(cookie));
  const uint32_t key = slot;
  const uint64_t value = static_cast<uint64_t>(listener_fd);
  if (bpf_map_update_elem(maps->listeners.get(), &key, &value, BPF_ANY) < 0)
    return fail_errno(errno, "put a listener into the pod's SOCKMAP");
  return {};
}

Result<std::optional<uint64_t>> BpfStore::listener(uint64_t cookie,
                                                   meltemi_listener_slot slot) const {
  if (::access(impl_->pod_directory(cookie).c_str(), F_OK) != 0) return std::optional<uint64_t>();
  const PodMaps* maps = MELTEMI_TRY(impl_->maps_of(cookie));
  const uint32_t key = slot;
  uint64_t socket_cookie = 0;
  if (bpf_map_lookup_elem(maps->listeners.get(), &key, &socket_cookie) == 0)
    return std::optional<uint64_t>(socket_cookie);
  if (errno == ENOENT) return std::optional<uint64_t>();
  return fail_errno(errno, "read the pod's SOCKMAP");
}

// The template's instructions with this pod's maps in place of the template's: 0.1 ms, where
// opening and loading the object again costs 19 ms.
Result<UniqueFd> BpfStore::Impl::clone_lookup(const PodMaps& maps) const {
  const bpf_program* program = lookup->progs.steer_pod;
  std::vector<bpf_insn> code(bpf_program__insns(program),
                             bpf_program__insns(program) + bpf_program__insn_cnt(program));
  const int config = bpf_map__fd(lookup->maps.pod_config);
  const int listeners = bpf_map__fd(lookup->maps.listeners);
  for (bpf_insn& insn : code) {
    if (insn.code != (BPF_LD | BPF_IMM | BPF_DW) || insn.src_reg != BPF_PSEUDO_MAP_FD) continue;
    if (insn.imm == config)
      insn.imm = maps.config.get();
    else if (insn.imm == listeners)
      insn.imm = maps.listeners.get();
  }
  LIBBPF_OPTS(bpf_prog_load_opts, load, .expected_attach_type = BPF_SK_LOOKUP);
  UniqueFd fd(bpf_prog_load(BPF_PROG_TYPE_SK_LOOKUP, bpf_program__name(program), "GPL", code.data(),
                            code.size(), &load));
  if (!fd) return load_failed(errno, "a pod's lookup program");
  return fd;
}

Status BpfStore::attach_pod(uint64_t cookie, const sys::Netns& netns) {
  const PodMaps* maps = MELTEMI_TRY(impl_->maps_of(cookie));
  const UniqueFd program = MELTEMI_TRY(impl_->clone_lookup(*maps));
  const std::string relative = fmt::format("pods/{}/link", cookie);
  const std::string path = impl_->directory + "/" + relative;
  std::optional<UniqueFd> old = MELTEMI_TRY(impl_->take_link(relative));
  if (old) {
    if (bpf_link_update(old->get(), program.get(), nullptr) == 0) return {};
    drop_link(std::move(*old), path);  // ENOLINK: its namespace is gone
  }
  const UniqueFd link(bpf_link_create(program.get(), netns.fd(), BPF_SK_LOOKUP, nullptr));
  if (!link) {
    if (errno == E2BIG)
      return fail(Reason::kLimitExceeded, Fault::kConfig,
                  "the pod's netns has 64 sk_lookup programs already, the kernel's limit; "
                  "see bpftool link for their owners");
    return fail_errno(errno, "attach the lookup program to the pod's netns");
  }
  return pin(link.get(), path);
}

Result<uint64_t> BpfStore::pod_netns_inode(uint64_t cookie) const {
  const auto link = MELTEMI_TRY(open_pin(impl_->pod_directory(cookie) + "/link"));
  if (!link) return uint64_t{0};
  const bpf_link_info info = MELTEMI_TRY(link_info(link->get()));
  return info.type == BPF_LINK_TYPE_NETNS ? uint64_t{info.netns.netns_ino} : uint64_t{0};
}

Result<bool> BpfStore::pod_attached(uint64_t cookie, uint64_t netns_inode) const {
  return netns_inode != 0 && MELTEMI_TRY(pod_netns_inode(cookie)) == netns_inode;
}

Status BpfStore::remove_pod(uint64_t cookie) {
  impl_->pod_maps.erase(cookie);
  const std::string dir = impl_->pod_directory(cookie);
  std::optional<UniqueFd> link = MELTEMI_TRY(open_pin(dir + "/link"));
  if (link) drop_link(std::move(*link), dir + "/link");
  return remove_pins(dir);
}

Result<std::vector<uint64_t>> BpfStore::pods() const {
  std::vector<uint64_t> out;
  for (const std::string& name : MELTEMI_TRY(list_directory(impl_->directory + "/pods"))) {
    uint64_t cookie = 0;
    const auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), cookie);
    if (ec == std::errc() && end == name.data() + name.size()) out.push_back(cookie);
  }
  return out;
}

// --- the node's maps -----------------------------------------------------------------------------

Status BpfStore::set_enrolled(uint64_t cookie, const meltemi_pod& pod) {
  if (bpf_map_update_elem(impl_->enrolled_fd(), &cookie, &pod, BPF_ANY) < 0) {
    if (errno == E2BIG)
      return fail(Reason::kLimitExceeded, Fault::kConfig,
                  fmt::format("this node has {} enrolled pods, its limit", MELTEMI_MAX_PODS));
    return fail_errno(errno, "write the map of enrolled pods");
  }
  return {};
}

Status BpfStore::clear_enrolled(uint64_t cookie) {
  if (bpf_map_delete_elem(impl_->enrolled_fd(), &cookie) < 0 && errno != ENOENT)
    return fail_errno(errno, "delete from the map of enrolled pods");
  return {};
}

Result<std::optional<meltemi_pod>> BpfStore::enrolled(uint64_t cookie) const {
  meltemi_pod pod{};
  if (bpf_map_lookup_elem(impl_->enrolled_fd(), &cookie, &pod) == 0)
    return std::optional<meltemi_pod>(pod);
  if (errno == ENOENT) return std::optional<meltemi_pod>();
  return fail_errno(errno, "read the map of enrolled pods");
}

Status BpfStore::add_exclusion(const meltemi_exclusion& key) {
  const uint8_t one = 1;
  if (bpf_map_update_elem(impl_->excluded_fd(), &key, &one, BPF_ANY) < 0)
    return fail_errno(errno, "write the map of excluded destinations");
  return {};
}

Status BpfStore::remove_exclusions(uint64_t cookie) {
  std::vector<meltemi_exclusion> doomed;
  meltemi_exclusion key{}, next{};
  for (const void* previous = nullptr;
       bpf_map_get_next_key(impl_->excluded_fd(), previous, &next) == 0; previous = &key) {
    key = next;
    if (key.netns_cookie == cookie) doomed.push_back(key);
  }
  for (const meltemi_exclusion& k : doomed)
    if (bpf_map_delete_elem(impl_->excluded_fd(), &k) < 0 && errno != ENOENT)
      return fail_errno(errno, "delete from the map of excluded destinations");
  return {};
}

Status BpfStore::add_probe(const IpAddress& pod, uint16_t port) {
  const meltemi_probe key{to_abi(pod), port, 0};
  const meltemi_probe_use none{};
  // What is there keeps its count.
  if (bpf_map_update_elem(impl_->probes_fd(), &key, &none, BPF_NOEXIST) < 0 && errno != EEXIST)
    return fail_errno(errno, "write the map of probes");
  return {};
}

Result<uint64_t> BpfStore::probes_passed(const IpAddress& pod, uint16_t port) const {
  const meltemi_probe key{to_abi(pod), port, 0};
  meltemi_probe_use use{};
  if (bpf_map_lookup_elem(impl_->probes_fd(), &key, &use) == 0) return use.passed;
  if (errno == ENOENT) return uint64_t{0};
  return fail_errno(errno, "read the map of probes");
}

Status BpfStore::set_cgroup_roles(uint64_t cgroup_id, uint32_t roles) {
  if (roles == 0) {
    if (bpf_map_delete_elem(impl_->cgroups_fd(), &cgroup_id) < 0 && errno != ENOENT)
      return fail_errno(errno, "delete from the map of cgroups");
    return {};
  }
  if (bpf_map_update_elem(impl_->cgroups_fd(), &cgroup_id, &roles, BPF_ANY) < 0)
    return fail_errno(errno, "write the map of cgroups");
  return {};
}

Result<std::map<uint64_t, uint32_t>> BpfStore::cgroup_roles() const {
  std::map<uint64_t, uint32_t> out;
  uint64_t key = 0, next = 0;
  for (const void* previous = nullptr;
       bpf_map_get_next_key(impl_->cgroups_fd(), previous, &next) == 0; previous = &key) {
    key = next;
    uint32_t roles = 0;
    if (bpf_map_lookup_elem(impl_->cgroups_fd(), &key, &roles) == 0) out.emplace(key, roles);
  }
  return out;
}

Status BpfStore::remove_probe(const IpAddress& pod, uint16_t port) {
  const meltemi_probe key{to_abi(pod), port, 0};
  if (bpf_map_delete_elem(impl_->probes_fd(), &key) < 0 && errno != ENOENT)
    return fail_errno(errno, "delete from the map of probes");
  return {};
}

Result<std::array<uint64_t, MELTEMI_COUNTERS>> BpfStore::counters() const {
  const int cpus = libbpf_num_possible_cpus();
  if (cpus < 0) return fail_errno(-cpus, "count CPUs");
  std::array<uint64_t, MELTEMI_COUNTERS> out{};
  std::vector<uint64_t> values(static_cast<size_t>(cpus));
  for (uint32_t i = 0; i < MELTEMI_COUNTERS; ++i) {
    if (bpf_map_lookup_elem(impl_->counters_fd(), &i, values.data()) < 0)
      return fail_errno(errno, "read the counters");
    for (const uint64_t v : values) out[i] += v;
  }
  return out;
}

Status BpfStore::uninstall() {
  for (const Hook& hook : impl_->hooks()) {
    const std::string path = fmt::format("{}/{}", impl_->links_directory(), hook.name);
    std::optional<UniqueFd> link = MELTEMI_TRY(open_pin(path));
    if (link) drop_link(std::move(*link), path);
  }
  for (const uint64_t cookie : MELTEMI_TRY(pods())) MELTEMI_TRY(remove_pod(cookie));
  for (const auto& [ifindex, guard] : MELTEMI_TRY(guards()))
    MELTEMI_TRY(remove_guards(guard.netns_cookie));
  for (const std::string& name : MELTEMI_TRY(list_directory(impl_->options.directory)))
    if (name.starts_with('v')) MELTEMI_TRY(remove_pins(impl_->options.directory + "/" + name));
  return {};
}

}  // namespace meltemi::agent
