// The agent and the CNI plugin as processes: decisions from a control plane (our xDS server in this
// process), ADD/DEL/CHECK by the plugin binary, ZDS with a ztunnel played by this test, kill -9.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "meltemi/node/v1/node.pb.h"
#include "tests/netns/capture/lab.h"
#include "userspace/cni/agent_client.h"
#include "userspace/codec/zds.h"
#include "userspace/sys/packet.h"
#include "userspace/sys/sock_diag.h"
#include "userspace/xds/server.h"

namespace meltemi::test {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;
namespace wire = meltemi::node::v1;
namespace zds = codec::zds;

const Require require(Need::kRootAndCgroup2);
constexpr Duration kLong = seconds(30);

std::string binary(const char* name) {
  const char* dir = std::getenv("MELTEMI_BIN_DIR");
  return std::string(dir != nullptr ? dir : "bin") + "/" + name;
}

template <typename F>
bool eventually(F&& condition, Duration patience = kLong) {
  const MonoTime deadline = MonoClock::now() + patience;
  while (!condition()) {
    if (MonoClock::now() > deadline) return false;
    ::usleep(20'000);
  }
  return true;
}

// --- the control plane ---------------------------------------------------------------------------

class ControlPlane {
 public:
  explicit ControlPlane(const sys::Netns& node, bool ready = true)
      : server_({.authenticate = [](std::string_view) { return xds::Caller{}; },
                 .scope_of = [](const xds::Caller&, const xds::Node&,
                                std::string_view) { return std::string(); },
                 .sign = {},
                 .report = [this](const xds::Caller&, const wire::NodeReport& report) -> Status {
                   const std::lock_guard lock(mutex_);
                   for (const wire::PodStatus& s : report.pods()) {
                     if (s.enrolled()) enrolled_once_.insert(s.uid());
                     if (!s.enrolled() && enrolled_once_.contains(s.uid())) withdrawn_.insert(s.uid());
                   }
                   last_ = report;
                   return {};
                 },
                 .nacked = {}}) {
    must(node.run([&] { return server_.start({.plaintext_listen = {at("127.0.0.1", 0)}}); }));
    if (ready) set_ready();
  }
  void set_ready() { server_.set_ready(); }
  ~ControlPlane() { server_.stop(milliseconds(100)); }
  std::string address() const {
    return "http://127.0.0.1:" + std::to_string(server_.ports().front());
  }
  void decide(const wire::PodEnrolment& e) {
    server_.update({{.type_url = std::string(xds::kTypePodEnrolment),
                     .name = e.uid(),
                     .version = std::to_string(++version_),
                     .body = e.SerializeAsString()}});
  }
  void forget(const std::string& uid) {
    server_.update(
        {{.type_url = std::string(xds::kTypePodEnrolment), .name = uid, .removed = true}});
  }
  std::optional<wire::PodStatus> reported(const std::string& uid) const {
    const std::lock_guard lock(mutex_);
    for (const wire::PodStatus& s : last_.pods())
      if (s.uid() == uid) return s;
    return std::nullopt;
  }
  bool ztunnel_connected() const {
    const std::lock_guard lock(mutex_);
    return last_.ztunnel_connected();
  }
  // Whether any report called this pod plain after one had called it enrolled.
  bool withdrawn(const std::string& uid) const {
    const std::lock_guard lock(mutex_);
    return withdrawn_.contains(uid);
  }
  std::vector<std::string> problems() const {
    const std::lock_guard lock(mutex_);
    return {last_.problems().begin(), last_.problems().end()};
  }

 private:
  mutable std::mutex mutex_;
  wire::NodeReport last_;
  std::set<std::string> enrolled_once_, withdrawn_;
  std::atomic<int> version_ = 0;
  xds::Server server_;
};

wire::PodEnrolment wanted(const LabPod& pod, bool enrol = true) {
  wire::PodEnrolment e;
  e.set_uid("uid-" + pod.name);
  e.set_name(pod.name);
  e.set_namespace_("shop");
  e.set_service_account("sa-" + pod.name);
  e.set_enrol(enrol);
  e.set_reason(enrol ? "namespace_opt_in" : "mesh_default_out");
  return e;
}

// --- ztunnel -------------------------------------------------------------------------------------

// The client's end of ZDS, with the extension: keeps what it is given and gives it back when asked.
class FakeZtunnel {
 public:
  explicit FakeZtunnel(std::string path) : path_(std::move(path)), thread_([this] { run(); }) {}
  ~FakeZtunnel() { stop(); }
  void stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }
  bool serves(const std::string& uid) const {
    const std::lock_guard lock(mutex_);
    return pods_.contains(uid);
  }
  std::string service_account(const std::string& uid) const {
    const std::lock_guard lock(mutex_);
    const auto found = pods_.find(uid);
    return found == pods_.end() ? "" : found->second.info.service_account;
  }
  int snapshots() const { return snapshots_; }
  // Borrowed listeners of a pod; -1 if it is not served.
  int outbound(const std::string& uid) const { return listener(uid, zds::FdKind::kOutbound); }
  int inbound(const std::string& uid) const { return listener(uid, zds::FdKind::kInbound); }
  int hbone(const std::string& uid) const { return listener(uid, zds::FdKind::kHbone); }

 private:
  struct Served {
    zds::WorkloadInfo info;
    std::map<zds::FdKind, UniqueFd> fds;
  };
  int listener(const std::string& uid, zds::FdKind kind) const {
    const std::lock_guard lock(mutex_);
    const auto pod = pods_.find(uid);
    if (pod == pods_.end()) return -1;
    const auto fd = pod->second.fds.find(kind);
    return fd == pod->second.fds.end() ? -1 : fd->second.get();
  }
  void run() {
    while (!stopping_) {
      Result<UniqueFd> socket = sys::connect_packets(path_);
      if (!socket ||
          !sys::send_packet(socket->get(), as_bytes(zds::encode(zds::Hello{zds::kListenerFds})), {},
                            seconds(1))) {
        ::usleep(20'000);
        continue;
      }
      serve(socket->get());
    }
  }
  void serve(int socket) {
    named_.clear();
    while (!stopping_) {
      Result<sys::Packet> packet = sys::receive_packet(socket, milliseconds(50), zds::kMaxPacket);
      if (!packet && packet.error().reason == Reason::kRequestTimeout) continue;
      if (!packet) return;
      Result<zds::Request> request =
          zds::decode_request(as_bytes(packet->bytes), packet->fds.size());
      zds::Ack ack;
      std::vector<int> fds;
      if (!request) {
        ADD_FAILURE() << request.error().to_string();
        return;
      }
      handle(*request, packet->fds, ack, fds);
      const auto bytes = zds::encode(ack);
      if (!bytes || !sys::send_packet(socket, as_bytes(*bytes), fds, seconds(1))) return;
    }
  }
  void handle(const zds::Request& request, std::vector<UniqueFd>& received, zds::Ack& ack,
              std::vector<int>& send) {
    const std::lock_guard lock(mutex_);
    if (const auto* keep = std::get_if<zds::Keep>(&request)) {
      named_.insert(keep->uid);
    } else if (const auto* add = std::get_if<zds::Add>(&request)) {
      named_.insert(add->uid);
      Served& pod = pods_[add->uid];
      pod.info = add->info;
      for (size_t i = 0; i < received.size(); ++i) pod.fds[add->fds[i]] = std::move(received[i]);
    } else if (const auto* del = std::get_if<zds::Del>(&request)) {
      pods_.erase(del->uid);
    } else if (const auto* get = std::get_if<zds::GetListeners>(&request)) {
      const auto pod = pods_.find(get->uid);
      if (pod == pods_.end()) {
        ack.error = "unknown pod";
        return;
      }
      for (const auto kind : {zds::FdKind::kOutbound, zds::FdKind::kInbound, zds::FdKind::kHbone}) {
        ack.fds.push_back(kind);
        send.push_back(pod->second.fds[kind].get());
      }
    } else if (std::holds_alternative<zds::SnapshotSent>(request)) {
      std::erase_if(pods_, [this](const auto& pod) { return !named_.contains(pod.first); });
      ++snapshots_;
    }
  }

  std::string path_;
  mutable std::mutex mutex_;
  std::map<std::string, Served> pods_;
  std::set<std::string> named_;  // by the snapshot under way
  std::atomic<int> snapshots_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

// --- the fixture ---------------------------------------------------------------------------------

struct CniResult {
  int exit_code = -1;
  json output;
};

class AgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    system_ = must(lab.cgroup.child("system"));
    control = std::make_unique<ControlPlane>(lab.node);
    must(sys::write_file_atomically(token(), "any", 0600));  // the server asks for one
  }
  void TearDown() override { stop_agent(SIGKILL); }
  std::string token() const { return lab.run_directory() + "/token"; }

  sys::Process spawn_agent(std::vector<std::string> more, bool with_control_plane) {
    std::vector<std::string> argv = {binary("meltemi-agent"),
                                     "--node-name=n1",
                                     "--run-dir=" + lab.run_directory(),
                                     "--cgroup=" + lab.cgroup.path(),
                                     "--bpf-dir=" + lab.bpf_directory(),
                                     "--reconcile-interval=300ms",
                                     "--health-listen="};
    argv.push_back("--auth-token=" + token());
    if (with_control_plane) argv.push_back("--xds-address=" + control->address());
    argv.insert(argv.end(), more.begin(), more.end());
    return must(sys::Process::spawn(
        {.argv = argv, .netns = &lab.node, .cgroup = &system_, .parent_death_signal = SIGKILL}));
  }
  bool serves() { return sys::connect_packets(lab.run_directory() + "/agent.sock").has_value(); }
  void start_agent(std::vector<std::string> more = {}, bool with_control_plane = true) {
    agent_ = spawn_agent(std::move(more), with_control_plane);
    ASSERT_TRUE(eventually([&] { return serves(); })) << "the agent does not serve";
  }
  void stop_agent(int signal) {
    if (!agent_.valid()) return;
    EXPECT_OK(agent_.signal(signal));
    EXPECT_OK(agent_.wait(kLong));
  }

  Result<local::v1::Response> call(const local::v1::Request& request) {
    return cni::call_agent(lab.run_directory() + "/agent.sock", request, kLong);
  }
  std::optional<local::v1::Pod> listed(const std::string& name) {
    local::v1::Request request;
    request.mutable_list();
    const auto response = call(request);
    if (!response) return std::nullopt;
    for (const local::v1::Pod& p : response->pods())
      if (p.name() == name) return p;
    return std::nullopt;
  }
  bool enrolled(const LabPod& pod) {
    const auto p = listed(pod.name);
    return p && p->enrolled();
  }

  json cni_config(const LabPod& pod) {
    return {{"cniVersion", "1.0.0"},
            {"name", "cluster"},
            {"type", "meltemi-cni"},
            {"agentSocket", lab.run_directory() + "/agent.sock"},
            {"prevResult",
             {{"cniVersion", "1.0.0"},
              {"interfaces", {{{"name", "eth0"}, {"sandbox", pod.path}}}},
              {"ips",
               {{{"address", pod.v4.to_string() + "/32"}, {"interface", 0}},
                {{"address", pod.v6.to_string() + "/128"}, {"interface", 0}}}},
              {"dns", json::object()}}}};
  }
  struct Running {
    sys::Process process;
    UniqueFd output;
  };
  Running start_cni(const std::string& verb, const LabPod& pod, const std::string& config) {
    int in[2], out[2];
    EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    UniqueFd in_read(in[0]), in_write(in[1]), out_write(out[1]);
    Running r;
    r.output.reset(out[0]);
    EXPECT_EQ(::write(in_write.get(), config.data(), config.size()),
              static_cast<ssize_t>(config.size()));
    in_write.reset();
    r.process = must(sys::Process::spawn(
        {.argv = {binary("meltemi-cni")},
         .environment = {"CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_NETNS=" + pod.path,
                         "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
                         "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" +
                             pod.name + ";K8S_POD_UID=uid-" + pod.name},
         .replace_environment = true,
         .stdin_fd = in_read.get(),
         .stdout_fd = out_write.get()}));
    return r;
  }
  CniResult finish_cni(Running r) {
    CniResult result;
    const auto status = r.process.wait(seconds(60));
    EXPECT_OK(status);
    result.exit_code = status ? WEXITSTATUS(*status) : -1;
    char buffer[16384];
    std::string text;
    ssize_t n;
    while ((n = ::read(r.output.get(), buffer, sizeof buffer)) > 0)
      text.append(buffer, static_cast<size_t>(n));
    if (!text.empty()) result.output = json::parse(text, nullptr, false);
    EXPECT_FALSE(result.output.is_discarded()) << text;
    return result;
  }
  CniResult run_cni(const std::string& verb, const LabPod& pod) {
    return finish_cni(start_cni(verb, pod, cni_config(pod).dump()));
  }
  std::string zds_path() const { return lab.run_directory() + "/ztunnel.sock"; }

  // A connect to a service that nobody routes succeeds only if it is captured.
  bool captured(const LabPod& pod, int timeout_ms = kPatience) {
    const UniqueFd client = tcp_socket(pod.netns, AF_INET);
    return connect_within(client.get(), at("10.96.0.10", 80), timeout_ms) == 0;
  }

  Lab lab;
  sys::Cgroup system_;
  std::unique_ptr<ControlPlane> control;
  sys::Process agent_;
};

// --- CNI -----------------------------------------------------------------------------------------

TEST_F(AgentTest, cni_add_waits_for_the_decision_and_returns_when_the_kernel_captures) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  Running add = start_cni("ADD", pod, cni_config(pod).dump());
  EXPECT_EQ(add.process.wait(milliseconds(300)).error().reason, Reason::kRequestTimeout)
      << "ADD returned before anything was decided";
  control->decide(wanted(pod));
  const CniResult result = finish_cni(std::move(add));
  EXPECT_EQ(result.exit_code, 0) << result.output.dump();
  EXPECT_EQ(result.output.value("ips", json()), cni_config(pod)["prevResult"]["ips"]);
  EXPECT_TRUE(enrolled(pod));
  EXPECT_TRUE(captured(pod));
  EXPECT_TRUE(eventually([&] {
    const auto s = control->reported("uid-" + pod.name);
    return s && s->enrolled() && s->missing().empty() &&
           s->netns_cookie() == pod.netns.cookie().value();
  })) << "the control plane is not told";
  EXPECT_EQ(run_cni("CHECK", pod).exit_code, 0);
}

