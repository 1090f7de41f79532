// Pods come, come again, change their listeners and go: who is accepted where. Real sockets on
// loopback, in the own network namespace; the other end is this test.
#include "ztunnel/pod_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "userspace/sys/netns.h"

namespace meltemi::ztunnel {
namespace {

using codec::zds::FdKind;

class Pods : public testing::Test {
 protected:
  void SetUp() override {
    settings_.config_patience = Duration::zero();  // unknown pods are turned away at once
    pool_ = *rt::WorkerPool::start(2, "test", {});
    shared_.settings = &settings_;
    shared_.store = &store_;
    shared_.metrics = &metrics_;
    shared_.pool = pool_.get();
    shared_.doors = &doors_;
    shared_.want_certificate = [](const model::Identity&) {};
    shared_.workers.resize(2);
    pool_->run_on_all([this](rt::Worker& w) {
      shared_.workers[w.index()] = std::make_unique<ProxyWorker>(shared_, w);
    });
    pods_ = std::make_unique<PodManager>(shared_, registry_);
  }
  void TearDown() override {
    pods_->stop_listening();
    pool_->run_on_all([this](rt::Worker& w) { shared_.workers[w.index()].reset(); });
    pool_->stop();
  }

  static UniqueFd listener(SocketAddress* at) {
    auto fd = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
    EXPECT_TRUE(fd.has_value());
    *at = *rt::local_address(fd->get());
    return *std::move(fd);
  }
  Status add(const std::string& uid, std::vector<std::pair<FdKind, int>> listeners) {
    codec::zds::Add message{uid, {"pod", "ns", "sa"}, {FdKind::kNetns}};
    std::vector<UniqueFd> fds;
    fds.push_back(UniqueFd(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)));
    for (const auto& [kind, fd] : listeners) {
      message.fds.push_back(kind);
      fds.push_back(UniqueFd(::dup(fd)));
    }
    return pods_->add(message, std::move(fds));
  }
  // Whether a worker took a connection to `at` (and, not knowing the pod, reset it).
  static bool served(const SocketAddress& at, int patience_ms) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage storage;
    const socklen_t length = at.to_sockaddr(storage);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&storage), length) != 0) return false;
    pollfd p{fd.get(), POLLIN, 0};
    return ::poll(&p, 1, patience_ms) == 1 && (p.revents & (POLLHUP | POLLERR));
  }

  Settings settings_;
  telemetry::Registry registry_;
  telemetry::TcpMetrics metrics_{registry_, 2};
  model::MeshStore store_;
  Doors doors_{rt::AdmissionOptions()};
  std::unique_ptr<rt::WorkerPool> pool_;
  Shared shared_;
  std::unique_ptr<PodManager> pods_;
};

