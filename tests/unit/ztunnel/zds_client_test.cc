// The ztunnel's end of ZDS against an agent that this test plays packet by packet, with the reader of
// Istio's agent: 1024 bytes an answer, and not a byte more.
#include "ztunnel/zds_client.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/rt/socket_options.h"

namespace meltemi::ztunnel {
namespace {

using codec::zds::FdKind;
using std::chrono::seconds;
namespace zds = codec::zds;

class ZdsClientTest : public testing::Test {
 protected:
  void SetUp() override {
    pool_ = *rt::WorkerPool::start(1, "test", {});
    shared_.settings = &settings_;
    shared_.store = &store_;
    shared_.metrics = &metrics_;
    shared_.pool = pool_.get();
    shared_.doors = &doors_;
    shared_.want_certificate = [](const model::Identity&) {};
    shared_.workers.resize(1);
    pool_->run_on_all([this](rt::Worker& w) {
      shared_.workers[w.index()] = std::make_unique<ProxyWorker>(shared_, w);
    });
    pods_ = std::make_unique<PodManager>(shared_, registry_);
    std::string directory = "/tmp/meltemi-zds-XXXXXX";
    directory_ = ::mkdtemp(directory.data());
    listener_ = *sys::listen_packets(path(), 0600);
    client_ = std::make_unique<ZdsClient>(path(), true, *pods_, readiness_);
    client_->start();
  }
  void TearDown() override {
    client_.reset();
    pods_->stop_listening();
    pool_->run_on_all([this](rt::Worker& w) { shared_.workers[w.index()].reset(); });
    pool_->stop();
    ::unlink(path().c_str());
    ::rmdir(directory_.c_str());
  }

  std::string path() const { return directory_ + "/zds.sock"; }
  // A connection that has said hello.
  UniqueFd accept() {
    pollfd p{listener_.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&p, 1, 60'000), 1);
    UniqueFd socket = *sys::accept_packets(listener_.get());
    EXPECT_TRUE(zds::decode_hello(as_bytes(read(socket.get()))).has_value());
    return socket;
  }
  // As Istio's agent reads: what does not fit into its buffer is lost, and the connection with it.
  static std::string read(int socket) {
    pollfd p{socket, POLLIN, 0};
    EXPECT_EQ(::poll(&p, 1, 60'000), 1);
    std::string buffer(zds::kMaxIstioPacket, '\0');
    const ssize_t n = ::recv(socket, buffer.data(), buffer.size(), MSG_TRUNC);
    EXPECT_LE(n, static_cast<ssize_t>(buffer.size())) << "cut off by the reader";
    buffer.resize(static_cast<size_t>(std::clamp<ssize_t>(n, 0, buffer.size())));
    return buffer;
  }
  static std::string ask(int socket, const zds::Request& request, std::vector<int> fds = {}) {
    const std::string bytes = *zds::encode(request);
    EXPECT_TRUE(sys::send_packet(socket, as_bytes(bytes), fds, seconds(60)));
    return read(socket);
  }

  Settings settings_;
  telemetry::Registry registry_;
  telemetry::Readiness readiness_;
  telemetry::TcpMetrics metrics_{registry_, 1};
  model::MeshStore store_;
  Doors doors_{rt::AdmissionOptions()};
  std::unique_ptr<rt::WorkerPool> pool_;
  Shared shared_;
  std::unique_ptr<PodManager> pods_;
  std::string directory_;
  UniqueFd listener_;
  std::unique_ptr<ZdsClient> client_;
};

const std::string kIstioAck("\x0a\x00", 2);

TEST_F(ZdsClientTest, ThreeHundredPodsAreReadyForAnAgentThatReadsOneKilobyte) {
  const UniqueFd netns(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  const UniqueFd listener = *rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto uid = [](int i) { return "0b7a1e3c-4c1f-4f0e-9d5e-" + std::to_string(100'000'000'000 + i); };
  {
    const UniqueFd ours = accept();
    for (int i = 0; i < 300; ++i) {
      const zds::Add add{uid(i), {"pod", "ns", "sa"}, {FdKind::kNetns, FdKind::kOutbound}};
      ASSERT_EQ(ask(ours.get(), add, {netns.get(), listener.get()}), kIstioAck);
    }
    EXPECT_EQ(ask(ours.get(), zds::SnapshotSent{}), kIstioAck);
  }
  // Istio's agent takes over: it names the pods and gets Istio's answers.
  const UniqueFd istio = accept();
  for (int i = 0; i < 300; ++i) ASSERT_EQ(ask(istio.get(), zds::Keep{uid(i)}), kIstioAck);
  EXPECT_EQ(ask(istio.get(), zds::SnapshotSent{}), kIstioAck);
  EXPECT_EQ(pods_->uids().size(), 300u);
  EXPECT_TRUE(readiness_.ready());
}

TEST_F(ZdsClientTest, AnErrorOfAnyLengthFitsTheReader) {
  const UniqueFd istio = accept();
  const std::string answer = ask(istio.get(), zds::Add{std::string(200, 'u'), {"pod", "ns", "sa"}, {}},
                                 {});  // without its descriptor
  EXPECT_NE(answer, kIstioAck);
  EXPECT_FALSE(zds::decode_ack(as_bytes(answer), 0)->error.empty());
}

// Takes all descriptors but `left` until it goes.
class NoDescriptors {
 public:
  explicit NoDescriptors(int left) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit few{512, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &few);
    for (int fd; (fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) taken_.emplace_back(fd);
    taken_.resize(taken_.size() - static_cast<size_t>(left));
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
  std::vector<UniqueFd> taken_;
};

TEST_F(ZdsClientTest, APodThatCameWhenDescriptorsHadRunOutIsServedOnceThereAreSome) {
  const UniqueFd netns(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  const UniqueFd listener = *rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const UniqueFd agent = accept();
  {
    NoDescriptors none(2);  // those of the message
    const std::string answer = ask(agent.get(), zds::Add{"uid-1", {"pod", "ns", "sa"}, {FdKind::kNetns, FdKind::kOutbound}},
                                   {netns.get(), listener.get()});
    EXPECT_FALSE(zds::decode_ack(as_bytes(answer), 0)->error.empty());
    EXPECT_EQ(ask(agent.get(), zds::SnapshotSent{}), kIstioAck);
    EXPECT_FALSE(readiness_.ready());
  }
  const MonoTime limit = MonoClock::now() + seconds(5);
  while (!readiness_.ready() && MonoClock::now() < limit) ::usleep(1000);
  EXPECT_TRUE(readiness_.ready());
  EXPECT_TRUE(pods_->has("uid-1"));
}

}  // namespace
}  // namespace meltemi::ztunnel