TEST_F(AgentTest, a_pod_outside_of_the_mesh_starts_at_once_and_stays_plain) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod, false));
  EXPECT_EQ(run_cni("ADD", pod).exit_code, 0);
  EXPECT_FALSE(captured(pod, 300));
  EXPECT_EQ(run_cni("CHECK", pod).exit_code, 0);
  const auto p = listed(pod.name);
  ASSERT_TRUE(p);
  EXPECT_FALSE(p->enrol());
  EXPECT_EQ(p->reason(), "mesh_default_out");
}

TEST_F(AgentTest, without_a_decision_add_ends_with_an_error_that_says_so) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  local::v1::Request request;
  auto& add = *request.mutable_add();
  add.set_name(pod.name);
  add.set_namespace_("shop");
  add.set_netns_path(pod.path);
  add.set_deadline_ms(300);
  const auto response = call(request);
  ASSERT_OK(response);
  EXPECT_NE(response->error().find("shop/pod1"), std::string::npos) << response->error();
  EXPECT_NE(response->error().find("control plane"), std::string::npos) << response->error();
}

TEST_F(AgentTest, cni_del_unenrols_and_never_fails) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  EXPECT_EQ(run_cni("DEL", pod).exit_code, 0);
  EXPECT_FALSE(enrolled(pod));
  EXPECT_FALSE(captured(pod, 300));
  EXPECT_EQ(run_cni("DEL", pod).exit_code, 0) << "a second time";
  EXPECT_TRUE(must(
      sys::Netlink::open_in(pod.netns)->has_rule({.family = AF_INET, .table = sys::kTableLocal})));
  stop_agent(SIGKILL);
  EXPECT_EQ(run_cni("DEL", pod).exit_code, 0) << "without an agent";
}

