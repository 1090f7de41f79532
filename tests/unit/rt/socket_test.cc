// Sockets: bytes arrive whole and in order in both reading modes, pausing holds a bounded amount,
// ends and resets are told apart.
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <random>
#include <thread>

#include "tests/unit/rt/backends.h"
#include "userspace/rt/socket.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::rt {
namespace {

struct Pair {
  UniqueFd client, server;
};
Pair tcp_pair() {
  auto listener = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto address = *local_address(listener->get());
  auto client = make_tcp_socket(address);
  sockaddr_storage storage;
  const socklen_t length = address.to_sockaddr(storage);
  EXPECT_EQ(connect(client->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  return {std::move(*client), UniqueFd(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC))};
}

uint64_t mix(uint64_t hash, ByteView bytes) {
  for (const uint8_t b : bytes) hash = (hash ^ b) * 0x100000001B3ull;
  return hash;
}

struct Sink final : SocketHandler {
  void on_socket_data(ByteSpan data) override {
    hash = mix(hash, data);
    bytes += data.size();
    largest = std::max(largest, data.size());
    // Both promises of the header: data and headroom are ours.
    std::memset(data.data() - kRecvHeadroom, 0xEE, kRecvHeadroom);
    std::memset(data.data(), 0xEE, data.size());
    if (on_bytes) on_bytes();
  }
  void on_socket_eof() override { ++eofs; }
  void on_socket_error(int e) override { error = e; }
  void on_socket_writable() override { ++writables; }
  uint64_t hash = 7, bytes = 0;
  size_t largest = 0;
  int eofs = 0, error = 0, writables = 0;
  std::function<void()> on_bytes;
};

class SocketTest : public BackendTest {};
MELTEMI_ALL_BACKENDS(SocketTest);

// Writes `total` pseudo-random bytes in random sizes from a thread; yields their hash.
struct Source {
  Source(int fd, size_t total, size_t max_piece)
      : thread([this, fd, total, max_piece] {
          std::mt19937_64 rng(42);
          std::vector<uint8_t> buffer(max_piece);
          for (size_t sent = 0; sent < total;) {
            const size_t n = std::min<size_t>(1 + rng() % max_piece, total - sent);
            for (size_t i = 0; i < n; i += 8) {
              const uint64_t v = rng();
              std::memcpy(&buffer[i], &v, std::min<size_t>(8, n - i));
            }
            hash = mix(hash, {buffer.data(), n});
            for (size_t at = 0; at < n;) {
              const ssize_t w = send(fd, buffer.data() + at, n - at, MSG_NOSIGNAL);
              if (w <= 0) return;
              at += static_cast<size_t>(w);
            }
            sent += n;
          }
          shutdown(fd, SHUT_WR);
        }) {}
  uint64_t hash = 7;
  std::thread thread;
};

TEST_P(SocketTest, BulkArrivesWhole) {
  Pair p = tcp_pair();
  Source source(p.client.get(), 48 << 20, 300'000);
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.server), sink);
  socket.resume();
  EXPECT_TRUE(run_until([&] { return sink.eofs > 0; }));
  source.thread.join();
  EXPECT_EQ(sink.bytes, 48u << 20);
  EXPECT_EQ(sink.hash, source.hash);
}

TEST_P(SocketTest, SmallMessagesArriveWhole) {
  Pair p = tcp_pair();
  Source source(p.client.get(), 1 << 20, 200);
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.server), sink);
  socket.resume();
  EXPECT_TRUE(run_until([&] { return sink.eofs > 0; }));
  source.thread.join();
  EXPECT_EQ(sink.hash, source.hash);
}

TEST_P(SocketTest, PauseAndResumeKeepOrderAndLoseNothing) {
  Pair p = tcp_pair();
  Source source(p.client.get(), 16 << 20, 100'000);
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.server), sink);
  FnTimer resume([&] { socket.resume(); });
  std::mt19937 rng(1);
  bool broken_pause = false;
  sink.on_bytes = [&] {
    broken_pause |= socket.paused();
    switch (rng() % 4) {
      case 0:
        socket.pause();
        socket.resume();
        break;
      case 1:
        socket.limit_read(1 + rng() % 100'000);
        break;
      case 2:
        socket.pause();
        loop().start(resume, loop().now() + std::chrono::microseconds(rng() % 500));
        break;
    }
  };
  socket.resume();
  EXPECT_TRUE(run_until([&] { return sink.eofs > 0; }));
  source.thread.join();
  EXPECT_FALSE(broken_pause);
  EXPECT_EQ(sink.bytes, 16u << 20);
  EXPECT_EQ(sink.hash, source.hash);
}

