#include "ztunnel/pod_manager.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>

#include "userspace/base/log.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("pods");

using codec::zds::FdKind;
using telemetry::MetricType;

ListenerKind kind_of(FdKind kind) {
  return kind == FdKind::kOutbound  ? ListenerKind::kOutbound
         : kind == FdKind::kInbound ? ListenerKind::kInbound
                                    : ListenerKind::kHbone;
}

Result<UniqueFd> duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_errno(errno, "dup of a listener");
  return copy;
}

// A listener that a peer handed over is only taken for what it is.
Status check_listener(int fd) {
  int listening = 0;
  socklen_t length = sizeof listening;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening) {
    return fail(Reason::kBadRequest, Fault::kDownstream, "a descriptor is no listening socket");
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return fail_errno(errno, "fcntl");
  return {};
}

bool same_socket(int a, int b) {
  struct stat x {}, y {};
  return ::fstat(a, &x) == 0 && ::fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

}  // namespace

PodManager::PodManager(Shared& shared, telemetry::Registry& registry)
    : shared_(shared),
      active_(registry, "workload_manager_active_proxy_count", MetricType::kGauge,
              "Pods served now"),
      pending_(registry, "workload_manager_pending_proxy_count", MetricType::kGauge,
               "Pods that could not be taken up when the agent last handed them over"),
      started_(registry, "workload_manager_proxies_started_total", MetricType::kCounter,
               "Pods that began to be served"),
      stopped_(registry, "workload_manager_proxies_stopped_total", MetricType::kCounter,
               "Pods that are served no more") {
  active_.set(0);
  pending_.set(0);
}

rt::Worker& PodManager::home(const std::string& uid) const {
  return shared_.pool->home(std::hash<std::string>()(uid));
}

Status PodManager::add(const codec::zds::Add& add, std::vector<UniqueFd> fds) {
  const Status added = take_up(add, std::move(fds));
  std::lock_guard lock(mutex_);
  if (added)
    waiting_.erase(add.uid);
  else
    waiting_.insert(add.uid);
  pending_.set(static_cast<double>(waiting_.size()));
  return added;
}

Status PodManager::take_up(const codec::zds::Add& add, std::vector<UniqueFd> fds) {
  if (fds.empty() || fds.size() != add.fds.size() || add.fds.front() != FdKind::kNetns) {
    return fail(Reason::kBadRequest, Fault::kDownstream, "the descriptors do not fit the message");
  }
  auto pod = std::make_shared<Pod>();
  pod->uid = add.uid;
  pod->name = add.info.name;
  pod->ns = add.info.namespace_name;
  pod->service_account = add.info.service_account;
  pod->netns = MELTEMI_TRY(sys::Netns::from_fd(std::move(fds[0])));
  pod->netns_id = MELTEMI_TRY(pod->netns.id());
  const Settings& s = *shared_.settings;
  pod->redirected = fds.size() == 1;  // Istio's agent: REDIRECT rules and our own listeners
  pod->preserve_source = s.preserve_source != "false";
  pod->tunnel_mark = static_cast<uint32_t>(s.packet_mark);
  pod->source_mark =
      static_cast<uint32_t>(pod->redirected ? s.packet_mark : s.capture_mark);
  Entry entry{pod, {}};
  for (size_t i = 1; i < fds.size(); ++i) {
    MELTEMI_TRY(check_listener(fds[i].get()));
    entry.listeners.emplace_back(kind_of(add.fds[i]), std::move(fds[i]));
  }
  bool known = false;
  {
    std::lock_guard lock(mutex_);
    const auto it = pods_.find(add.uid);
    known = it != pods_.end() && it->second.pod->netns_id == pod->netns_id &&
            it->second.pod->redirected == pod->redirected;
  }
  return known ? replace_listeners(add.uid, std::move(entry.listeners)) : start(std::move(entry));
}

Status PodManager::replace_listeners(const std::string& uid,
                                     std::vector<std::pair<ListenerKind, UniqueFd>> fresh) {
  std::lock_guard lock(mutex_);
  Entry& entry = pods_.at(uid);
  bool changed = false;
  for (auto& [kind, fd] : fresh) {
    const auto mine = std::find_if(entry.listeners.begin(), entry.listeners.end(),
                                   [kind = kind](const auto& l) { return l.first == kind; });
    if (mine != entry.listeners.end() && same_socket(mine->second.get(), fd.get())) continue;
    if (mine != entry.listeners.end()) entry.listeners.erase(mine);
    entry.listeners.emplace_back(kind, std::move(fd));
    changed = true;
  }
  if (!changed) return {};
  scope.info("pod {}/{} has new listeners", entry.pod->ns, entry.pod->name);
  return accept_on_home(entry);
}

Status PodManager::accept_on_home(const Entry& entry) {
  std::vector<std::pair<ListenerKind, UniqueFd>> copies;
  for (const auto& [kind, fd] : entry.listeners) {
    copies.emplace_back(kind, MELTEMI_TRY(duplicate(fd.get())));
  }
  rt::Worker& worker = home(entry.pod->uid);
  ProxyWorker* proxy = shared_.workers[worker.index()].get();
  worker.post([proxy, pod = entry.pod, copies = std::move(copies)]() mutable {
    proxy->stop_listening(pod->uid);
    proxy->listen(pod, std::move(copies));
  });
  return {};
}