TEST_F(AgentTest, cni_check_names_what_the_kernel_lacks) {
  LabPod& pod = lab.add_pod(1);
  start_agent({"--reconcile-interval=1h"});
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  auto netlink = must(sys::Netlink::open_in(pod.netns));
  for (const auto& route : must(netlink.routes(AF_INET, MELTEMI_ROUTE_TABLE)))
    must(netlink.delete_route(route));
  const CniResult check = run_cni("CHECK", pod);
  EXPECT_EQ(check.exit_code, 1);
  EXPECT_EQ(check.output.value("code", 0), 101);
  EXPECT_NE(check.output.value("details", "").find("route"), std::string::npos)
      << check.output.dump();
}

TEST_F(AgentTest, the_reconciler_mends_a_pod) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  auto netlink = must(sys::Netlink::open_in(pod.netns));
  for (const auto& route : must(netlink.routes(AF_INET, MELTEMI_ROUTE_TABLE)))
    must(netlink.delete_route(route));
  EXPECT_TRUE(
      eventually([&] { return !must(netlink.routes(AF_INET, MELTEMI_ROUTE_TABLE)).empty(); }));
  EXPECT_TRUE(captured(pod));
}

TEST_F(AgentTest, cni_errors_are_the_specs) {
  LabPod& pod = lab.add_pod(1);
  // No agent: ADD must fail, with a code and a hint.
  CniResult r = run_cni("ADD", pod);
  EXPECT_EQ(r.exit_code, 1);
  EXPECT_EQ(r.output.value("code", 0), 100) << r.output.dump();
  EXPECT_EQ(r.output.value("cniVersion", ""), "1.0.0");
  EXPECT_NE(r.output.value("details", "").find("meltemi-agent"), std::string::npos);
  // Not JSON, another version, an unknown verb.
  EXPECT_EQ(finish_cni(start_cni("ADD", pod, "{")).output.value("code", 0), 6);
  json config = cni_config(pod);
  config["cniVersion"] = "9.9.9";
  EXPECT_EQ(finish_cni(start_cni("ADD", pod, config.dump())).output.value("code", 0), 1);
  EXPECT_EQ(finish_cni(start_cni("JUMP", pod, cni_config(pod).dump())).output.value("code", 0), 4);
  r = finish_cni(start_cni("VERSION", pod, R"({"cniVersion":"1.0.0"})"));
  EXPECT_EQ(r.exit_code, 0);
  const auto versions = r.output.value("supportedVersions", json::array());
  EXPECT_NE(std::find(versions.begin(), versions.end(), "1.0.0"), versions.end());
}

