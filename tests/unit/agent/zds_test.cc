// The agent's end of ZDS against a client that this test plays byte by byte.
#include "userspace/agent/zds_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "userspace/sys/packet.h"

namespace meltemi::agent {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
namespace zds = codec::zds;

class ZdsTest : public ::testing::Test {
 protected:
  ZdsTest() : loop(*Loop::create()), fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)) {
    server = std::make_unique<ZdsServer>(
        *loop,
        ZdsServer::Callbacks{
            .pods = [this] { return uids; },
            .describe = [this](const std::string& uid) -> std::optional<ZdsPod> {
              if (uid == "gone") return std::nullopt;
              const int l = held ? fd.get() : -1;
              return ZdsPod{{"name-" + uid, "ns", "sa"}, fd.get(), l, l, l};
            },
            .returned = [this](const std::string& uid, Listeners) { returned.push_back(uid); },
            .added =
                [this](const std::string& uid, const Status& s) {
                  added.push_back(uid + (s ? "" : ": " + s.error().detail));
                },
            .connection_changed =
                [this](bool c) {
                  connected = c;
                  if (server->refused_total() == 1 && !std::exchange(told, true)) refused.set_value();
                }});
    path = "/tmp/meltemi-zds-" + std::to_string(::getpid()) + ".sock";
    EXPECT_TRUE(server->listen(path));
  }
  ~ZdsTest() override { ::unlink(path.c_str()); }

  // Runs the loop on this thread while `client` runs on another.
  template <typename F>
  void with_client(F client) {
    std::thread thread([&] {
      client();
      loop->post([this] { loop->stop(); });
    });
    loop->run();
    thread.join();
  }
  void TearDown() override { server.reset(); }

  UniqueFd connect(uint32_t capabilities) {
    UniqueFd s = *sys::connect_packets(path);
    EXPECT_TRUE(
        sys::send_packet(s.get(), as_bytes(zds::encode(zds::Hello{capabilities})), {}, seconds(5)));
    return s;
  }
  static std::string next(const UniqueFd& s, std::string ack_error = "",
                          std::vector<zds::FdKind> kinds = {}, std::vector<int> fds = {}) {
    const auto packet = sys::receive_packet(s.get(), seconds(20), zds::kMaxPacket);
    if (!packet) return "closed";
    const auto request = zds::decode_request(as_bytes(packet->bytes), packet->fds.size());
    if (!request) return request.error().detail;
    const zds::Ack ack{.error = ack_error, .fds = kinds};
    EXPECT_TRUE(sys::send_packet(s.get(), as_bytes(*zds::encode(ack)), fds, seconds(5)));
    if (const auto* a = std::get_if<zds::Add>(&*request))
      return "add " + a->uid + " " + std::to_string(a->fds.size());
    if (const auto* k = std::get_if<zds::Keep>(&*request)) return "keep " + k->uid;
    if (const auto* d = std::get_if<zds::Del>(&*request)) return "del " + d->uid;
    if (const auto* g = std::get_if<zds::GetListeners>(&*request)) return "get " + g->uid;
    return "snapshot";
  }

  std::unique_ptr<Loop> loop;
  UniqueFd fd;
  std::unique_ptr<ZdsServer> server;
  std::string path;
  std::vector<std::string> uids, returned, added;
  bool held = true, connected = false, told = false;
  std::promise<void> refused;  // the first refusal
};

TEST_F(ZdsTest, SendsEveryPodThenTheSnapshotThenChanges) {
  uids = {"a", "gone", "b"};
  std::vector<std::string> got;
  with_client([&] {
    const UniqueFd s = connect(zds::kListenerFds);
    for (int i = 0; i < 3; ++i) got.push_back(next(s));
    loop->post([&] {
      server->add("c");
      server->remove("a");
      server->add("gone");
    });
    got.push_back(next(s));
    got.push_back(next(s));
  });
  EXPECT_EQ(got, (std::vector<std::string>{"add a 4", "add b 4", "snapshot", "add c 4", "del a"}));
  EXPECT_EQ(added, (std::vector<std::string>{"a", "b", "c"}));
}

