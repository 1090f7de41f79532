// See listener.h.
#include "userspace/rt/listener.h"

#include "userspace/base/log.h"
#include "userspace/rt/socket_options.h"

#include <cstring>

namespace meltemi::rt {
namespace {
log::Scope scope("rt");
// After EMFILE and the like: time for connections to end.
constexpr Duration kRetryPause = std::chrono::milliseconds(100);
}  // namespace

Listener::Listener(Loop& loop, UniqueFd fd, OnAccept on_accept)
    : loop_(loop), fd_(std::move(fd)), on_accept_(std::move(on_accept)), retry_([this] { arm(); }) {
  // Accepted sockets inherit it; a listener that came from elsewhere may not have it.
  if (auto s = set_nodelay(fd_.get()); !s) scope.warn("listener: {}", s.error().detail);
  arm();
}

Listener::~Listener() {
  stop();
  loop_.close(std::move(fd_));
}

void Listener::stop() {
  if (op_) loop_.forget(op_);
  op_ = {};
  loop_.stop(retry_);
}

void Listener::arm() { op_ = loop_.accept(fd_.get(), *this); }

void Listener::on_complete(int32_t res, bool more) {
  if (!more) op_ = {};
  if (res < 0) {
    if (errors_++ == 0) scope.warn("accept: {} (errno {}); trying again", strerror(-res), -res);
    if (!more) loop_.start(retry_, loop_.now() + kRetryPause);
    return;
  }
  if (!more) arm();
  on_accept_(UniqueFd(res));  // may destroy this listener
}

}  // namespace meltemi::rt