TEST_F(AgentTest, host_network_pods_are_refused) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  pod.path = "/proc/" + std::to_string(agent_.pid()) + "/ns/net";
  json config = cni_config(pod);
  config["prevResult"]["ips"] = json::array();
  const CniResult r = finish_cni(start_cni("ADD", pod, config.dump()));
  EXPECT_EQ(r.exit_code, 1);
  EXPECT_NE(r.output.value("details", "").find("host network"), std::string::npos)
      << r.output.dump();
}

TEST_F(AgentTest, one_pods_trouble_is_its_own) {
  LabPod& bad = lab.add_pod(1);
  LabPod& good = lab.add_pod(2);
  const UniqueFd squatter = tcp_server(bad.netns, MELTEMI_HBONE_PORT);
  start_agent();
  control->decide(wanted(bad));
  control->decide(wanted(good));
  local::v1::Request request;
  auto& add = *request.mutable_add();
  add.set_name(bad.name);
  add.set_namespace_("shop");
  add.set_uid("uid-" + bad.name);
  add.set_netns_path(bad.path);
  add.set_deadline_ms(700);
  const auto response = call(request);
  ASSERT_OK(response);
  EXPECT_NE(response->error().find("15008"), std::string::npos) << response->error();
  EXPECT_EQ(run_cni("ADD", good).exit_code, 0);
  EXPECT_TRUE(captured(good));
  EXPECT_TRUE(eventually([&] {
    const auto s = control->reported("uid-" + bad.name);
    return s && !s->enrolled() && s->message().find("15008") != std::string::npos;
  }));
}

// --- life without the agent ----------------------------------------------------------------------

TEST_F(AgentTest, kill_9_of_the_agent_leaves_pods_captured_and_its_successor_takes_over) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  EXPECT_EQ(ztunnel.service_account(uid), "sa-pod1");
  const UniqueFd before = tcp_client(pod.netns, at("10.96.0.10", 80));
  const UniqueFd before_peer = accept_one(ztunnel.outbound(uid));
  ASSERT_TRUE(before_peer);
  const auto listener_cookie = [&] {
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    ::getsockopt(ztunnel.outbound(uid), SOL_SOCKET, SO_COOKIE, &cookie, &length);
    return cookie;
  };
  const uint64_t cookie = listener_cookie();

  stop_agent(SIGKILL);
  const UniqueFd between = tcp_client(pod.netns, at("10.96.0.11", 80));
  EXPECT_TRUE(accept_one(ztunnel.outbound(uid))) << "not captured while the agent is away";
  EXPECT_TRUE(talk(before.get(), before_peer.get()));

  // No control plane either: what is on disk is enough.
  start_agent({}, false);
  EXPECT_TRUE(eventually([&] { return ztunnel.snapshots() >= 2; }));
  EXPECT_TRUE(enrolled(pod));
  EXPECT_TRUE(ztunnel.serves(uid));
  EXPECT_EQ(listener_cookie(), cookie) << "the listener was replaced";
  const UniqueFd after = tcp_client(pod.netns, at("10.96.0.12", 80));
  EXPECT_TRUE(accept_one(ztunnel.outbound(uid)));
  EXPECT_TRUE(talk(before.get(), before_peer.get()));

  // It got the listeners back: now ztunnel may go, and connections wait instead of failing.
  ztunnel.stop();
  FakeZtunnel next(zds_path());
  EXPECT_TRUE(eventually([&] { return next.outbound(uid) >= 0; }));
}

TEST_F(AgentTest, a_lost_state_file_takes_no_pod_from_ztunnel) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  const sys::Cgroup cgroup = must(must(lab.cgroup.child("pods")).child(uid));
  auto app =
      must(sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &pod.netns, .cgroup = &cgroup}));
  wire::PodEnrolment e = wanted(pod);
  e.add_addresses(pod.v4.wire());
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(e);
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  const UniqueFd before = tcp_client(pod.netns, at("10.96.0.10", 80));
  const UniqueFd before_peer = accept_one(ztunnel.outbound(uid));
  ASSERT_TRUE(before_peer);

  stop_agent(SIGKILL);
  ASSERT_EQ(::unlink((lab.run_directory() + "/enrolments.json").c_str()), 0);
  control = std::make_unique<ControlPlane>(lab.node, false);
  start_agent();
  ::usleep(500'000);  // a snapshot would be here by now
  EXPECT_EQ(ztunnel.snapshots(), 1);
  const UniqueFd between = tcp_client(pod.netns, at("10.96.0.11", 80));
  EXPECT_TRUE(accept_one(ztunnel.outbound(uid)));

  control->decide(e);
  control->set_ready();
  EXPECT_TRUE(eventually([&] { return ztunnel.snapshots() >= 2; }));
  EXPECT_TRUE(ztunnel.serves(uid));
  EXPECT_TRUE(eventually([&] { return enrolled(pod); }));
  EXPECT_TRUE(talk(before.get(), before_peer.get()));
  const UniqueFd after = tcp_client(pod.netns, at("10.96.0.12", 80));
  EXPECT_TRUE(accept_one(ztunnel.outbound(uid)));
  EXPECT_OK(app.stop(seconds(1)));
}

