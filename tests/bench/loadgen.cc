// Load generator and echo/sink server for the benchmarks: one thread, epoll, closed loop. It is the
// yardstick's hand, so it must stay the same for every peer and must never know which peer it talks
// to. The driver reads its stdout: "start" when the warm-up is over, "end" when the window closes,
// then one JSON line. The driver takes CPU readings of the peers at those two lines.
//
//   meltemi-loadgen server ADDRESS ECHO_PORT SINK_PORT
//   meltemi-loadgen rr   ADDRESS PORT --connections N --bytes B --seconds S [--warmup S]
//   meltemi-loadgen bulk ADDRESS PORT --connections N --seconds S
//   meltemi-loadgen crr  ADDRESS PORT --connections N --bytes B --seconds S
//   meltemi-loadgen idle ADDRESS PORT --connections N --seconds S
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/fd.h"

namespace meltemi {
namespace {

constexpr size_t kChunk = 256 * 1024;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
  std::exit(1);
}

int make_socket(const SocketAddress& to) {
  const int fd = socket(to.ip.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                        IPPROTO_TCP);
  if (fd < 0) die("socket");
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

int listen_on(const SocketAddress& at) {
  const int fd = make_socket(at);
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_storage storage;
  const socklen_t length = at.to_sockaddr(storage);
  if (bind(fd, reinterpret_cast<sockaddr*>(&storage), length) != 0) die("bind");
  if (listen(fd, 4096) != 0) die("listen");
  return fd;
}

// --- server --------------------------------------------------------------------------------------

struct Peer {
  UniqueFd fd;
  bool echo = false;
  std::string unsent;  // echo only; bounded by one chunk since reading stops while it is not empty
};

class Server {
 public:
  Server(const IpAddress& ip, uint16_t echo, uint16_t sink)
      : epoll_(epoll_create1(EPOLL_CLOEXEC)),
        echo_(listen_on({ip, echo})),
        sink_(listen_on({ip, sink})),
        buffer_(kChunk) {
    watch(echo_.get(), EPOLLIN, EPOLL_CTL_ADD);
    watch(sink_.get(), EPOLLIN, EPOLL_CTL_ADD);
  }

  void run() {
    std::puts("ready");
    std::fflush(stdout);
    epoll_event events[256];
    for (;;) {
      const int n = epoll_wait(epoll_.get(), events, 256, -1);
      if (n < 0 && errno != EINTR) die("epoll_wait");
      for (int i = 0; i < n; ++i) {
        const int fd = events[i].data.fd;
        if (fd == echo_.get() || fd == sink_.get())
          accept_all(fd, fd == echo_.get());
        else
          serve(fd);
      }
    }
  }

 private:
  void watch(int fd, uint32_t mask, int op) {
    epoll_event event{mask, {.fd = fd}};
    if (epoll_ctl(epoll_.get(), op, fd, &event) != 0) die("epoll_ctl");
  }

  void accept_all(int listener, bool echo) {
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      const int one = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      auto peer = std::make_unique<Peer>();
      peer->fd.reset(fd);
      peer->echo = echo;
      peers_[fd] = std::move(peer);
      watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
  }

  void serve(int fd) {
    const auto it = peers_.find(fd);
    if (it == peers_.end()) return;
    Peer& peer = *it->second;
    if (!peer.unsent.empty() && !flush(peer)) return;
    for (int turn = 0; turn < 8; ++turn) {
      const ssize_t n = recv(fd, buffer_.data(), buffer_.size(), 0);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        peers_.erase(it);  // closes
        return;
      }
      if (!peer.echo) continue;
      const ssize_t sent = send(fd, buffer_.data(), static_cast<size_t>(n), MSG_NOSIGNAL);
      const size_t done = sent < 0 ? 0 : static_cast<size_t>(sent);
      if (done < static_cast<size_t>(n)) {
        peer.unsent.assign(buffer_.data() + done, static_cast<size_t>(n) - done);
        watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
        return;
      }
      if (static_cast<size_t>(n) < buffer_.size()) return;
    }
  }

  bool flush(Peer& peer) {
    const ssize_t sent = send(peer.fd.get(), peer.unsent.data(), peer.unsent.size(), MSG_NOSIGNAL);
    if (sent > 0) peer.unsent.erase(0, static_cast<size_t>(sent));
    if (!peer.unsent.empty()) return false;
    watch(peer.fd.get(), EPOLLIN, EPOLL_CTL_MOD);
    return true;
  }

  UniqueFd epoll_, echo_, sink_;
  std::vector<char> buffer_;
  std::map<int, std::unique_ptr<Peer>> peers_;
};

// --- client --------------------------------------------------------------------------------------

struct Options {
  SocketAddress to;
  int64_t connections = 1, bytes = 64;
  double seconds = 2, warmup = 0.5;
};

struct Window {
  explicit Window(const Options& o)
      : begin(MonoClock::now() + Duration(static_cast<int64_t>(o.warmup * 1e9))),
        end(begin + Duration(static_cast<int64_t>(o.seconds * 1e9))) {}
  // True while the run goes on. Prints the two marks when their time comes.
  bool open(MonoTime now) {
    if (!started && now >= begin) {
      started = true;
      started_at = now;
      std::puts("start");
      std::fflush(stdout);
    }
    if (now < end) return true;
    ended_at = now;
    std::puts("end");
    std::fflush(stdout);
    return false;
  }
  double elapsed() const { return std::chrono::duration<double>(ended_at - started_at).count(); }
  MonoTime begin, end, started_at, ended_at;
  bool started = false;
};

struct Call {
  UniqueFd fd;
  MonoTime sent_at;
  int64_t to_send = 0, to_receive = 0;
};

class Client {
 public:
  explicit Client(Options options)
      : o_(options), epoll_(epoll_create1(EPOLL_CLOEXEC)), buffer_(kChunk, 'x') {}

