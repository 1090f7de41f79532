// Packets with descriptors over SOCK_SEQPACKET: what is received is what was sent, and nothing
// leaks.
#include "userspace/sys/packet.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <memory>

namespace meltemi::sys {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Pair {
  UniqueFd a, b;
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    a.reset(fds[0]);
    b.reset(fds[1]);
  }
};

int open_descriptors() {
  int n = 0;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir("/proc/self/fd"), ::closedir);
  while (::readdir(dir.get()) != nullptr) ++n;
  return n;
}

TEST(Packet, CarriesBytesAndDescriptorsInOrder) {
  Pair pair;
  const UniqueFd null(::open("/dev/null", O_RDONLY));
  const UniqueFd zero(::open("/dev/zero", O_RDONLY));
  const int fds[] = {null.get(), zero.get()};
  ASSERT_TRUE(send_packet(pair.a.get(), as_bytes("hello"), fds, seconds(1)));
  auto got = receive_packet(pair.b.get(), seconds(1));
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(got->bytes, "hello");
  ASSERT_EQ(got->fds.size(), 2u);
  struct stat want{}, have{};
  ::fstat(zero.get(), &want);
  ::fstat(got->fds[1].get(), &have);
  EXPECT_EQ(have.st_rdev, want.st_rdev);
  EXPECT_NE(::fcntl(got->fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Packet, KeepsBoundariesBetweenPackets) {
  Pair pair;
  ASSERT_TRUE(send_packet(pair.a.get(), as_bytes("one"), {}, seconds(1)));
  ASSERT_TRUE(send_packet(pair.a.get(), as_bytes("two"), {}, seconds(1)));
  EXPECT_EQ(receive_packet(pair.b.get(), seconds(1))->bytes, "one");
  EXPECT_EQ(receive_packet(pair.b.get(), seconds(1))->bytes, "two");
}

TEST(Packet, TooLargeIsAnErrorAndClosesItsDescriptors) {
  Pair pair;
  const UniqueFd null(::open("/dev/null", O_RDONLY));
  const int fds[] = {null.get()};
  const int before = open_descriptors();
  ASSERT_TRUE(send_packet(pair.a.get(), as_bytes(std::string(100, 'x')), fds, seconds(1)));
  const auto got = receive_packet(pair.b.get(), seconds(1), 99);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().reason, Reason::kBadRequest);
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Packet, TellsEmptyQueueTimeoutAndHangUpApart) {
  Pair pair;
  EXPECT_EQ(receive_packet(pair.b.get(), Duration::zero()).error().reason, Reason::kNotFound);
  EXPECT_EQ(receive_packet(pair.b.get(), milliseconds(20)).error().reason, Reason::kRequestTimeout);
  pair.a.reset();
  EXPECT_EQ(receive_packet(pair.b.get(), seconds(1)).error().reason, Reason::kServerClosedEarly);
  EXPECT_EQ(send_packet(pair.b.get(), as_bytes("x"), {}, seconds(1)).error().reason,
            Reason::kConnectReset);
}

TEST(Packet, SendGivesUpWhenThePeerDoesNotRead) {
  Pair pair;
  const std::string block(60000, 'x');
  Status status;
  for (int i = 0; i < 1000 && status; ++i)
    status = send_packet(pair.a.get(), as_bytes(block), {}, milliseconds(20));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().reason, Reason::kRequestTimeout);
}

TEST(Packet, ListenerKnowsWhoConnected) {
  const std::string path = "/tmp/meltemi-packet-" + std::to_string(::getpid()) + ".sock";
  auto listener = listen_packets(path, 0600);
  ASSERT_TRUE(listener) << listener.error().to_string();
  EXPECT_EQ(accept_packets(listener->get()).error().reason, Reason::kNotFound);
  auto client = connect_packets(path);
  ASSERT_TRUE(client);
  auto server = accept_packets(listener->get());
  ASSERT_TRUE(server);
  const auto who = peer_credentials(server->get());
  ASSERT_TRUE(who);
  EXPECT_EQ(who->pid, ::getpid());
  EXPECT_EQ(who->uid, ::getuid());
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  // A socket file that a crash left behind is no obstacle.
  EXPECT_TRUE(listen_packets(path, 0600));
  ::unlink(path.c_str());
}

TEST(Packet, RefusesAPathThatDoesNotFit) {
  const auto got = listen_packets(std::string(200, 'a'), 0600);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().reason, Reason::kBadConfig);
}

}  // namespace
}  // namespace meltemi::sys
