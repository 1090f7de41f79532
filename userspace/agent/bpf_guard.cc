// The guard's half of BpfStore: tcx links, pinned like all others; before Linux 6.6 a clsact filter at a
// place of its own, which outlives this process without a pin.
#include <errno.h>
#include <fmt/format.h>
#include <unistd.h>

#include "userspace/agent/bpf_store_impl.h"

namespace meltemi::agent {
namespace {

// <linux/bpf.h> of Linux 6.6; the headers that we are built with may be older.
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr uint32_t kLinkTypeTcx = 11;
constexpr uint32_t kBefore = 1u << 3;  // BPF_F_BEFORE without a relative: first of all

// Ours among the filters of a device; tc(8) shows them as "pref 27953 handle 0x1".
constexpr uint32_t kFilterHandle = 1;
constexpr uint32_t kFilterPriority = MELTEMI_CAPTURE_MARK;

// A tcx link's device; 0 if it is gone. bpf_link_info.tcx has the shape of bpf_link_info.netns.
uint32_t device_of(const bpf_link_info& info) {
  static_assert(sizeof info.netns == 2 * sizeof(uint32_t));
  return info.type == kLinkTypeTcx ? info.netns.netns_ino : 0;
}

template <typename F>
std::invoke_result_t<F> in(const sys::Netns& netns, F&& f) {
  return netns.run(std::forward<F>(f));
}

bpf_tc_hook hook_of(uint32_t ifindex) {
  bpf_tc_hook hook{};
  hook.sz = sizeof hook;
  hook.ifindex = static_cast<int>(ifindex);
  hook.attach_point = BPF_TC_INGRESS;
  return hook;
}

bpf_tc_opts filter() {
  bpf_tc_opts options{};
  options.sz = sizeof options;
  options.handle = kFilterHandle;
  options.priority = kFilterPriority;
  return options;
}

}  // namespace

const sys::Netns& BpfStore::node_netns() const {
  return impl_->options.node_netns;
}

Status BpfStore::Impl::attach_guard_clsact(uint32_t ifindex) {
  bpf_tc_hook hook = hook_of(ifindex);
  if (const int e = bpf_tc_hook_create(&hook); e < 0 && e != -EEXIST)
    return fail_errno(-e, fmt::format("make the clsact qdisc of device {} (CONFIG_NET_CLS_ACT)",
                                      ifindex));
  bpf_tc_opts options = filter();
  options.prog_fd = bpf_program__fd(guard->progs.guard_pod);
  options.flags = BPF_TC_F_REPLACE;
  if (const int e = bpf_tc_attach(&hook, &options); e < 0)
    return fail_errno(-e, fmt::format("attach the guard's filter to device {}", ifindex));
  return {};
}

Status BpfStore::Impl::attach_guard_here(uint32_t ifindex) {
  if (options.without_tcx) return attach_guard_clsact(ifindex);
  const std::string relative = fmt::format("guards/{}", ifindex);
  const std::string path = directory + "/" + relative;
  const int program = bpf_program__fd(guard->progs.guard_pod);
  std::optional<UniqueFd> old = MELTEMI_TRY(take_link(relative));
  if (old) {
    const bpf_link_info info = MELTEMI_TRY(link_info(old->get()));
    if (device_of(info) == ifindex && bpf_link_update(old->get(), program, nullptr) == 0) return {};
    drop_link(std::move(*old), path);  // of a device that is gone
  }
  LIBBPF_OPTS(bpf_link_create_opts, first, .flags = kBefore);
  const UniqueFd link(bpf_link_create(program, static_cast<int>(ifindex), kTcxIngress, &first));
  if (link) return pin(link.get(), path);
  if (errno != EINVAL)
    return fail_errno(errno, fmt::format("attach the guard to device {}", ifindex));
  return attach_guard_clsact(ifindex);  // the kernel does not know tcx
}

Result<bool> BpfStore::Impl::guard_attached_here(uint32_t ifindex) const {
  const auto link = MELTEMI_TRY(open_pin(fmt::format("{}/{}", guards_directory(), ifindex)));
  if (link) return device_of(MELTEMI_TRY(link_info(link->get()))) == ifindex;
  const bpf_tc_hook hook = hook_of(ifindex);
  bpf_tc_opts options = filter();
  if (bpf_tc_query(&hook, &options) < 0) return false;
  bpf_prog_info info{};
  uint32_t size = sizeof info;
  if (bpf_obj_get_info_by_fd(bpf_program__fd(guard->progs.guard_pod), &info, &size) < 0)
    return fail_errno(errno, "BPF program info");
  return options.prog_id == info.id;
}

void BpfStore::Impl::detach_guard_here(uint32_t ifindex) {
  const std::string path = fmt::format("{}/{}", guards_directory(), ifindex);
  Result<std::optional<UniqueFd>> link = open_pin(path);
  if (link && *link) return drop_link(std::move(**link), path);
  const bpf_tc_hook hook = hook_of(ifindex);
  bpf_tc_opts options = filter();
  (void)bpf_tc_detach(&hook, &options);  // or the device is gone, and the filter with it
}

Status BpfStore::attach_guard(uint32_t ifindex, uint64_t cookie, uint32_t netns_id) {
  meltemi_guard guard{};
  if (bpf_map_lookup_elem(impl_->guarded_fd(), &ifindex, &guard) < 0 ||
      guard.netns_cookie != cookie || guard.netns_id != netns_id) {
    guard = {};
    guard.netns_cookie = cookie;
    guard.netns_id = netns_id;
    if (bpf_map_update_elem(impl_->guarded_fd(), &ifindex, &guard, BPF_ANY) < 0)
      return fail_errno(errno, "write the map of guarded devices");
  }
  return in(impl_->options.node_netns, [&] { return impl_->attach_guard_here(ifindex); });
}

Result<bool> BpfStore::guard_attached(uint32_t ifindex, uint64_t cookie) const {
  meltemi_guard guard{};
  if (bpf_map_lookup_elem(impl_->guarded_fd(), &ifindex, &guard) < 0 ||
      guard.netns_cookie != cookie)
    return false;
  return in(impl_->options.node_netns, [&] { return impl_->guard_attached_here(ifindex); });
}

Status BpfStore::remove_guards(uint64_t cookie) {
  for (const auto& [ifindex, guard] : MELTEMI_TRY(guards())) {
    if (guard.netns_cookie != cookie) continue;
    MELTEMI_TRY(in(impl_->options.node_netns, [&, i = ifindex]() -> Status {
      impl_->detach_guard_here(i);
      return {};
    }));
    if (bpf_map_delete_elem(impl_->guarded_fd(), &ifindex) < 0 && errno != ENOENT)
      return fail_errno(errno, "delete from the map of guarded devices");
  }
  return {};
}

Result<std::map<uint32_t, meltemi_guard>> BpfStore::guards() const {
  std::map<uint32_t, meltemi_guard> out;
  uint32_t key = 0, next = 0;
  for (const void* previous = nullptr;
       bpf_map_get_next_key(impl_->guarded_fd(), previous, &next) == 0; previous = &key) {
    key = next;
    meltemi_guard guard{};
    if (bpf_map_lookup_elem(impl_->guarded_fd(), &key, &guard) == 0) out.emplace(key, guard);
  }
  return out;
}

}  // namespace meltemi::agent
