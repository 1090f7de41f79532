// Accepting and resting; see packet_listener.h.
#include "userspace/agent/packet_listener.h"

#include <sys/epoll.h>

#include "userspace/base/log.h"
#include "userspace/sys/packet.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("agent");

}  // namespace

PacketListener::~PacketListener() {
  loop_.cancel(rest_);
  if (listener_) loop_.unwatch(listener_.get());
}

Status PacketListener::listen(const std::string& path) {
  path_ = path;
  listener_ = MELTEMI_TRY(sys::listen_packets(path, 0600));
  return watch();
}

Status PacketListener::watch() {
  return loop_.watch(listener_.get(), EPOLLIN, [this](uint32_t) { accept(); });
}

void PacketListener::accept() {
  while (true) {
    Result<UniqueFd> fd = sys::accept_packets(listener_.get());
    if (fd) {
      if (std::exchange(troubled_, false)) scope.info("{} takes calls again", path_);
      accepted_(std::move(*fd));
      continue;
    }
    if (fd.error().reason == Reason::kNotFound) return;
    if (!std::exchange(troubled_, true))
      scope.error("{} takes no calls: {}; tried again", path_, fd.error().to_string());
    loop_.unwatch(listener_.get());
    rest_ = loop_.after(kAcceptRest, [this] {
      if (const Status watched = watch(); !watched) scope.error("{}", watched.error().to_string());
    });
    return;
  }
}

}  // namespace meltemi::agent