TEST_P(SocketTest, PausedSocketTakesLittle) {
  Pair p = tcp_pair();
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.server), sink);
  sink.on_bytes = [&] { socket.pause(); };
  socket.resume();
  std::vector<uint8_t> data(1 << 20, 'x');
  uint64_t sent = 0;
  for (int idle = 0; idle < 50;) {
    const ssize_t n = send(p.client.get(), data.data(), data.size(), MSG_DONTWAIT);
    if (n > 0) sent += static_cast<uint64_t>(n), idle = 0;
    else ++idle;
    loop().run_once(MonoClock::now() + std::chrono::milliseconds(1));
  }
  EXPECT_GT(sent, 0u);
  EXPECT_LE(sink.bytes, 256u * 1024);
  p.client.reset();
  sink.on_bytes = nullptr;
  EXPECT_EQ(sink.eofs, 0);
  socket.resume();
  EXPECT_TRUE(run_until([&] { return sink.eofs > 0; }));
  EXPECT_EQ(sink.bytes, sent);
}

TEST_P(SocketTest, ResetIsAnErrorAndFinIsNot) {
  for (const bool reset : {false, true}) {
    Pair p = tcp_pair();
    Sink sink;
    Socket socket;
    socket.open(loop(), std::move(p.server), sink);
    socket.resume();
    loop().run_once(MonoTime{});
    ASSERT_EQ(send(p.client.get(), "hello", 5, 0), 5);
    EXPECT_TRUE(run_until([&] { return sink.bytes == 5; }));
    if (reset) set_reset_on_close(p.client.get());
    p.client.reset();
    EXPECT_TRUE(run_until([&] { return sink.eofs || sink.error; }));
    EXPECT_EQ(sink.eofs, reset ? 0 : 1);
    EXPECT_EQ(sink.error, reset ? ECONNRESET : 0);
  }
}