TEST_F(AgentTest, ADamagedStateFileIsKeptAsideAndTakesNoPodFromZtunnel) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  const std::string file = lab.run_directory() + "/enrolments.json";
  const sys::Cgroup cgroup = must(must(lab.cgroup.child("pods")).child(uid));
  auto app =
      must(sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &pod.netns, .cgroup = &cgroup}));
  wire::PodEnrolment e = wanted(pod);
  e.add_addresses(pod.v4.wire());
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(e);
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));

  stop_agent(SIGKILL);
  std::string damaged = must(sys::read_file(file));
  damaged[damaged.find("netnsCookie") + 15] ^= 1;  // still JSON
  must(sys::write_file_atomically(file, damaged, 0600));
  control = std::make_unique<ControlPlane>(lab.node, false);
  start_agent();
  EXPECT_EQ(must(sys::read_file(file + ".refused")), damaged);
  EXPECT_EQ(ztunnel.snapshots(), 1) << "ztunnel was told of the pods that are known, which are none";
  EXPECT_TRUE(captured(pod));

  control->decide(e);
  control->set_ready();
  EXPECT_TRUE(eventually([&] { return enrolled(pod); }));
  EXPECT_TRUE(ztunnel.serves(uid));
  EXPECT_TRUE(eventually([&] {
    return std::ranges::any_of(control->problems(), [&](const std::string& problem) {
      return problem.find("checksum") != std::string::npos &&
             problem.find(file + ".refused") != std::string::npos;
    });
  })) << "nobody is told";
  EXPECT_OK(app.stop(seconds(1)));
}

TEST_F(AgentTest, AStateFileThatCannotBeReadNowIsWaitedFor) {
  LabPod& pod = lab.add_pod(1);
  const std::string file = lab.run_directory() + "/enrolments.json";
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound("uid-" + pod.name) >= 0; }));
  stop_agent(SIGKILL);
  ASSERT_EQ(::rename(file.c_str(), (file + ".elsewhere").c_str()), 0);
  // Opening a socket fails with ENXIO: something is there, and nobody can tell what.
  const UniqueFd in_the_way = must(sys::listen_packets(file, 0600));
  agent_ = spawn_agent({}, false);
  EXPECT_FALSE(eventually([&] { return serves(); }, seconds(1)));
  EXPECT_TRUE(captured(pod));
  ASSERT_EQ(::rename((file + ".elsewhere").c_str(), file.c_str()), 0);
  ASSERT_TRUE(eventually([&] { return serves(); }));
  EXPECT_TRUE(enrolled(pod)) << "it went on without what it could not read";
}

// Out of descriptors nobody is seen in /proc, no pin can be opened, no namespace entered. That ends no
// pod, forgets no ztunnel and no kubelet.
TEST_F(AgentTest, OutOfDescriptorsNothingIsConcluded) {
  LabPod& pod = lab.add_pod(1);
  LabPod& nameless = lab.add_pod(2);
  const sys::Cgroup kubelet = must(lab.cgroup.child("kubelet"));
  const std::string name = "meltemi-test-" + std::to_string(::getpid());
  sys::Netns temporary = must(sys::Netns::create_named(name));
  must(must(sys::Netlink::open_in(temporary)).add_address({.ip = ip("10.66.9.9"), .ifindex = 1}));
  auto app = must(sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &temporary}));
  start_agent({"--prober-cgroup=" + kubelet.path()});
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  control->decide(wanted(nameless));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  local::v1::Request request;
  auto& add = *request.mutable_add();
  add.set_name(nameless.name);
  add.set_namespace_("shop");
  add.set_uid("uid-" + nameless.name);
  add.set_netns_path(sys::Netns::named_path(name));
  add.add_addresses(ip("10.66.9.9").wire());
  const auto response = call(request);
  ASSERT_OK(response);
  EXPECT_EQ(response->error(), "");
  const uint64_t cookie = must(temporary.cookie());
  temporary = sys::Netns();
  ASSERT_OK(sys::Netns::remove_named(name));  // its process alone keeps it
  const auto bpf = must(agent::BpfStore::load({.directory = lab.bpf_directory(),
                                               .probe_v4 = ip(MELTEMI_PROBE_ADDRESS_V4),
                                               .probe_v6 = ip(MELTEMI_PROBE_ADDRESS_V6),
                                               .node_netns_cookie = must(lab.node.cookie()),
                                               .node_netns = must(lab.node.duplicate())}));
  ASSERT_TRUE(eventually([&] {
    return control->problems().empty() && control->reported("uid-" + nameless.name)->enrolled() &&
           must(bpf->cgroup_roles()).size() == 2;
  }));
  const auto roles = must(bpf->cgroup_roles());

  rlimit limit{}, none{};
  ASSERT_EQ(::prlimit(agent_.pid(), RLIMIT_NOFILE, nullptr, &limit), 0);
  none = limit;
  none.rlim_cur = 0;
  ASSERT_EQ(::prlimit(agent_.pid(), RLIMIT_NOFILE, &none, nullptr), 0);
  ASSERT_TRUE(eventually([&] {
    return std::ranges::any_of(control->problems(), [](const std::string& problem) {
      return problem.find("Too many open files") != std::string::npos;
    });
  })) << "nobody is told";
  ::usleep(700'000);  // two passes more
  EXPECT_EQ(must(bpf->cgroup_roles()), roles) << "ztunnel or the kubelet was forgotten";
  EXPECT_TRUE(must(bpf->enrolled(cookie))) << "a pod with a living process was given up";
  for (const std::string& uid : {"uid-" + pod.name, "uid-" + nameless.name}) {
    const auto status = control->reported(uid);
    ASSERT_TRUE(status);
    EXPECT_TRUE(status->enrolled());
    EXPECT_EQ(status->missing_size(), 0) << "nobody has seen that anything is missing";
    EXPECT_TRUE(ztunnel.serves(uid));
  }

  ASSERT_EQ(::prlimit(agent_.pid(), RLIMIT_NOFILE, &limit, nullptr), 0);
  EXPECT_TRUE(eventually([&] { return control->problems().empty(); })) << control->problems().front();
  EXPECT_TRUE(enrolled(pod));
  // What can be seen again has its consequences again.
  EXPECT_OK(app.stop(seconds(1)));
  EXPECT_TRUE(eventually([&] { return !must(bpf->enrolled(cookie)); }));
  EXPECT_EQ(must(bpf->cgroup_roles()), roles);
}