  void open(Call& call) {
    call.fd.reset(make_socket(o_.to));
    sockaddr_storage storage;
    const socklen_t length = o_.to.to_sockaddr(storage);
    if (connect(call.fd.get(), reinterpret_cast<sockaddr*>(&storage), length) != 0 &&
        errno != EINPROGRESS)
      die("connect");
    epoll_event event{EPOLLOUT, {.ptr = &call}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, call.fd.get(), &event) != 0) die("epoll_ctl");
  }

  void want(Call& call, uint32_t mask) {
    epoll_event event{mask, {.ptr = &call}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, call.fd.get(), &event) != 0) die("epoll_ctl");
  }

  void check(Call& call) {
    int err = 0;
    socklen_t size = sizeof err;
    getsockopt(call.fd.get(), SOL_SOCKET, SO_ERROR, &err, &size);
    if (err != 0) {
      errno = err;
      die("connection");
    }
  }

  // Waits for all connections to be established; the RR and idle modes count from there.
  void connect_all(std::vector<Call>& calls) {
    size_t open_calls = 0;
    for (Call& call : calls) open(call);
    epoll_event events[256];
    while (open_calls < calls.size()) {
      const int n = epoll_wait(epoll_.get(), events, 256, 10000);
      if (n <= 0) {
        errno = ETIMEDOUT;
        die("connecting");
      }
      for (int i = 0; i < n; ++i) {
        Call& call = *static_cast<Call*>(events[i].data.ptr);
        check(call);
        want(call, EPOLLIN);
        ++open_calls;
      }
    }
  }

  void send_request(Call& call, MonoTime now) {
    call.sent_at = now;
    call.to_receive = o_.bytes;
    const ssize_t n =
        send(call.fd.get(), buffer_.data(), static_cast<size_t>(o_.bytes), MSG_NOSIGNAL);
    if (n != o_.bytes) die("send of a request");
  }

  // Returns true when the whole echo is there.
  bool receive(Call& call) {
    const ssize_t n = recv(call.fd.get(), buffer_.data(), buffer_.size(), 0);
    if (n < 0 && errno == EAGAIN) return false;
    if (n <= 0) {
      if (n == 0) errno = ECONNRESET;
      die("recv of an answer");
    }
    call.to_receive -= n;
    return call.to_receive <= 0;
  }

  void rr() {
    std::vector<Call> calls(static_cast<size_t>(o_.connections));
    connect_all(calls);
    Window window(o_);
    for (Call& call : calls) send_request(call, MonoClock::now());
    epoll_event events[256];
    MonoTime now = MonoClock::now();
    while (window.open(now)) {
      const int n = epoll_wait(epoll_.get(), events, 256, 5000);
      if (n == 0) {
        errno = ETIMEDOUT;
        die("no answer in 5 s");
      }
      now = MonoClock::now();
      for (int i = 0; i < n; ++i) {
        Call& call = *static_cast<Call*>(events[i].data.ptr);
        if (!receive(call)) continue;
        if (window.started) record(now - call.sent_at);
        send_request(call, now);
      }
    }
    report("requests", static_cast<double>(latencies_.size()), window);
  }

  void crr() {
    std::vector<Call> calls(static_cast<size_t>(o_.connections));
    for (Call& call : calls) {
      call.sent_at = MonoClock::now();
      call.to_send = o_.bytes;
      open(call);
    }
    Window window(o_);
    epoll_event events[256];
    MonoTime now = MonoClock::now();
    while (window.open(now)) {
      const int n = epoll_wait(epoll_.get(), events, 256, 5000);
      if (n == 0) {
        errno = ETIMEDOUT;
        die("no answer in 5 s");
      }
      now = MonoClock::now();
      for (int i = 0; i < n; ++i) {
        Call& call = *static_cast<Call*>(events[i].data.ptr);
        if (call.to_send > 0) {
          check(call);
          const MonoTime begun = call.sent_at;
          send_request(call, now);
          call.sent_at = begun;
          call.to_send = 0;
          want(call, EPOLLIN);
        } else if (receive(call)) {
          if (window.started) record(now - call.sent_at);
          call.fd.reset();
          call.sent_at = now;
          call.to_send = o_.bytes;
          open(call);
        }
      }
    }
    report("connections", static_cast<double>(latencies_.size()), window);
  }

  void bulk() {
    std::vector<Call> calls(static_cast<size_t>(o_.connections));
    connect_all(calls);
    for (Call& call : calls) want(call, EPOLLOUT);
    Window window(o_);
    double bytes = 0;
    epoll_event events[256];
    MonoTime now = MonoClock::now();
    while (window.open(now)) {
      const int n = epoll_wait(epoll_.get(), events, 256, 5000);
      if (n == 0) {
        errno = ETIMEDOUT;
        die("no progress in 5 s");
      }
      for (int i = 0; i < n; ++i) {
        Call& call = *static_cast<Call*>(events[i].data.ptr);
        const ssize_t sent = send(call.fd.get(), buffer_.data(), buffer_.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) die("send");
        if (sent > 0 && window.started) bytes += static_cast<double>(sent);
      }
      now = MonoClock::now();
    }
    report("bytes", bytes, window);
  }

  void idle() {
    std::vector<Call> calls(static_cast<size_t>(o_.connections));
    // In batches, so that no accept queue overflows.
    for (size_t at = 0; at < calls.size(); at += 128) {
      const size_t upto = std::min(calls.size(), at + 128);
      size_t done = 0;
      for (size_t i = at; i < upto; ++i) open(calls[i]);
      epoll_event events[256];
      while (done < upto - at) {
        const int n = epoll_wait(epoll_.get(), events, 256, 10000);
        if (n <= 0) {
          errno = ETIMEDOUT;
          die("idle connections");
        }
        for (int i = 0; i < n; ++i) {
          Call& call = *static_cast<Call*>(events[i].data.ptr);
          if (call.to_receive == 0 && call.to_send == 0) {
            // One round trip, so that the connection exists at both far ends.
            check(call);
            call.to_send = 1;
            send_request(call, MonoClock::now());
            want(call, EPOLLIN);
          } else if (receive(call)) {
            epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, call.fd.get(), nullptr);
            ++done;
          }
        }
      }
    }
    Window window(o_);
    while (window.open(MonoClock::now())) usleep(10000);
    report("connections", static_cast<double>(calls.size()), window);
  }

 private:
  void record(Duration latency) { latencies_.push_back(static_cast<float>(latency.count() / 1e3)); }

  void report(const char* unit, double count, const Window& window) {
    std::sort(latencies_.begin(), latencies_.end());
    const auto at = [&](double q) {
      return latencies_.empty() ? 0.0
                                : latencies_[static_cast<size_t>(q * static_cast<double>(latencies_.size() - 1))];
    };
    std::printf("{\"%s\": %.0f, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", unit, count,
                window.elapsed(), at(0.5), at(0.99));
    std::fflush(stdout);
  }

  Options o_;
  UniqueFd epoll_;
  std::vector<char> buffer_;
  std::vector<float> latencies_;
};

