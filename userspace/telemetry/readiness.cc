// See readiness.h.
#include "userspace/telemetry/readiness.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "userspace/base/log.h"

namespace meltemi::telemetry {
namespace {

log::Scope scope("readiness");

}  // namespace

void Readiness::pending(const std::string& task) {
  std::lock_guard lock(mutex_);
  pending_.insert(task);
}

void Readiness::done(const std::string& task) {
  std::lock_guard lock(mutex_);
  if (pending_.erase(task) && pending_.empty()) scope.info("all start-up tasks are done");
}

void Readiness::check(std::string name, Question ask) {
  std::lock_guard lock(mutex_);
  checks_[std::move(name)] = std::move(ask);
}

void Readiness::note(std::string name, Question ask) {
  std::lock_guard lock(mutex_);
  notes_[std::move(name)] = std::move(ask);
}

Readiness::Verdict Readiness::verdict() const {
  std::lock_guard lock(mutex_);
  Verdict out;
  if (!pending_.empty()) {
    out.text = fmt::format("not ready, pending: {}\n", fmt::join(pending_, ", "));
  }
  for (const auto& [name, ask] : checks_) {
    const std::string wrong = ask();
    if (!wrong.empty()) out.text += fmt::format("not ready, {}: {}\n", name, wrong);
  }
  out.ready = out.text.empty();
  if (out.ready) out.text = "ready\n";
  for (const auto& [name, ask] : notes_) {
    const std::string said = ask();
    if (!said.empty()) out.text += fmt::format("{}: {}\n", name, said);
  }
  return out;
}

AcceptQueue::AcceptQueue(int listening, std::function<uint64_t()> accepted)
    : fd_(::fcntl(listening, F_DUPFD_CLOEXEC, 0)), accepted_(std::move(accepted)) {}

std::string AcceptQueue::ask(MonoTime now) {
  // Of a listening socket the kernel reports the queue's length as unacked, its room as sacked.
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd_.get(), IPPROTO_TCP, TCP_INFO, &info, &length) != 0 ||
      info.tcpi_state != TCP_LISTEN) {
    return "it does not listen";
  }
  const uint64_t accepted = accepted_();
  std::lock_guard lock(mutex_);
  if (info.tcpi_unacked == 0 || accepted != last_accepted_ || moved_ == MonoTime{}) {
    last_accepted_ = accepted;
    moved_ = now;
    return {};
  }
  if (now - moved_ < kStands) return {};
  return fmt::format("{} connections wait and nobody has accepted one for {} s",
                     info.tcpi_unacked,
                     std::chrono::duration_cast<std::chrono::seconds>(now - moved_).count());
}

}  // namespace meltemi::telemetry