// Istio's ztunnel says plain hello. It would find 15008 bound and captured connections elsewhere.
TEST_F(ZdsTest, AZtunnelThatTakesNoListenersIsRefusedByNameAndToldOfNoPod) {
  uids = {"a"};
  std::string refusal, afterwards;
  bool silent = false, was_connected = true;
  with_client([&] {
    const UniqueFd stock = *sys::connect_packets(path);
    EXPECT_TRUE(sys::send_packet(stock.get(), as_bytes(std::string("\x08\x01")), {}, seconds(5)));
    refused.get_future().wait();
    std::promise<void> looked;
    loop->post([&] {
      refusal = server->refusal();
      was_connected = server->connected();
      server->add("a");
      server->remove("b");
      looked.set_value();
    });
    looked.get_future().wait();
    // Nothing was sent, and it was not hung up on: it would call again at once, for ever.
    const auto packet = sys::receive_packet(stock.get(), seconds(0));
    silent = !packet && packet.error().reason == Reason::kNotFound;
    const UniqueFd ours = connect(zds::kListenerFds);
    EXPECT_EQ(next(ours), "add a 4");
    std::promise<void> done;
    loop->post([&] {
      afterwards = server->refusal();
      done.set_value();
    });
    done.get_future().wait();
  });
  EXPECT_NE(refusal.find("lacks the capability listener_fds"), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("pid " + std::to_string(::getpid())), std::string::npos) << refusal;
  EXPECT_TRUE(silent);
  EXPECT_FALSE(was_connected);
  EXPECT_EQ(afterwards, "") << "one that is served is there";
  EXPECT_EQ(server->refused_total(), 1u);
}

TEST_F(ZdsTest, RefusedZtunnelsDoNotTakeTheConnectionsOfOthers) {
  std::vector<UniqueFd> stock;
  std::string got;
  with_client([&] {
    for (size_t i = 0; i < 3 * kMaxZdsConnections; ++i) {
      stock.push_back(*sys::connect_packets(path));
      (void)sys::send_packet(stock.back().get(), as_bytes(std::string("\x08\x01")), {}, seconds(5));
      if (i >= kMaxRefusedZtunnels) {  // the oldest is let go
        EXPECT_FALSE(sys::receive_packet(stock[i - kMaxRefusedZtunnels].get(), seconds(20)));
      }
    }
    got = next(connect(zds::kListenerFds));
  });
  EXPECT_EQ(got, "snapshot");
}

TEST_F(ZdsTest, AsksForListenersThatItDoesNotHoldAndKeepsThePodMeanwhile) {
  uids = {"a"};
  held = false;
  std::vector<std::string> got;
  with_client([&] {
    const UniqueFd s = connect(zds::kListenerFds);
    got.push_back(next(s, "", {zds::FdKind::kOutbound}, {fd.get()}));
    for (int i = 0; i < 2; ++i) got.push_back(next(s));
  });
  EXPECT_EQ(got, (std::vector<std::string>{"get a", "keep a", "snapshot"}));
  EXPECT_EQ(returned, std::vector<std::string>{"a"});
}

TEST_F(ZdsTest, OnlyTheNewestConnectionGetsAdditionsAllGetRemovals) {
  std::vector<std::string> old_got, new_got;
  with_client([&] {
    const UniqueFd old_one = connect(zds::kListenerFds);
    old_got.push_back(next(old_one));
    const UniqueFd new_one = connect(zds::kListenerFds);
    new_got.push_back(next(new_one));
    loop->post([&] {
      server->add("x");
      server->remove("y");
    });
    new_got.push_back(next(new_one));
    new_got.push_back(next(new_one));
    old_got.push_back(next(old_one));
  });
  EXPECT_EQ(new_got, (std::vector<std::string>{"snapshot", "add x 4", "del y"}));
  EXPECT_EQ(old_got, (std::vector<std::string>{"snapshot", "del y"}));
}

TEST_F(ZdsTest, ARefusedAddIsReportedAndTheConnectionStays) {
  uids = {"a"};
  std::vector<std::string> got;
  with_client([&] {
    const UniqueFd s = connect(zds::kListenerFds);
    got.push_back(next(s, "failure to start proxy : no certificate"));
    got.push_back(next(s));
  });
  EXPECT_EQ(got, (std::vector<std::string>{"add a 4", "snapshot"}));
  EXPECT_EQ(added, std::vector<std::string>{"a: failure to start proxy : no certificate"});
}

TEST_F(ZdsTest, ClosesOnGarbageAndOnAPeerThatSpeaksUnasked) {
  Status garbage, unasked;
  with_client([&] {
    const UniqueFd a = *sys::connect_packets(path);
    EXPECT_TRUE(sys::send_packet(a.get(), as_bytes("\xff\xff\xff"), {}, seconds(5)));
    garbage = fail(sys::receive_packet(a.get(), seconds(20)).error());
    const UniqueFd b = connect(zds::kListenerFds);
    EXPECT_EQ(next(b), "snapshot");
    EXPECT_TRUE(sys::send_packet(b.get(), as_bytes(std::string("\x0a\x00", 2)), {}, seconds(5)));
    unasked = fail(sys::receive_packet(b.get(), seconds(20)).error());
  });
  EXPECT_EQ(garbage.error().reason, Reason::kServerClosedEarly);
  EXPECT_EQ(unasked.error().reason, Reason::kServerClosedEarly);
  EXPECT_FALSE(connected);
}

}  // namespace
}  // namespace meltemi::agent