int usage() {
  std::fputs("usage: meltemi-loadgen server ADDRESS ECHO_PORT SINK_PORT\n"
             "       meltemi-loadgen rr|bulk|crr|idle ADDRESS PORT [--connections N] [--bytes B]\n"
             "                       [--seconds S] [--warmup S]\n",
             stderr);
  return 64;
}

int run(int argc, char** argv) {
  if (argc < 4) return usage();
  const std::string mode = argv[1];
  const auto ip = IpAddress::parse(argv[2]);
  if (!ip) return usage();
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGPIPE, SIG_IGN);
  const auto port = [&](int i) { return static_cast<uint16_t>(std::atoi(argv[i])); };
  if (mode == "server") {
    if (argc != 5) return usage();
    Server(*ip, port(3), port(4)).run();
    return 0;
  }
  Options o;
  o.to = {*ip, port(3)};
  for (int i = 4; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--connections") o.connections = std::atoll(argv[i + 1]);
    else if (flag == "--bytes") o.bytes = std::min<int64_t>(std::atoll(argv[i + 1]), kChunk);
    else if (flag == "--seconds") o.seconds = std::atof(argv[i + 1]);
    else if (flag == "--warmup") o.warmup = std::atof(argv[i + 1]);
    else return usage();
  }
  Client client(o);
  if (mode == "rr") client.rr();
  else if (mode == "bulk") client.bulk();
  else if (mode == "crr") client.crr();
  else if (mode == "idle") client.idle();
  else return usage();
  return 0;
}

}  // namespace
}  // namespace meltemi

int main(int argc, char** argv) { return meltemi::run(argc, argv); }