Status PodManager::add_own(const std::string& ns, const std::string& name,
                           const std::string& account) {
  const Settings& s = *shared_.settings;
  auto pod = std::make_shared<Pod>();
  pod->uid = pod->name = name;
  pod->ns = ns;
  pod->service_account = account;
  pod->redirected = true;
  pod->preserve_source = s.preserve_source == "true";
  pod->tunnel_mark = pod->preserve_source ? static_cast<uint32_t>(s.packet_mark) : 0;
  pod->source_mark = static_cast<uint32_t>(s.packet_mark);
  return start(Entry{pod, {}});
}

Status PodManager::start(Entry entry) {
  const PodPtr pod = entry.pod;
  for (const ListenerKind kind :
       {ListenerKind::kOutbound, ListenerKind::kInbound, ListenerKind::kHbone}) {
    const bool have = std::any_of(entry.listeners.begin(), entry.listeners.end(),
                                  [&](const auto& l) { return l.first == kind; });
    if (have || !pod->redirected) continue;
    auto fd = pod->listen(kind, shared_.settings->ipv6);
    if (!fd && shared_.settings->ipv6) fd = pod->listen(kind, false);  // IPv6 may be off in there
    if (!fd) return fail(fd.error());
    entry.listeners.emplace_back(kind, *std::move(fd));
  }
  remove(pod->uid);  // the same uid in another namespace
  MELTEMI_TRY(accept_on_home(entry));
  std::lock_guard lock(mutex_);
  pods_.insert_or_assign(pod->uid, std::move(entry));
  active_.set(static_cast<double>(pods_.size()));
  started_.add(1);
  scope.info("serving pod {}/{} (uid {})", pod->ns, pod->name, pod->uid);
  return {};
}

void PodManager::remove(const std::string& uid) {
  Entry entry;
  {
    std::lock_guard lock(mutex_);
    waiting_.erase(uid);
    pending_.set(static_cast<double>(waiting_.size()));
    const auto it = pods_.find(uid);
    if (it == pods_.end()) return;
    entry = std::move(it->second);
    pods_.erase(it);
    active_.set(static_cast<double>(pods_.size()));
    stopped_.add(1);
  }
  end(entry);
}

void PodManager::end(const Entry& entry) {
  const PodPtr pod = entry.pod;
  scope.info("pod {}/{} (uid {}) is served no more", pod->ns, pod->name, pod->uid);
  ProxyWorker* at_home = shared_.workers[home(pod->uid).index()].get();
  home(pod->uid).post([at_home, uid = pod->uid] { at_home->stop_listening(uid); });
  for (size_t i = 0; i < shared_.pool->size(); ++i) {
    ProxyWorker* proxy = shared_.workers[i].get();
    shared_.pool->worker(i).post([proxy, pod] { proxy->remove_pod(pod); });
  }
}

void PodManager::keep_only(const std::set<std::string>& keep) {
  for (const std::string& uid : uids()) {
    if (!keep.contains(uid)) remove(uid);
  }
  std::lock_guard lock(mutex_);
  std::erase_if(waiting_, [&](const std::string& uid) { return !keep.contains(uid); });
  pending_.set(static_cast<double>(waiting_.size()));
}

bool PodManager::has(const std::string& uid) const {
  std::lock_guard lock(mutex_);
  return pods_.contains(uid);
}

std::vector<std::string> PodManager::uids() const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (const auto& [uid, entry] : pods_) out.push_back(uid);
  return out;
}

std::vector<std::pair<ListenerKind, UniqueFd>> PodManager::listeners(const std::string& uid) const {
  std::lock_guard lock(mutex_);
  std::vector<std::pair<ListenerKind, UniqueFd>> out;
  const auto it = pods_.find(uid);
  if (it == pods_.end()) return out;
  for (const auto& [kind, fd] : it->second.listeners) {
    if (auto copy = duplicate(fd.get())) out.emplace_back(kind, *std::move(copy));
  }
  return out;
}

PodPtr PodManager::next_after(const std::string& uid) const {
  std::lock_guard lock(mutex_);
  if (pods_.empty()) return nullptr;
  const auto it = pods_.upper_bound(uid);
  return (it == pods_.end() ? pods_.begin() : it)->second.pod;
}

PodPtr PodManager::find(const std::string& uid) const {
  std::lock_guard lock(mutex_);
  const auto it = pods_.find(uid);
  return it == pods_.end() ? nullptr : it->second.pod;
}

std::optional<UniqueFd> PodManager::listener(const std::string& uid, ListenerKind kind) const {
  for (auto& [k, fd] : listeners(uid)) {
    if (k == kind) return std::move(fd);
  }
  return std::nullopt;
}

std::vector<PodManager::Row> PodManager::rows() const {
  std::lock_guard lock(mutex_);
  std::vector<Row> out;
  for (const auto& [uid, e] : pods_) {
    out.push_back({uid, e.pod->ns, e.pod->name, e.pod->service_account});
  }
  return out;
}

void PodManager::stop_listening() {
  std::lock_guard lock(mutex_);
  for (auto& [uid, entry] : pods_) entry.listeners.clear();
}

}  // namespace meltemi::ztunnel