TEST_F(Pods, ListenersAreServedGivenBackAndReplaced) {
  SocketAddress first, second;
  const UniqueFd a = listener(&first), b = listener(&second);
  ASSERT_TRUE(add("u", {{FdKind::kOutbound, a.get()}}));
  EXPECT_TRUE(served(first, 20'000));
  EXPECT_FALSE(served(second, 200));
  EXPECT_EQ(pods_->listeners("u").size(), 1u);

  ASSERT_TRUE(add("u", {{FdKind::kOutbound, a.get()}})) << "the same again";
  EXPECT_TRUE(served(first, 20'000));

  // The agent lost its listeners and made new ones.
  ASSERT_TRUE(add("u", {{FdKind::kOutbound, b.get()}}));
  EXPECT_TRUE(served(second, 20'000));
  ASSERT_EQ(pods_->listeners("u").size(), 1u);
  EXPECT_EQ(rt::local_address(pods_->listeners("u")[0].second.get())->port, second.port);

  pods_->remove("u");
  EXPECT_TRUE(pods_->uids().empty());
  EXPECT_TRUE(pods_->listeners("u").empty());
  pods_->remove("u");
  EXPECT_THAT(registry_.text(), testing::HasSubstr("workload_manager_active_proxy_count 0\n"));
  EXPECT_THAT(registry_.text(), testing::HasSubstr("workload_manager_proxies_stopped_total 1\n"));
}

TEST_F(Pods, ASnapshotKeepsOnlyWhatItNames) {
  SocketAddress x, y;
  const UniqueFd a = listener(&x), b = listener(&y);
  ASSERT_TRUE(add("one", {{FdKind::kOutbound, a.get()}}));
  ASSERT_TRUE(add("two", {{FdKind::kInbound, b.get()}}));
  pods_->keep_only({"two", "never-seen"});
  EXPECT_THAT(pods_->uids(), testing::ElementsAre("two"));
  EXPECT_TRUE(served(y, 20'000));
}

TEST_F(Pods, RefusesDescriptorsThatAreNotWhatTheySay) {
  UniqueFd plain(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Status not_listening = add("u", {{FdKind::kOutbound, plain.get()}});
  ASSERT_FALSE(not_listening.has_value());
  EXPECT_EQ(not_listening.error().reason, Reason::kBadRequest);
  codec::zds::Add message{"u", {"pod", "ns", "sa"}, {FdKind::kNetns}};
  std::vector<UniqueFd> wrong;
  wrong.push_back(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)));
  EXPECT_FALSE(pods_->add(message, std::move(wrong)).has_value()) << "no namespace";
  EXPECT_FALSE(pods_->add(message, {}).has_value()) << "no descriptor at all";
  EXPECT_TRUE(pods_->uids().empty());
  EXPECT_THAT(registry_.text(), testing::HasSubstr("workload_manager_pending_proxy_count 1\n"));
  SocketAddress at;
  const UniqueFd good = listener(&at);
  ASSERT_TRUE(add("u", {{FdKind::kOutbound, good.get()}}));
  EXPECT_THAT(registry_.text(), testing::HasSubstr("workload_manager_pending_proxy_count 0\n"))
      << "the agent sent it again";
}

TEST_F(Pods, OverTheLimitConnectionsAreRefusedAndCounted) {
  Doors closed(rt::AdmissionOptions{.descriptors = 32, .reserved = 32});
  shared_.doors = &closed;
  SocketAddress at;
  const UniqueFd a = listener(&at);
  ASSERT_TRUE(add("u", {{FdKind::kOutbound, a.get()}}));
  EXPECT_TRUE(served(at, 20'000)) << "reset, not left waiting";
  const auto outbound = closed.admission.rows()[static_cast<size_t>(ListenerKind::kOutbound)];
  EXPECT_EQ(outbound.outcomes[static_cast<size_t>(rt::Outcome::kTotal)], 1u);
  EXPECT_EQ(shared_.connections.load(), 0);
}

// The clock jumps: each step is a turn of the watch, and ends the patience of the one before.
class PortWatchTest : public Pods {
 protected:
  void step() { shared_.port_watch.poll(*pods_, now_ += PortWatch::kPatience); }
  // Asks until the answer is as wanted; how long the kernel takes nobody knows.
  bool becomes(const std::function<bool()>& wanted) {
    for (int i = 0; i < 2000 && !wanted(); ++i) {
      shared_.port_watch.poll(*pods_, now_);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (i % 20 == 19) now_ += PortWatch::kEvery;
    }
    return wanted();
  }
  // The home worker stops accepting; the socket stays and listens.
  void stop_accepting(const std::string& uid) {
    pool_->run_on_all([&](rt::Worker& w) { shared_.workers[w.index()]->stop_listening(uid); });
  }
  std::string trouble() { return shared_.port_watch.trouble(); }
  MonoTime now_ = MonoClock::now();
};

TEST_F(PortWatchTest, ReadinessSaysWhenNobodyTakesTheConnectionsOfAPodsPort) {
  SocketAddress x, y;
  const UniqueFd a = listener(&x), b = listener(&y);
  ASSERT_TRUE(add("one", {{FdKind::kHbone, a.get()}}));
  ASSERT_TRUE(add("two", {{FdKind::kHbone, b.get()}}));
  for (int i = 0; i < 6; ++i) {
    step();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(trouble(), "");
  EXPECT_EQ(doors_.admission.rows()[static_cast<size_t>(ListenerKind::kHbone)].outcomes[0], 0u)
      << "the questions count as nobody's";
  stop_accepting("two");
  EXPECT_TRUE(becomes([&] { return !trouble().empty(); }));
  EXPECT_EQ(trouble(), "port 15008 of pod ns/pod: nobody takes its connections");
  EXPECT_GE(shared_.port_watch.failures(), 1u);
  const UniqueFd fresh = listener(&y);
  ASSERT_TRUE(add("two", {{FdKind::kHbone, fresh.get()}}));
  EXPECT_TRUE(becomes([&] { return trouble().empty(); }));
}

TEST_F(PortWatchTest, ReadinessSaysWhenAPodsPortDoesNotListen) {
  SocketAddress at;
  const UniqueFd a = listener(&at);
  ASSERT_TRUE(add("one", {{FdKind::kHbone, a.get()}}));
  ASSERT_EQ(::shutdown(a.get(), SHUT_RDWR), 0);
  EXPECT_TRUE(becomes([&] { return trouble() == "port 15008 of pod ns/pod: it does not listen"; }));
  pods_->remove("one");
  EXPECT_TRUE(becomes([&] { return trouble().empty(); })) << "the pod is gone";
}

}  // namespace
}  // namespace meltemi::ztunnel
