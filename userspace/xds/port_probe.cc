// See port_probe.h.
#include "userspace/xds/port_probe.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include "userspace/rt/socket_options.h"

namespace meltemi::xds {
namespace {

constexpr std::string_view kHello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";  // RFC 9113 section 3.4

SocketAddress reachable(const SocketAddress& port) {
  if (port.ip == *IpAddress::parse("0.0.0.0")) return {*IpAddress::parse("127.0.0.1"), port.port};
  if (port.ip == *IpAddress::parse("::")) return {*IpAddress::parse("::1"), port.port};
  return port;
}

}  // namespace

PortProbe::PortProbe(rt::Loop& loop, PortAnswers& answers)
    : loop_(loop),
      answers_(answers),
      port_(reachable(answers.port())),
      next_([this] { begin(); }),
      patience_([this] { end(); }) {
  loop_.start(next_, loop_.now());
}

PortProbe::~PortProbe() { end(); }

void PortProbe::begin() {
  loop_.start(next_, loop_.now() + kEvery);
  if (fd_) return;
  auto fd = rt::make_tcp_socket(port_);
  if (!fd) return;  // out of descriptors, say: no answer either
  fd_ = std::move(*fd);
  connected_ = false;
  op_ = loop_.connect(fd_.get(), port_, *this);
  // Known at once: on loopback the acceptor may see the connection before its completion comes here.
  if (const auto self = rt::local_address(fd_.get())) self_ = *self;
  loop_.start(patience_, loop_.now() + PortAnswers::kPatience);
}

void PortProbe::end() {
  if (op_) loop_.forget(std::exchange(op_, {}));
  loop_.stop(patience_);
  self_.reset();
  if (!fd_) return;
  rt::set_reset_on_close(fd_.get());  // no TIME-WAIT every second
  loop_.close(std::move(fd_));
}

void PortProbe::refused(const SocketAddress& client) {
  if (self_ == client) end();
}

void PortProbe::on_complete(int32_t res, bool /*more*/) {
  op_ = {};
  if (!connected_) return res < 0 ? end() : say_hello();
  answers_.answered(MonoClock::now());
  end();
}

void PortProbe::say_hello() {
  connected_ = true;
  if (::send(fd_.get(), kHello.data(), kHello.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) return end();
  op_ = loop_.poll(fd_.get(), POLLIN, *this);
}

std::string PortAnswers::trouble(MonoTime now) const {
  const MonoTime answered{Duration(last_.load())};
  if (now - answered <= kPatience) return {};
  return fmt::format("port {} has not answered for {} s", port_.to_string(),
                     std::chrono::duration_cast<std::chrono::seconds>(now - answered).count());
}

}  // namespace meltemi::xds