TEST_F(AgentTest, kill_9_of_ztunnel_makes_connections_wait_not_fail) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  {
    FakeZtunnel first(zds_path());
    ASSERT_TRUE(eventually([&] { return first.outbound(uid) >= 0; }));
  }
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  FakeZtunnel second(zds_path());
  ASSERT_TRUE(eventually([&] { return second.outbound(uid) >= 0; }));
  const UniqueFd accepted = accept_one(second.outbound(uid));
  ASSERT_TRUE(accepted);
  char byte = 0;
  ASSERT_TRUE(wait_for(accepted.get(), POLLIN));
  EXPECT_EQ(::recv(accepted.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'x');
}

TEST_F(AgentTest, kill_9_of_agent_and_ztunnel_heals) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  {
    FakeZtunnel ztunnel(zds_path());
    ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
    stop_agent(SIGKILL);
  }
  EXPECT_FALSE(captured(pod, 300)) << "nobody holds a listener";
  start_agent({}, false);
  EXPECT_TRUE(eventually([&] { return enrolled(pod); }));
  FakeZtunnel ztunnel(zds_path());
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  EXPECT_TRUE(accept_one(ztunnel.outbound(uid)));
}

TEST_F(AgentTest, a_second_agent_on_the_same_directory_is_refused) {
  start_agent();
  auto second = must(sys::Process::spawn(
      {.argv = {binary("meltemi-agent"), "--node-name=n1", "--run-dir=" + lab.run_directory(),
                "--cgroup=" + lab.cgroup.path(), "--bpf-dir=" + lab.bpf_directory()},
       .netns = &lab.node,
       .cgroup = &system_}));
  const auto status = second.wait(kLong);
  ASSERT_OK(status);
  EXPECT_EQ(WEXITSTATUS(*status), 1);
}

TEST_F(AgentTest, sigterm_leaves_capture_and_uninstall_leaves_nothing) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  stop_agent(SIGTERM);
  EXPECT_TRUE(captured(pod));
  auto uninstall = must(sys::Process::spawn(
      {.argv = {binary("meltemi-agent"), "--uninstall", "--run-dir=" + lab.run_directory(),
                "--cgroup=" + lab.cgroup.path(), "--bpf-dir=" + lab.bpf_directory()},
       .netns = &lab.node,
       .cgroup = &system_}));
  EXPECT_EQ(uninstall.wait(kLong).value_or(-1), 0);
  EXPECT_FALSE(captured(pod, 300));
  for (const auto& entry : std::filesystem::directory_iterator(lab.bpf_directory()))
    EXPECT_FALSE(entry.is_directory()) << entry.path();  // the kernel's own *.debug files stay
  auto netlink = must(sys::Netlink::open_in(pod.netns));
  EXPECT_EQ(must(netlink.rules(AF_INET)).size(), 3u) << "local, main, default";
  auto node = must(sys::Netlink::open_in(lab.node));
  for (const sys::Address& a : must(node.addresses()))
    EXPECT_NE(a.ip, ip(MELTEMI_PROBE_ADDRESS_V4));
}

TEST_F(AgentTest, operators_see_readiness_and_what_bpf_did) {
  LabPod& pod = lab.add_pod(1);
  start_agent({"--health-listen=127.0.0.1:15022"});
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(captured(pod));
  const auto curl = [&](const std::string& command) {
    auto p = must(sys::Process::spawn({.argv = {"sh", "-c", command}, .netns = &lab.node}));
    return p.wait(kLong).value_or(-1) == 0;
  };
  EXPECT_TRUE(
      eventually([&] { return curl("curl -sf http://127.0.0.1:15022/healthz/ready >/dev/null"); }));
  EXPECT_TRUE(eventually([&] {
    return curl(
        "curl -sf http://127.0.0.1:15022/metrics | grep -q '^meltemi_agent_pods_enrolled 1' && "
        "curl -sf http://127.0.0.1:15022/metrics | "
        "grep -q 'meltemi_capture_events_total{event=\"captured\"} [1-9]'");
  }));
}

// --- decisions that change -----------------------------------------------------------------------

TEST_F(AgentTest, leaving_the_mesh_cuts_no_captured_connection) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  UniqueFd accepted = accept_one(ztunnel.outbound(uid));
  ASSERT_TRUE(accepted);

  control->decide(wanted(pod, false));
  ASSERT_TRUE(eventually([&] { return !enrolled(pod); }));
  EXPECT_TRUE(eventually([&] {
    const auto s = control->reported(uid);
    return s && !s->enrolled();
  }));
  EXPECT_FALSE(captured(pod, 300)) << "new connections are captured still";
  ::usleep(700'000);  // more than two looks of the drain check
  EXPECT_TRUE(ztunnel.serves(uid)) << "ztunnel was told to drop a pod with a live connection";
  EXPECT_TRUE(talk(client.get(), accepted.get()));

  client.reset();
  accepted.reset();
  EXPECT_TRUE(eventually([&] { return !ztunnel.serves(uid); }));
  EXPECT_TRUE(eventually([&] {
    return must(must(sys::Netlink::open_in(pod.netns)).routes(AF_INET, MELTEMI_ROUTE_TABLE))
        .empty();
  }));
}

TEST_F(AgentTest, a_connection_that_never_ends_does_not_hold_a_pod_for_ever) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent({"--drain-timeout=500ms"});
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.outbound(uid) >= 0; }));
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  control->decide(wanted(pod, false));
  EXPECT_TRUE(eventually([&] { return !ztunnel.serves(uid); }));
}