TEST_P(SocketTest, PausedSocketHearsOfAReset) {
  for (const size_t bytes : {size_t{0}, size_t{300}, size_t{400'000}}) {
    Pair p = tcp_pair();
    Sink sink;
    Socket socket;
    socket.open(loop(), std::move(p.server), sink);
    sink.on_bytes = [&] { socket.pause(); };
    socket.resume();
    loop().run_once(MonoTime{});
    if (bytes == 0) {
      socket.pause();
    } else {
      const std::vector<uint8_t> data(bytes, 'x');
      ASSERT_GT(send(p.client.get(), data.data(), bytes, MSG_DONTWAIT), 0);
      EXPECT_TRUE(run_until([&] { return socket.paused(); }));
    }
    for (int i = 0; i < 5; ++i) loop().run_once(MonoClock::now() + std::chrono::milliseconds(1));
    EXPECT_EQ(sink.error, 0);
    set_reset_on_close(p.client.get());
    p.client.reset();
    EXPECT_TRUE(run_until([&] { return sink.error != 0; })) << bytes;
    EXPECT_EQ(sink.error, ECONNRESET);
    EXPECT_EQ(sink.eofs, 0);
  }
}

TEST_P(SocketTest, CloseByResetReachesThePeer) {
  Pair p = tcp_pair();
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.server), sink);
  socket.resume();
  loop().run_once(MonoTime{});
  socket.close(true);
  loop().run_once(MonoTime{});
  loop().run_once(MonoTime{});
  char c;
  EXPECT_EQ(recv(p.client.get(), &c, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST_P(SocketTest, WritableComesWhenThePeerReads) {
  Pair p = tcp_pair();
  Sink sink;
  Socket socket;
  socket.open(loop(), std::move(p.client), sink);
  std::vector<uint8_t> data(1 << 20, 'y');
  while (socket.send(data) > 0) {
  }
  socket.want_writable();
  loop().run_once(MonoClock::now() + std::chrono::milliseconds(5));
  EXPECT_EQ(sink.writables, 0);
  std::thread reader([&] {
    std::vector<char> b(1 << 20);
    while (recv(p.server.get(), b.data(), b.size(), 0) > 0) {
    }
  });
  EXPECT_TRUE(run_until([&] { return sink.writables == 1; }));
  socket.close();
  loop().run_once(MonoTime{});
  loop().run_once(MonoTime{});
  reader.join();
}

TEST_P(SocketTest, ManySocketsShareTheBuffers) {
  // More bulk senders at once than there are provided buffers.
  constexpr int kSockets = 100;
  std::vector<Pair> pairs;
  std::vector<std::unique_ptr<Sink>> sinks;
  std::vector<std::unique_ptr<Socket>> sockets;
  std::vector<uint8_t> data(60'000, 'z');
  for (int i = 0; i < kSockets; ++i) {
    pairs.push_back(tcp_pair());
    sinks.push_back(std::make_unique<Sink>());
    sockets.push_back(std::make_unique<Socket>());
    sockets[i]->open(loop(), std::move(pairs[i].server), *sinks[i]);
    sockets[i]->resume();
  }
  loop().run_once(MonoTime{});
  for (int round = 0; round < 5; ++round)
    for (auto& p : pairs)
      ASSERT_EQ(send(p.client.get(), data.data(), data.size(), 0), 60'000);
  for (auto& p : pairs) p.client.reset();
  EXPECT_TRUE(run_until([&] {
    return std::all_of(sinks.begin(), sinks.end(), [](auto& s) { return s->eofs == 1; });
  }));
  for (auto& s : sinks) EXPECT_EQ(s->bytes, 300'000u);
}

TEST_P(SocketTest, HandlerMayDestroyTheSocketAnywhere) {
  for (int round = 0; round < 40; ++round) {
    Pair p = tcp_pair();
    Sink sink;
    auto socket = std::make_unique<Socket>();
    socket->open(loop(), std::move(p.server), sink);
    sink.on_bytes = [&, left = round % 4]() mutable {
      if (left-- == 0) socket.reset();
    };
    socket->resume();
    std::vector<uint8_t> data(50'000 * static_cast<size_t>(round % 3 + 1), 'q');
    std::thread writer([&] {
      for (int i = 0; i < 8; ++i) send(p.client.get(), data.data(), data.size(), MSG_NOSIGNAL);
    });
    EXPECT_TRUE(run_until([&] { return !socket || sink.error || sink.bytes == data.size() * 8; }));
    socket.reset();
    loop().run_once(MonoTime{});
    loop().run_once(MonoTime{});
    writer.join();
  }
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  getsockopt(fd, level, name, &value, &length);
  return value;
}

// ztunnel sets them once on a pod's listener instead of on every connection.
TEST(SocketOptions, AcceptedSocketsInheritKeepaliveAndReceiveBuffer) {
  auto listener = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  ASSERT_TRUE(listener);
  ASSERT_TRUE(set_keepalive(listener->get(),
                            {std::chrono::seconds(77), std::chrono::seconds(33), 5}));
  ASSERT_TRUE(limit_receive_buffer(listener->get(), 100'000));
  const auto address = *local_address(listener->get());
  auto client = make_tcp_socket(address);
  sockaddr_storage storage;
  const socklen_t length = address.to_sockaddr(storage);
  ASSERT_EQ(connect(client->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
  const UniqueFd fd(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_EQ(option(fd.get(), SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(option(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE), 77);
  EXPECT_EQ(option(fd.get(), IPPROTO_TCP, TCP_KEEPINTVL), 33);
  EXPECT_EQ(option(fd.get(), IPPROTO_TCP, TCP_KEEPCNT), 5);
  EXPECT_EQ(option(fd.get(), SOL_SOCKET, SO_RCVBUF), 200'000);  // the kernel doubles it

  // A peer that is not read from gets rid of about that much and no more.
  const std::vector<uint8_t> data(4'000'000, 'x');
  const int small = 4096;
  setsockopt(client->get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  size_t taken = 0;
  for (ssize_t n; (n = send(client->get(), data.data(), data.size(), MSG_DONTWAIT)) > 0;)
    taken += static_cast<size_t>(n);
  EXPECT_LT(taken, 400'000u);
}

}  // namespace
}  // namespace meltemi::rt
