// What /healthz/ready says: pending tasks, checks asked anew each time, and a port that nobody
// accepts from.
#include "userspace/telemetry/readiness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace meltemi::telemetry {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

TEST(Readiness, AsksEveryCheckAtEveryProbe) {
  Readiness readiness;
  std::string wrong = "the port does not answer";
  readiness.check("15008", [&] { return wrong; });
  EXPECT_EQ(readiness.verdict().text, "not ready, 15008: the port does not answer\n");
  EXPECT_FALSE(readiness.ready());
  wrong.clear();
  EXPECT_TRUE(readiness.ready());
  readiness.pending("xds");
  wrong = "full";
  EXPECT_EQ(readiness.verdict().text, "not ready, pending: xds\nnot ready, 15008: full\n");
}

TEST(Readiness, ANoteIsSaidAndChangesNothing) {
  Readiness readiness;
  readiness.note("configuration", [] { return std::string("12 minutes old"); });
  EXPECT_TRUE(readiness.ready());
  EXPECT_EQ(readiness.verdict().text, "ready\nconfiguration: 12 minutes old\n");
}

class Port : public testing::Test {
 protected:
  void SetUp() override {
    listening_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::bind(listening_.get(), reinterpret_cast<sockaddr*>(&address_), sizeof address_), 0);
    ASSERT_EQ(::listen(listening_.get(), 4), 0);
    socklen_t length = sizeof address_;
    ::getsockname(listening_.get(), reinterpret_cast<sockaddr*>(&address_), &length);
  }
  UniqueFd connect() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address_), sizeof address_), 0);
    return fd;
  }
  UniqueFd listening_;
  sockaddr_in address_{};
  uint64_t accepted_ = 0;
  MonoTime now_ = MonoClock::now();
};

TEST_F(Port, APortThatNobodyAcceptsFromIsNotReady) {
  AcceptQueue queue(listening_.get(), [this] { return accepted_; });
  EXPECT_EQ(queue.ask(now_), "");
  const UniqueFd waiting = connect();
  EXPECT_EQ(queue.ask(now_ + seconds(1)), "");
  EXPECT_THAT(queue.ask(now_ + seconds(4)), HasSubstr("1 connections wait"));
  // Accepting again is seen at once.
  const UniqueFd taken(::accept(listening_.get(), nullptr, nullptr));
  ++accepted_;
  EXPECT_EQ(queue.ask(now_ + seconds(5)), "");
}

TEST_F(Port, ABusyPortThatMovesIsReady) {
  AcceptQueue queue(listening_.get(), [this] { return accepted_; });
  const UniqueFd waiting = connect();
  for (int i = 0; i < 10; ++i) {
    ++accepted_;
    EXPECT_EQ(queue.ask(now_ + seconds(10 * i)), "");
  }
}

TEST_F(Port, AClosedListenerIsNotReady) {
  AcceptQueue queue(listening_.get(), [] { return 0; });
  ::shutdown(listening_.get(), SHUT_RDWR);
  EXPECT_EQ(queue.ask(now_), "it does not listen");
}

}  // namespace
}  // namespace meltemi::telemetry