TEST_F(AgentTest, a_control_plane_that_forgets_a_pod_does_not_unmesh_it) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  control->forget("uid-" + pod.name);
  LabPod& later = lab.add_pod(2);  // a later decision has arrived, hence the earlier removal too
  control->decide(wanted(later));
  ASSERT_EQ(run_cni("ADD", later).exit_code, 0);
  EXPECT_TRUE(enrolled(pod));
  EXPECT_TRUE(captured(pod));
  EXPECT_EQ(run_cni("DEL", pod).exit_code, 0);
  EXPECT_FALSE(captured(pod, 300));
}

TEST_F(AgentTest, probe_ports_and_policy_follow_the_decision) {
  LabPod& pod = lab.add_pod(1);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  // This process plays the kubelet.
  start_agent({"--prober-cgroup=" + must(sys::Cgroup::of_process(0)).path()});
  wire::PodEnrolment e = wanted(pod);
  e.set_inbound_mode(wire::STRICT);
  control->decide(e);
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  const UniqueFd early = tcp_client(lab.node, {pod.v4, 8080});
  EXPECT_FALSE(accept_one(app.get(), 300)) << "no probe is declared yet";
  e.add_probe_ports(8080);
  control->decide(e);
  EXPECT_TRUE(eventually([&] {
    const UniqueFd probe = tcp_socket(lab.node, AF_INET);
    (void)connect_within(probe.get(), {pod.v4, 8080}, 1000);
    return accept_one(app.get(), 200).valid();
  }));
}

// --- looking -------------------------------------------------------------------------------------

TEST_F(AgentTest, LookingAtPodsChangesNothingThatIsReported) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent({"--reconcile-interval=1h"});  // nothing is mended meanwhile
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return control->reported(uid).value_or(wire::PodStatus()).enrolled(); }));
  const auto reflect = [&](const char* value) {
    must(pod.netns.run([&] { return sys::write_sysctl("net/ipv4/fwmark_reflect", value); }));
  };
  for (int i = 0; i < 4; ++i) {
    reflect("0");
    const auto broken = listed(pod.name);
    ASSERT_TRUE(broken);
    EXPECT_FALSE(broken->enrolled()) << "who looks is told the truth";
    EXPECT_EQ(broken->missing_size(), 1);
    EXPECT_EQ(run_cni("CHECK", pod).exit_code, 1);
    reflect("1");
    EXPECT_TRUE(enrolled(pod));
  }
  reflect("0");
  EXPECT_FALSE(enrolled(pod));
  // A later report has arrived, hence all before it.
  LabPod& later = lab.add_pod(2);
  control->decide(wanted(later));
  ASSERT_EQ(run_cni("ADD", later).exit_code, 0);
  ASSERT_TRUE(eventually([&] {
    return control->reported("uid-" + later.name).value_or(wire::PodStatus()).enrolled();
  }));
  EXPECT_TRUE(control->reported(uid)->enrolled());
  EXPECT_FALSE(control->withdrawn(uid)) << "peers were told to talk plaintext";
}

TEST_F(AgentTest, APodThatCannotBeMendedStaysEnrolledForItsPeersAndSaysWhatIsMissing) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return control->reported(uid).value_or(wire::PodStatus()).enrolled(); }));
  // The agent dies, its listeners with it, and something in the pod takes the port.
  stop_agent(SIGKILL);
  UniqueFd squatter = tcp_server(pod.netns, MELTEMI_HBONE_PORT);
  start_agent();
  ASSERT_TRUE(eventually([&] {
    const auto s = control->reported(uid);
    return s && s->missing_size() > 0 && s->message().find("15008") != std::string::npos;
  }));
  EXPECT_TRUE(control->reported(uid)->enrolled());
  squatter.reset();
  EXPECT_TRUE(eventually([&] { return control->reported(uid)->missing_size() == 0; }));
  EXPECT_FALSE(control->withdrawn(uid));
  // A decision ends it.
  control->decide(wanted(pod, false));
  EXPECT_TRUE(eventually([&] { return !control->reported(uid)->enrolled(); }));
}

TEST_F(AgentTest, ANodeWhoseKubeletIsNotFoundSaysSo) {
  start_agent();
  ASSERT_TRUE(eventually([&] { return !control->problems().empty(); }));
  EXPECT_NE(control->problems().front().find("--prober-cgroup"), std::string::npos)
      << control->problems().front();
  stop_agent(SIGKILL);
  start_agent({"--prober-cgroup=" + lab.cgroup.path() + "/kubelet"});  // not there yet
  EXPECT_TRUE(eventually([&] {
    return !control->problems().empty() &&
           control->problems().front().find("/kubelet") != std::string::npos;
  }));
  const sys::Cgroup kubelet = must(lab.cgroup.child("kubelet"));
  EXPECT_TRUE(eventually([&] { return control->problems().empty(); })) << "it came, and is not seen";
}

// --- finding pods --------------------------------------------------------------------------------

TEST_F(AgentTest, a_pod_that_was_there_before_the_agent_is_found_by_its_cgroup) {
  LabPod& pod = lab.add_pod(1);
  const sys::Cgroup cgroup = must(must(lab.cgroup.child("pods")).child("uid-" + pod.name));
  auto app =
      must(sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &pod.netns, .cgroup = &cgroup}));
  start_agent();
  wire::PodEnrolment e = wanted(pod);
  e.add_addresses(pod.v4.wire());
  control->decide(e);
  EXPECT_TRUE(eventually([&] { return enrolled(pod); }));
  EXPECT_TRUE(captured(pod));
  EXPECT_OK(app.stop(seconds(1)));
}

