// The agent's keeping of keys against ztunnels that this test plays packet by packet.
#include "userspace/agent/key_keeper.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "userspace/sys/packet.h"
#include "userspace/sys/sealed_file.h"

namespace meltemi::agent {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
namespace wire = codec::keys;

WallTime in(hours time) {
  return std::chrono::floor<seconds>(std::chrono::system_clock::now()) + time;
}

class KeyKeeperTest : public ::testing::Test {
 protected:
  KeyKeeperTest() : loop(*Loop::create()) {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    std::string name = "/tmp/meltemi-keys-XXXXXX";
    directory = ::mkdtemp(name.data());
    restart();
  }
  ~KeyKeeperTest() override {
    keeper.reset();
    ::unlink(path().c_str());
    ::rmdir(directory.c_str());
  }
  std::string path() const { return directory + "/keys.sock"; }
  // The agent's process ends, and another begins.
  void restart() {
    keeper = std::make_unique<KeyKeeper>(*loop);
    ASSERT_TRUE(keeper->listen(path()));
  }
  template <typename F>
  void with_client(F client) {
    std::thread thread([&] {
      client();
      loop->post([this] { loop->stop(); });
    });
    loop->run();
    thread.join();
  }

  static void send(int socket, const wire::Packet& packet, std::vector<int> fds = {}) {
    EXPECT_TRUE(sys::send_packet(socket, as_bytes(wire::encode(packet)), fds, seconds(60)));
  }
  static void keep(int socket, const std::string& identity, const std::string& secret, WallTime until) {
    const UniqueFd file = *sys::seal("test", secret);
    send(socket, wire::Kept{identity, until}, {file.get()});
  }
  // What a ztunnel that says hello is given.
  std::map<std::string, std::string> given(UniqueFd* socket) {
    *socket = *sys::connect_packets(path());
    send(socket->get(), wire::Hello{});
    std::map<std::string, std::string> out;
    for (;;) {
      auto packet = sys::receive_packet(socket->get(), seconds(60), wire::kMaxPacket);
      if (!packet) return {{"error", packet.error().detail}};
      const auto message = wire::decode(as_bytes(packet->bytes), packet->fds.size());
      const auto* kept = message ? std::get_if<wire::Kept>(&*message) : nullptr;
      if (kept == nullptr) return out;
      out[kept->identity] = *sys::read_sealed(packet->fds[0].get(), kMaxKeptKeyBytes);
    }
  }

  std::unique_ptr<Loop> loop;
  std::unique_ptr<KeyKeeper> keeper;
  std::string directory;
};

using Keys = std::map<std::string, std::string>;

TEST_F(KeyKeeperTest, AZtunnelThatComesBackGetsItsKeysAndAnOlderOneTakesNoneAway) {
  with_client([&] {
    UniqueFd first, second, third;
    EXPECT_EQ(given(&first), Keys());
    keep(first.get(), "spiffe://td/a", "key a", in(hours(1)));
    keep(first.get(), "spiffe://td/b", "key b", in(hours(1)));
    keep(first.get(), "spiffe://td/b", "key b, renewed", in(hours(2)));
    keep(first.get(), "spiffe://td/b", "key b, older", in(hours(1)));
    keep(first.get(), "spiffe://td/expired", "dead", in(-hours(1)));
    // An order of packets of one connection is kept, so a second connection after an answer sees all.
    while (given(&second).size() != 2) {}
    EXPECT_EQ(given(&third), (Keys{{"spiffe://td/a", "key a"}, {"spiffe://td/b", "key b, renewed"}}));
    second.reset();
    send(first.get(), wire::Forgotten{"spiffe://td/a"});  // it drains
    send(third.get(), wire::Forgotten{"spiffe://td/b"});
    for (UniqueFd again;; again.reset()) {
      if (const Keys left = given(&again); left.size() == 1) {
        EXPECT_EQ(left, (Keys{{"spiffe://td/a", "key a"}}));
        break;
      }
    }
  });
}

TEST_F(KeyKeeperTest, AKeyThatCanStillBeChangedIsRefused) {
  with_client([&] {
    UniqueFd socket;
    EXPECT_EQ(given(&socket), Keys());
    const UniqueFd open(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(::write(open.get(), "key", 3), 3);
    send(socket.get(), wire::Kept{"spiffe://td/open", in(hours(1))}, {open.get()});
    keep(socket.get(), "spiffe://td/large", std::string(kMaxKeptKeyBytes + 1, 'k'), in(hours(1)));
    keep(socket.get(), "spiffe://td/good", "key", in(hours(1)));
    for (UniqueFd other; given(&other).empty(); other.reset()) {}
  });
  EXPECT_EQ(keeper->kept(), 1u);
  EXPECT_EQ(keeper->refused(), 2u);
}

TEST_F(KeyKeeperTest, ManyKeysAreGivenToASlowReader) {
  with_client([&] {
    UniqueFd socket, slow;
    EXPECT_EQ(given(&socket), Keys());
    for (size_t i = 0; i < kMaxKeptKeys + 10; ++i) {
      keep(socket.get(), "spiffe://td/" + std::to_string(i), "key", in(hours(1)));
    }
    while (given(&slow).size() != kMaxKeptKeys) slow.reset();
  });
  EXPECT_EQ(keeper->kept(), kMaxKeptKeys);
  EXPECT_EQ(keeper->refused(), 10u);
}

TEST_F(KeyKeeperTest, AStrangePacketEndsItsConnectionAlone) {
  with_client([&] {
    UniqueFd good;
    EXPECT_EQ(given(&good), Keys());
    const UniqueFd bad = *sys::connect_packets(path());
    EXPECT_TRUE(sys::send_packet(bad.get(), as_bytes("\xff\xff"), {}, seconds(60)));
    EXPECT_FALSE(sys::receive_packet(bad.get(), seconds(60)));
    keep(good.get(), "spiffe://td/a", "key", in(hours(1)));
    for (UniqueFd other; given(&other).empty(); other.reset()) {}
  });
}

}  // namespace
}  // namespace meltemi::agent
