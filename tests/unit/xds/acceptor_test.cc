// What a port's readiness rests on: that who comes by the front door gets through it.
#include "userspace/xds/acceptor.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "userspace/rt/socket_options.h"

namespace meltemi::xds {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const SocketAddress kAnyPort = *SocketAddress::parse("127.0.0.1:0");

struct AcceptorTest : ::testing::Test {
  explicit AcceptorTest(rt::AdmissionOptions options = {}) : door(options) {}
  void start(Acceptor::Give give, const char* address = "127.0.0.1:0") {
    ASSERT_TRUE(acceptor.listen(*SocketAddress::parse(address)));
    began = MonoClock::now();
    ASSERT_TRUE(acceptor.start({std::move(give)}, [] {}));
  }
  static bool comes_true(const std::function<bool()>& condition) {
    for (const auto end = MonoClock::now() + seconds(60); MonoClock::now() < end;) {
      if (condition()) return true;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return false;
  }
  uint64_t outcomes(rt::Outcome outcome) const {
    return door.rows()[0].outcomes[static_cast<size_t>(outcome)];
  }
  // Would it have been silent since it began, this much more than its patience?
  std::string trouble() const {
    return acceptor.trouble(began + PortAnswers::kPatience + milliseconds(500));
  }

  rt::Admission door;
  Acceptor acceptor{door};
  MonoTime began{};
};

TEST_F(AcceptorTest, APortThatAnswersItsProbesIsWell) {
  std::atomic<int> given{0};
  start([&](UniqueFd fd) {
    ::shutdown(fd.get(), SHUT_RDWR);  // as gRPC does with what is no TLS
    ++given;
  });
  ASSERT_TRUE(comes_true([&] { return given >= 2; })) << "one probe a second";
  EXPECT_TRUE(comes_true([&] { return trouble().empty(); })) << trouble();
}

struct NoRoomTest : AcceptorTest {
  NoRoomTest() : AcceptorTest({.descriptors = 1, .reserved = 0}) {}
};

TEST_F(NoRoomTest, ARefusalByAdmissionIsNoAnswer) {
  start([](UniqueFd) { FAIL() << "there is no room"; });
  const auto refused = [&] {
    uint64_t n = 0;
    for (const auto outcome : {rt::Outcome::kTotal, rt::Outcome::kSourceShare, rt::Outcome::kPending}) {
      n += outcomes(outcome);
    }
    return n;
  };
  ASSERT_TRUE(comes_true([&] { return refused() >= 2; }));
  std::this_thread::sleep_for(milliseconds(20));  // for the end to be seen
  EXPECT_NE(trouble(), "");
}

// One port of a peer's may be connected to each of our addresses, and gRPC's names tell no difference.
TEST_F(AcceptorTest, WhoseNameIsTakenByAnotherConnectionEnds) {
  std::mutex mutex;
  std::vector<UniqueFd> given;
  start([&](UniqueFd fd) {
    const std::lock_guard lock(mutex);
    given.push_back(std::move(fd));
  }, "0.0.0.0:0");
  SocketAddress from = kAnyPort;
  const auto connected = [&](const char* to) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
    sockaddr_storage storage;
    const auto* address = reinterpret_cast<const sockaddr*>(&storage);
    socklen_t size = from.to_sockaddr(storage);
    EXPECT_EQ(::bind(fd.get(), address, size), 0);
    from = *rt::local_address(fd.get());
    size = SocketAddress{*IpAddress::parse(to), acceptor.addresses()[0].port}.to_sockaddr(storage);
    EXPECT_EQ(::connect(fd.get(), address, size), 0);
    EXPECT_EQ(::send(fd.get(), "x", 1, MSG_NOSIGNAL), 1);
    return fd;
  };
  const auto strangers = [&] {
    const std::lock_guard lock(mutex);
    return std::ranges::count_if(given, [&](const UniqueFd& fd) {
      const auto peer = rt::peer_address(fd.get());
      return peer && *peer == from;
    });
  };
  const UniqueFd first = connected("127.0.0.1");
  ASSERT_TRUE(comes_true([&] { return strangers() == 1; }));
  const UniqueFd second = connected("127.0.0.2");
  char byte;
  EXPECT_TRUE(comes_true([&] { return ::recv(first.get(), &byte, 1, MSG_DONTWAIT) == 0; }));
  EXPECT_EQ(::recv(second.get(), &byte, 1, MSG_DONTWAIT), -1) << "it lives";
}

}  // namespace
}  // namespace meltemi::xds