TEST_F(AgentTest, a_namespace_without_the_pods_address_is_not_given_its_identity) {
  LabPod& pod = lab.add_pod(1);
  LabPod& other = lab.add_pod(2);
  // A process of the pod's cgroup sits in a stranger's namespace.
  const sys::Cgroup cgroup = must(must(lab.cgroup.child("pods")).child("uid-" + pod.name));
  auto intruder = must(
      sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &other.netns, .cgroup = &cgroup}));
  start_agent();
  wire::PodEnrolment e = wanted(pod);
  e.add_addresses(pod.v4.wire());
  control->decide(e);
  EXPECT_TRUE(eventually([&] {
    const auto s = control->reported("uid-" + pod.name);
    return s && s->message().find("does not have the pod's address") != std::string::npos;
  }));
  EXPECT_FALSE(captured(other, 300));
  EXPECT_OK(intruder.stop(seconds(1)));
}

TEST_F(AgentTest, processes_that_capture_does_not_reach_are_listed) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  // As `ip netns exec` from a root shell does.
  const sys::Cgroup outside =
      must(sys::Cgroup::create("meltemi-test-outside-" + std::to_string(::getpid())));
  auto stray = must(
      sys::Process::spawn({.argv = {"sleep", "120"}, .netns = &pod.netns, .cgroup = &outside}));
  const std::string pid = std::to_string(stray.pid());
  const auto p = listed(pod.name);
  ASSERT_TRUE(p);
  ASSERT_EQ(p->uncaptured_processes_size(), 1);
  EXPECT_EQ(p->uncaptured_processes(0), pid + " sleep");
  EXPECT_OK(stray.stop(seconds(1)));
  EXPECT_OK(outside.remove());
}

TEST_F(AgentTest, the_end_of_a_namespace_without_del_leaves_nothing) {
  LabPod& pod = lab.add_pod(1);
  sys::Netns temporary =
      must(sys::Netns::create_named("meltemi-test-" + std::to_string(::getpid())));
  const std::string name = "meltemi-test-" + std::to_string(::getpid());
  auto netlink = must(sys::Netlink::open_in(temporary));
  must(netlink.add_address({.ip = ip("10.66.9.9"), .ifindex = 1}));
  start_agent();
  wire::PodEnrolment e = wanted(pod);
  control->decide(e);
  local::v1::Request request;
  auto& add = *request.mutable_add();
  add.set_name(pod.name);
  add.set_namespace_("shop");
  add.set_uid(e.uid());
  add.set_netns_path(sys::Netns::named_path(name));
  add.add_addresses(ip("10.66.9.9").wire());
  const auto response = call(request);
  ASSERT_OK(response);
  EXPECT_EQ(response->error(), "");
  temporary = sys::Netns();
  ASSERT_OK(sys::Netns::remove_named(name));
  EXPECT_TRUE(eventually([&] { return !enrolled(pod); }));
  EXPECT_TRUE(eventually([&] {
    auto ls = sys::Process::spawn(
        {.argv = {"sh", "-c", "test -z \"$(ls " + lab.bpf_directory() + "/v*/pods)\""}});
    return ls->wait(kLong).value_or(-1) == 0;
  })) << "pins are left";
}

// --- the peer's ZDS ------------------------------------------------------------------------------

TEST_F(AgentTest, AnIstioZtunnelIsRefusedByNameAndOwnsNoDials) {
  LabPod& pod = lab.add_pod(1);
  const std::string uid = "uid-" + pod.name;
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  const UniqueFd socket = must(sys::connect_packets(zds_path()));
  using namespace std::string_view_literals;
  ASSERT_OK(sys::send_packet(socket.get(), as_bytes("\x08\x01"sv), {}, seconds(5)));
  EXPECT_TRUE(eventually([&] {
    const auto s = control->reported(uid);
    return s && s->message().find("listener_fds") != std::string::npos;
  }));
  EXPECT_FALSE(control->ztunnel_connected());
  // It is this process: with the tunnel's mark it would be taken for ztunnel, had it been accepted.
  const UniqueFd dial = tcp_socket(pod.netns, AF_INET);
  const uint32_t mark = MELTEMI_TUNNEL_MARK;
  ASSERT_EQ(::setsockopt(dial.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
  EXPECT_EQ(connect_within(dial.get(), at("10.96.0.10", 80), kPatience), EPERM);
}

TEST_F(AgentTest, AZtunnelIsKnownByItsCgroup) {
  LabPod& pod = lab.add_pod(1);
  LabPod& peer = lab.add_pod(2);
  const UniqueFd server = tcp_server(peer.netns, 9000);
  start_agent();
  FakeZtunnel ztunnel(zds_path());
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  ASSERT_TRUE(eventually([&] { return ztunnel.serves("uid-" + pod.name); }));
  // Past capture and past the guard.
  for (const IpAddress& to : peer.addresses()) {
    const UniqueFd dial = tcp_socket(pod.netns, to.is_v4() ? AF_INET : AF_INET6);
    const uint32_t mark = MELTEMI_TUNNEL_MARK;
    ASSERT_EQ(::setsockopt(dial.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    ASSERT_EQ(connect_within(dial.get(), {to, 9000}, kPatience), 0);
    EXPECT_TRUE(accept_one(server.get()));
  }
  const auto p = listed(pod.name);
  ASSERT_TRUE(p);
  EXPECT_EQ(p->guard(), "on");
  EXPECT_EQ(p->guard_dropped(), 0u);
}

TEST_F(AgentTest, garbage_on_the_sockets_ends_the_connection_and_nothing_else) {
  LabPod& pod = lab.add_pod(1);
  start_agent();
  control->decide(wanted(pod));
  ASSERT_EQ(run_cni("ADD", pod).exit_code, 0);
  for (const std::string& path : {zds_path(), lab.run_directory() + "/agent.sock"}) {
    const UniqueFd socket = must(sys::connect_packets(path));
    ASSERT_OK(sys::send_packet(socket.get(), as_bytes(std::string(300, '\xff')), {}, seconds(5)));
    EXPECT_EQ(sys::receive_packet(socket.get(), kLong).error().reason, Reason::kServerClosedEarly)
        << path;
  }
  EXPECT_TRUE(enrolled(pod));
}

}  // namespace
}  // namespace meltemi::test
