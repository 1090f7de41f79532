// The whole control plane in one process: manifests in a directory, real TLS, tokens, streams and
// certificates, as ztunnel, agent and waypoint use it.
#include "userspace/control/control_plane.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "userspace/control/monitoring.h"
#include "userspace/http/router.h"
#include "userspace/pki/certificate_manager.h"
#include "userspace/pki/token.h"
#include "userspace/xds/ca_client.h"
#include "userspace/xds/delta_client.h"
#include "userspace/xds/node_report_client.h"
#include "userspace/xds/workload_convert.h"
#include "workload/workload.pb.h"

namespace meltemi::control {
namespace {

using namespace std::chrono_literals;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kPatience = 60s;
const std::string kWebUid = "Kubernetes//Pod/shop/web-1";

std::string read(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Seen {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::string> resources;
  int responses = 0;

  xds::Handler handler() {
    return [this](const xds::Update& update) {
      const std::lock_guard lock(mutex);
      ++responses;
      for (const auto& r : update.resources) resources[std::string(r.name)] = r.body;
      for (const auto name : update.removed) resources.erase(std::string(name));
      changed.notify_all();
      return std::vector<xds::Rejection>();
    };
  }
  template <typename F>
  bool wait(F&& condition) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kPatience, condition);
  }
  bool wait_has(const std::string& name, bool there = true) {
    return wait([&] { return resources.contains(name) == there; });
  }
  model::WorkloadPtr workload(const std::string& uid) {  // REQUIRES the lock
    const auto it = resources.find(uid);
    if (it == resources.end()) return nullptr;
    const auto decoded = xds::decode_address(it->second);
    return decoded && std::holds_alternative<model::WorkloadPtr>(*decoded)
               ? std::get<model::WorkloadPtr>(*decoded)
               : nullptr;
  }
  bool wait_hbone(const std::string& uid, bool hbone) {
    return wait([&] {
      const auto w = workload(uid);
      return w && (w->protocol == model::TunnelProtocol::kHbone) == hbone;
    });
  }
};

struct ControlPlaneTest : ::testing::Test {
  ControlPlaneTest() {
    std::string name = "/tmp/meltemi-control-XXXXXX";
    root = mkdtemp(name.data());
    std::filesystem::create_directories(root + "/config/state/node");
    std::ofstream(root + "/token.pub") << key.public_key_pem();
    put("mesh.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {istio.io/dataplane-mode: ambient}\n"
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
        "spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    put_pod("web-1", "uid-web", "web", "node1", "10.244.1.2");
    put_pod("db-1", "uid-db", "db", "node2", "10.244.2.2");
  }
  ~ControlPlaneTest() override {
    stop();
    std::filesystem::remove_all(root);
  }

  void put(const std::string& file, const std::string& text) const {
    const std::string path = root + "/config/" + file;
    const std::string temporary = root + "/config/.writing";
    std::ofstream(temporary) << text;
    std::filesystem::rename(temporary, path);
  }
  void remove(const std::string& file) const { std::filesystem::remove(root + "/config/" + file); }
  void put_pod(const std::string& name, const std::string& uid, const std::string& account,
               const std::string& node, const std::string& ip, const std::string& labels = "") const {
    put("state/node/shop." + name + ".yaml",
        fmt::format("apiVersion: v1\nkind: Pod\nmetadata: {{name: {0}, namespace: shop, uid: {1}, labels: "
                    "{{app: {2}{5}}}}}\nspec: {{nodeName: {3}, serviceAccountName: {2}, containers: [{{name: c, "
                    "command: [sleep]}}]}}\nstatus: {{phase: Running, podIP: {4}, podIPs: [{{ip: {4}}}], "
                    "conditions: [{{type: Ready, status: \"True\"}}]}}\n",
                    name, uid, account, node, ip, labels));
  }
  void put_gateway() const {
    put("gateway.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\n"
        "spec:\n  gatewayClassName: meltemi-waypoint\n  listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n");
  }

  void start() {
    Settings settings;
    settings.config_dir = root + "/config";
    settings.ca_dir = root + "/ca";
    settings.token_public_key = {root + "/token.pub"};
    settings.xds_listen = {"127.0.0.1:0"};
    settings.monitoring_listen = {"127.0.0.1:0"};
    settings.drain = 0s;
    auto created = ControlPlane::create(settings);
    ASSERT_TRUE(created) << created.error().to_string();
    plane = std::move(*created);
    stop_fd.reset(eventfd(0, EFD_CLOEXEC));
    thread = std::thread([this] {
      const Status ended = plane->run(stop_fd.get());
      EXPECT_TRUE(ended) << ended.error().to_string();
    });
    while (!plane->ready()) std::this_thread::sleep_for(1ms);
    address = fmt::format("https://127.0.0.1:{}", plane->xds_ports()[0]);
  }
  void stop() {
    if (!thread.joinable()) return;
    eventfd_write(stop_fd.get(), 1);
    thread.join();
    plane.reset();
  }

  std::string token(const std::string& ns, const std::string& account, const std::string& node,
                    const std::string& pod = "", const std::string& uid = "",
                    std::chrono::seconds life = 3600s, const pki::PrivateKey* signer = nullptr) {
    pki::TokenClaims claims;
    claims.ns = ns;
    claims.service_account = account;
    claims.node_name = node;
    claims.pod_name = pod;
    claims.pod_uid = uid;
    claims.issued_at = std::chrono::system_clock::now() - 7200s;
    claims.expires_at = std::chrono::system_clock::now() + life;
    const std::string path = root + "/token." + std::to_string(++tokens);
    std::ofstream(path) << *pki::sign_token(signer ? *signer : key, claims);
    return path;
  }
  xds::ChannelOptions channel(const std::string& token_file) const {
    xds::ChannelOptions out;
    out.address = address;
    out.root_ca = root + "/ca/root-cert.pem";
    out.token_file = token_file;
    return out;
  }
  std::string ztunnel_token(const std::string& node = "node1") {
    return token("istio-system", "ztunnel", node);
  }
  static xds::Node node_of(const std::string& role) {
    return xds::make_node(role, "10.0.0.1", "p", "istio-system", "cluster.local");
  }
  // "" or the reason of the refusal.
  std::string sign(const std::string& token_file, const std::string& identity) {
    xds::CaClient ca(channel(token_file));
    const auto id = *model::Identity::parse(identity);
    const auto private_key = *pki::PrivateKey::generate();
    std::promise<Result<std::vector<std::string>>> promise;
    ca.sign(*pki::make_csr(private_key, id), 0s, identity,
            [&](auto chain) { promise.set_value(std::move(chain)); });
    const auto chain = promise.get_future().get();
    if (!chain) return std::string(reason_name(chain.error().reason));
    const auto cert = pki::assemble(private_key, id, *chain, std::chrono::system_clock::now());
    EXPECT_TRUE(cert) << cert.error().to_string();
    return "";
  }
  // `plain`: pods of which the agent says that they are not captured.
  void report(const std::string& node, std::vector<std::string> uids,
              std::vector<std::string> plain = {}) {
    if (!reporter) {
      reporter = std::make_unique<xds::NodeReportClient>(
          channel(token("istio-system", "meltemi-agent", node)));
    }
    node::v1::NodeReport out;
    out.set_node(node);
    for (auto& uid : uids) {
      auto* pod = out.add_pods();
      pod->set_uid(uid);
      pod->set_enrolled(true);
    }
    for (auto& uid : plain) out.add_pods()->set_uid(uid);
    reporter->report(out);
  }
  std::string curl(const std::string& path) const {
    const std::string url =
        fmt::format("http://{}{}", plane->monitoring_addresses()[0].to_string(), path);
    FILE* pipe = popen(("curl -s -m 20 " + url).c_str(), "r");
    std::string out;
    char buffer[4096];
    while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  bool eventually(const std::function<bool()>& condition) const {
    for (const auto end = std::chrono::steady_clock::now() + kPatience;
         std::chrono::steady_clock::now() < end;) {
      if (condition()) return true;
      std::this_thread::sleep_for(5ms);
    }
    return false;
  }

  pki::PrivateKey key = *pki::PrivateKey::generate();
  std::string root, address;
  int tokens = 0;
  UniqueFd stop_fd;
  std::thread thread;
  std::unique_ptr<ControlPlane> plane;
  std::unique_ptr<xds::NodeReportClient> reporter;
};

TEST_F(ControlPlaneTest, ZtunnelSeesTheMeshAndItsChanges) {
  start();
  Seen addresses, policies;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  client.subscribe(xds::kTypeAuthorization, policies.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_has(kWebUid));
  ASSERT_TRUE(addresses.wait_has("shop/web.shop.svc.cluster.local"));
  put_pod("web-2", "uid-web2", "web", "node2", "10.244.2.9");
  ASSERT_TRUE(addresses.wait_has("Kubernetes//Pod/shop/web-2"));
  remove("state/node/shop.web-2.yaml");
  ASSERT_TRUE(addresses.wait_has("Kubernetes//Pod/shop/web-2", false));
  put("policy.yaml",
      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\n"
      "spec: {action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}\n");
  ASSERT_TRUE(policies.wait_has("shop/deny"));
  EXPECT_EQ(client.status().connects, 1u) << "all on one stream";
}

// A ztunnel closes a workload that names a policy it does not know. However policies come and go, the
// stream never shows it such a workload.
TEST_F(ControlPlaneTest, AWorkloadNeverNamesAPolicyThatTheStreamDoesNotHave) {
  start();
  std::mutex mutex;
  std::set<std::string> known, dangling;
  std::map<std::string, std::vector<std::string>> named;
  size_t policies_seen = 0, policies_gone = 0;
  const auto check = [&] {
    for (const auto& [uid, names] : named) {
      for (const std::string& name : names) {
        if (!known.contains(name)) dangling.insert(uid + " names " + name);
      }
    }
  };
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  // The worse order of the two: addresses are asked for first.
  client.subscribe(xds::kTypeAddress, [&](const xds::Update& update) {
    const std::lock_guard lock(mutex);
    for (const auto& resource : update.resources) {
      ::istio::workload::Address address;
      EXPECT_TRUE(address.ParseFromString(std::string(resource.body)));
      const auto& policies = address.workload().authorization_policies();
      named[std::string(resource.name)] = {policies.begin(), policies.end()};
    }
    for (const auto name : update.removed) named.erase(std::string(name));
    check();
    return std::vector<xds::Rejection>();
  });
  client.subscribe(xds::kTypeAuthorization, [&](const xds::Update& update) {
    const std::lock_guard lock(mutex);
    for (const auto& resource : update.resources) known.emplace(resource.name);
    for (const auto name : update.removed) known.erase(std::string(name));
    policies_seen += update.resources.size();
    policies_gone += update.removed.size();
    check();
    return std::vector<xds::Rejection>();
  });
  ASSERT_TRUE(client.start());
  const auto web_names = [&] {
    const std::lock_guard lock(mutex);
    return named.contains(kWebUid) ? named[kWebUid].size() : size_t{99};
  };
  ASSERT_TRUE(eventually([&] { return web_names() == 0; }));
  for (int round = 0; round < 20; ++round) {
    for (const char* name : {"a", "b"}) {
      put(std::string(name) + ".yaml",
          fmt::format("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {}, "
                      "namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: web}}}}, action: DENY, "
                      "rules: [{{from: [{{source: {{namespaces: [other]}}}}]}}]}}\n",
                      name));
    }
    ASSERT_TRUE(eventually([&] { return web_names() == 2; })) << round;
    remove("a.yaml");
    remove("b.yaml");
    ASSERT_TRUE(eventually([&] { return web_names() == 0; })) << round;
  }
  EXPECT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex);
    return known.empty();
  })) << "what is gone is told too";
  const std::lock_guard lock(mutex);
  EXPECT_EQ(dangling, std::set<std::string>());
  EXPECT_GE(policies_seen, 40u);
  EXPECT_GE(policies_gone, 40u);
}

TEST_F(ControlPlaneTest, APodIsHboneOnceItsAgentSaysSoUntilItsUnenrolmentWasDecided) {
  start();
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, false));
  // A pod of another node, in the report of node1's agent, does not count.
  report("node1", {"uid-web", "uid-db"});
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, true));
  ASSERT_TRUE(addresses.wait_hbone("Kubernetes//Pod/shop/db-1", false));
  // An agent that lost its state, then one that calls the pod plain: nobody has decided that. The
  // marker shows that both reports were taken.
  report("node1", {});
  report("node1", {"uid-marker"}, {"uid-web"});
  put_pod("marker", "uid-marker", "web", "node1", "10.244.1.8");
  ASSERT_TRUE(addresses.wait_hbone("Kubernetes//Pod/shop/marker", true));
  {
    const std::lock_guard lock(addresses.mutex);
    EXPECT_EQ(addresses.workload(kWebUid)->protocol, model::TunnelProtocol::kHbone);
  }
  // Now it is decided; what the agent said before holds.
  put_pod("web-1", "uid-web", "web", "node1", "10.244.1.2", ", istio.io/dataplane-mode: none");
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, false));
}

// The other order: first the decision, and HBONE until the agent has taken the pod out.
TEST_F(ControlPlaneTest, ADecisionAloneDoesNotMakePeersTalkPlaintext) {
  start();
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  report("node1", {"uid-web"});
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, true));
  put_pod("web-1", "uid-web", "web", "node1", "10.244.1.2", ", istio.io/dataplane-mode: none");
  put_pod("later", "uid-later", "web", "node1", "10.244.1.8");
  ASSERT_TRUE(addresses.wait_has("Kubernetes//Pod/shop/later"));
  {
    const std::lock_guard lock(addresses.mutex);
    EXPECT_EQ(addresses.workload(kWebUid)->protocol, model::TunnelProtocol::kHbone);
  }
  report("node1", {}, {"uid-web"});
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, false));
}

// Reports and objects come by different ways: either may be first.
TEST_F(ControlPlaneTest, AReportCountsForPodsThatComeAfterIt) {
  start();
  report("node1", {"uid-late", "uid-elsewhere"});
  ASSERT_TRUE(eventually([&] { return reporter->acknowledged(); }));
  reporter.reset();  // it says it once
  put_pod("late", "uid-late", "web", "node1", "10.244.1.9");
  put_pod("elsewhere", "uid-elsewhere", "web", "node2", "10.244.2.9");
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_hbone("Kubernetes//Pod/shop/late", true));
  ASSERT_TRUE(addresses.wait_hbone("Kubernetes//Pod/shop/elsewhere", false));
}

TEST_F(ControlPlaneTest, ARestartDoesNotCallEnrolledPodsPlaintext) {
  start();
  report("node1", {"uid-web"});
  Seen before;
  {
    xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
    client.subscribe(xds::kTypeAddress, before.handler());
    ASSERT_TRUE(client.start());
    ASSERT_TRUE(before.wait_hbone(kWebUid, true));
  }
  reporter.reset();
  stop();
  start();
  Seen after;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, after.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(after.wait([&] { return after.responses > 0; }));
  const std::lock_guard lock(after.mutex);
  EXPECT_EQ(after.responses, 1);
  ASSERT_TRUE(after.workload(kWebUid));
  EXPECT_EQ(after.workload(kWebUid)->protocol, model::TunnelProtocol::kHbone);
}

// Who was enrolled is not known then: what is decided counts until the agents have spoken.
TEST_F(ControlPlaneTest, AListOfEnrolledPodsThatCannotBeReadMakesNobodyTalkPlaintext) {
  put_pod("out-1", "uid-out", "web", "node1", "10.244.1.7", ", istio.io/dataplane-mode: none");
  std::filesystem::create_directories(root + "/config/state/control");
  std::ofstream(root + "/config/state/control/.enrolled.json") << "{\"node1\": [\"uid-w";
  start();
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, true));
  {
    const std::lock_guard lock(addresses.mutex);
    EXPECT_EQ(addresses.responses, 1) << "from the first answer on";
    EXPECT_NE(addresses.workload("Kubernetes//Pod/shop/out-1")->protocol, model::TunnelProtocol::kHbone)
        << "it is not to be enrolled";
    EXPECT_EQ(addresses.workload("Kubernetes//Pod/shop/db-1")->protocol, model::TunnelProtocol::kHbone);
  }
  report("node1", {}, {"uid-web"});
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, false)) << "its agent knows better";
  const std::lock_guard lock(addresses.mutex);
  EXPECT_EQ(addresses.workload("Kubernetes//Pod/shop/db-1")->protocol, model::TunnelProtocol::kHbone)
      << "the agent of node2 has said nothing yet";
}

TEST_F(ControlPlaneTest, TheCaKnowsWhoRunsWhere) {
  start();
  const std::string web = "spiffe://cluster.local/ns/shop/sa/web";
  EXPECT_EQ(sign(ztunnel_token("node1"), web), "");
  EXPECT_EQ(sign(ztunnel_token("node2"), web), "permission");
  const std::string own = token("shop", "web", "node1", "web-1", "uid-web");
  EXPECT_EQ(sign(own, web), "") << "its own";
  EXPECT_EQ(sign(token("shop", "web", "node1", "web-1", "uid-before"), web), "permission")
      << "of a pod that is gone";
  EXPECT_EQ(sign(own, "spiffe://cluster.local/ns/shop/sa/db"), "permission");
  EXPECT_EQ(sign(token("istio-system", "ztunnel", "node1", "", "", -3600s), web), "permission")
      << "expired";
  const auto stranger = *pki::PrivateKey::generate();
  EXPECT_EQ(sign(token("istio-system", "ztunnel", "node1", "", "", 3600s, &stranger), web),
            "permission")
      << "forged";
  EXPECT_EQ(plane->ca().issued(), 2u);
  EXPECT_THAT(curl("/metrics"), HasSubstr("citadel_server_success_cert_issuance_count 2"));
}

TEST_F(ControlPlaneTest, ADeletedServiceAccountLosesStreamAndCertificates) {
  const std::string web = "spiffe://cluster.local/ns/shop/sa/web";
  const auto account = [](const char* ns, const char* name) {
    return fmt::format("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {}, namespace: {}}}\n",
                       name, ns);
  };
  put("web.yaml", account("shop", "web"));
  put("ztunnel.yaml", account("istio-system", "ztunnel"));
  start();
  report("node1", {"uid-web"});
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_hbone(kWebUid, true));
  EXPECT_EQ(sign(ztunnel_token(), web), "");
  remove("web.yaml");
  ASSERT_TRUE(eventually([&] { return plane->accounts().gone() == 1; }));
  EXPECT_EQ(sign(ztunnel_token(), web), "permission");
  EXPECT_EQ(client.status().state, xds::StreamState::kConnected) << "another account's";
  remove("ztunnel.yaml");
  ASSERT_TRUE(eventually([&] { return client.status().state != xds::StreamState::kConnected; }));
  EXPECT_THAT(client.status().last_error, HasSubstr("service account istio-system/ztunnel was deleted"));
  EXPECT_THAT(curl("/metrics"),
              HasSubstr("meltemi_xds_streams_ended_total{reason=\"no_longer_allowed\"} 1\n"));
}

TEST_F(ControlPlaneTest, AnAgentSeesItsNodesPods) {
  start();
  Seen enrolments;
  xds::DeltaClient client(channel(token("istio-system", "meltemi-agent", "node1")), node_of("agent"));
  client.subscribe(xds::kTypePodEnrolment, enrolments.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(enrolments.wait_has("uid-web"));
  put_pod("new-1", "uid-new", "web", "node1", "10.244.1.7");
  ASSERT_TRUE(enrolments.wait_has("uid-new"));
  const std::lock_guard lock(enrolments.mutex);
  EXPECT_EQ(enrolments.resources.count("uid-db"), 0u);
  node::v1::PodEnrolment web;
  ASSERT_TRUE(web.ParseFromString(enrolments.resources["uid-web"]));
  EXPECT_TRUE(web.enrol());
  EXPECT_EQ(web.reason(), "namespace_opt_in");
}

TEST_F(ControlPlaneTest, ABadFileChangesNothingButAStatus) {
  put("rule.yaml",
      "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\n"
      "spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n");
  start();
  const std::string status = root + "/config/state/control/status.virtualservice.shop.web.yaml";
  ASSERT_TRUE(eventually([&] { return read(status).find("status: \"True\"") != std::string::npos; }));
  const auto before = plane->stats().resource_changes;
  put("rule.yaml",
      "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\n"
      "spec:\n  hosts: [web]\n  http: [{rooute: []}]\n");
  put("rubbish.yaml", "a: [");
  ASSERT_TRUE(eventually([&] { return plane->stats().rejected_files == 2; }));
  EXPECT_EQ(plane->stats().resource_changes, before);
  EXPECT_EQ(plane->objects(config::Kind::kVirtualService), 1u) << "the last good one";
  EXPECT_THAT(plane->problems_text(),
              AllOf(HasSubstr("rule.yaml:6"), HasSubstr("VirtualService shop/web"),
                    HasSubstr("spec.http[0].rooute"), HasSubstr("`route`"), HasSubstr("rubbish.yaml")));
  ASSERT_TRUE(eventually([&] { return read(status).find("reason: Invalid") != std::string::npos; }));
  EXPECT_THAT(read(status), HasSubstr("last good version stays"));
  const std::string summary =
      root + "/config/state/control/configmap.istio-system.meltemi-config-status.yaml";
  ASSERT_TRUE(eventually([&] { return read(summary).find("rubbish.yaml") != std::string::npos; }));
  // A file that vanishes or is mended takes its problem along.
  remove("rubbish.yaml");
  put("rule.yaml",
      "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\n"
      "spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n");
  ASSERT_TRUE(eventually([&] { return read(status).find("reason: Invalid") == std::string::npos; }));
  ASSERT_TRUE(eventually([&] { return !std::filesystem::exists(summary); }));
}

TEST_F(ControlPlaneTest, AGatewayBecomesAWaypointAndGoesAgain) {
  put_gateway();
  put("label.yaml",
      "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n");
  start();
  const std::string state = root + "/config/state/control/";
  ASSERT_TRUE(std::filesystem::exists(state + "deployment.shop.wp.yaml"));
  EXPECT_THAT(read(state + "deployment.shop.wp.yaml"),
              AllOf(HasSubstr("- waypoint"), HasSubstr("istio.io/dataplane-mode: none"),
                    HasSubstr("gateway.networking.k8s.io/gateway-name: wp")));
  EXPECT_TRUE(std::filesystem::exists(state + "service.shop.wp.yaml"));
  EXPECT_TRUE(std::filesystem::exists(state + "serviceaccount.shop.wp.yaml"));
  EXPECT_THAT(read(state + "status.gateway.shop.wp.yaml"), HasSubstr("AddressNotAssigned"));

  // Its pod runs and its Service has an address (written by the node and the sandbox).
  put_pod("wp-1", "uid-wp", "wp", "node1", "10.244.1.9", ", gateway.networking.k8s.io/gateway-name: wp");
  put("state/node/service.shop.wp.yaml",
      "apiVersion: v1\nkind: Service\nmetadata: {name: wp, namespace: shop, labels: "
      "{gateway.istio.io/managed: istio.io-mesh-controller}}\nspec: {clusterIP: 10.96.0.9, selector: "
      "{gateway.networking.k8s.io/gateway-name: wp}, ports: [{name: mesh, port: 15008}]}\n");
  ASSERT_TRUE(eventually([&] {
    return read(state + "status.gateway.shop.wp.yaml").find("10.96.0.9") != std::string::npos;
  }));
  EXPECT_THAT(read(state + "status.gateway.shop.wp.yaml"), HasSubstr("wp.shop.svc.cluster.local"));

  Seen listeners, addresses;
  xds::Node node = node_of("waypoint");
  node.metadata["GATEWAY_NAME"] = "wp";
  xds::DeltaClient client(channel(token("shop", "wp", "node1", "wp-1", "uid-wp")), node);
  client.subscribe(xds::kTypeListener, listeners.handler());
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_has(kWebUid));
  ASSERT_TRUE(listeners.wait([&] { return listeners.responses > 0; }));

  // Another pod of the namespace is not let in.
  Seen nothing;
  xds::DeltaClient stranger(channel(token("shop", "web", "node1", "web-1", "uid-web")), node);
  stranger.subscribe(xds::kTypeListener, nothing.handler());
  ASSERT_TRUE(stranger.start());
  ASSERT_TRUE(eventually([&] { return stranger.status().failures > 0; }));
  EXPECT_THAT(stranger.status().last_error, HasSubstr("does not belong to Gateway"));

  remove("gateway.yaml");
  ASSERT_TRUE(eventually([&] { return !std::filesystem::exists(state + "deployment.shop.wp.yaml"); }));
  EXPECT_FALSE(std::filesystem::exists(state + "service.shop.wp.yaml"));
  ASSERT_TRUE(
      eventually([&] { return !std::filesystem::exists(state + "status.gateway.shop.wp.yaml"); }));
  // Its pod goes, and with it the right to its stream.
  remove("state/node/shop.wp-1.yaml");
  EXPECT_TRUE(eventually([&] { return client.status().failures > 0; }));
}

TEST_F(ControlPlaneTest, WhatAFormerProcessMadeIsSweptOrKept) {
  put_gateway();
  start();
  const std::string deployment = root + "/config/state/control/deployment.shop.wp.yaml";
  const auto written = std::filesystem::last_write_time(deployment);
  stop();
  start();
  EXPECT_EQ(std::filesystem::last_write_time(deployment), written) << "same content, not written again";
  stop();
  remove("gateway.yaml");
  start();
  EXPECT_FALSE(std::filesystem::exists(deployment));
}

TEST_F(ControlPlaneTest, AGreatLossIsBelievedAtTheSecondLookOnly) {
  for (int i = 0; i < 60; ++i) {
    put_pod(fmt::format("x-{}", i), fmt::format("uid-x{}", i), "web", "node1", fmt::format("10.244.9.{}", i + 1));
  }
  start();
  EXPECT_EQ(plane->objects(config::Kind::kPod), 62u);
  // The directory is gone for a moment and comes back: nobody hears of it.
  std::filesystem::rename(root + "/config/state/node", root + "/hidden");
  ASSERT_TRUE(eventually([&] { return plane->stats().held_removals >= 62; }));
  EXPECT_EQ(plane->objects(config::Kind::kPod), 62u);
  std::filesystem::rename(root + "/hidden", root + "/config/state/node");
  const auto changes = plane->stats().resource_changes;
  put("late.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: late}\n");
  ASSERT_TRUE(eventually([&] { return plane->objects(config::Kind::kNamespace) == 2; }));
  std::this_thread::sleep_for(kConfirm + 500ms);
  EXPECT_EQ(plane->objects(config::Kind::kPod), 62u);
  EXPECT_EQ(plane->stats().resource_changes, changes);
  // This time it is meant.
  for (int i = 0; i < 60; ++i) remove(fmt::format("state/node/shop.x-{}.yaml", i));
  EXPECT_TRUE(eventually([&] { return plane->objects(config::Kind::kPod) == 2; }));
}

TEST_F(ControlPlaneTest, PagesForOperators) {
  start();
  Seen addresses;
  xds::DeltaClient client(channel(ztunnel_token()), node_of("ztunnel"));
  client.subscribe(xds::kTypeAddress, addresses.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait_has(kWebUid));
  EXPECT_EQ(curl("/ready"), "ready\n");
  EXPECT_THAT(curl("/metrics"), AllOf(HasSubstr("pilot_xds 1"), HasSubstr("pilot_services 1"),
                                      HasSubstr("process_resident_memory_bytes")));
  EXPECT_THAT(curl("/debug/syncz"),
              AllOf(HasSubstr("ztunnel~10.0.0.1~p.istio-system"), HasSubstr("istio.workload.Address")));
  EXPECT_THAT(curl("/debug/config_dump"), AllOf(HasSubstr(kWebUid), Not(HasSubstr("PRIVATE KEY"))));
}

TEST_F(ControlPlaneTest, WhatNamesObjectsIsForLoopbackOnly) {
  start();
  http::Router pages;
  telemetry::Registry registry;
  add_monitoring_routes(pages, registry, *plane);
  size_t closed = 0;
  for (const std::string& path : pages.paths()) {
    http::Request request{.method = "GET", .path = path};
    request.peer = *SocketAddress::parse("10.0.0.9:4711");
    const int stranger = pages.dispatch(request).status;
    request.peer = *SocketAddress::parse("127.0.0.1:4711");
    EXPECT_NE(pages.dispatch(request).status, 403) << path;
    const bool open = path == "/ready" || path == "/version" || path.starts_with("/metrics") ||
                      path == "/stats/prometheus";
    EXPECT_EQ(stranger == 403, !open) << path;
    closed += stranger == 403;
  }
  EXPECT_GE(closed, 4u) << "/status and /debug/*";
}

TEST_F(ControlPlaneTest, CertificatesRenewOverTheRealCa) {
  start();
  xds::CaClient ca(channel(ztunnel_token()));
  std::promise<void> twice;
  std::atomic<int> count{0};
  pki::CertificateManagerOptions options;
  options.ttl = 4s;  // renewed at half of it
  pki::CertificateManager manager(
      options,
      [&](pki::SigningRequest request, pki::SigningDone done) {
        ca.sign(std::move(request.csr_pem), request.ttl, std::move(request.impersonate), std::move(done));
      },
      [&](const model::Identity&, const pki::WorkloadCertificatePtr& cert) {
        EXPECT_NE(cert, nullptr);
        if (++count == 2) twice.set_value();
      });
  manager.want(*model::Identity::parse("spiffe://cluster.local/ns/shop/sa/web"), true);
  EXPECT_EQ(twice.get_future().wait_for(kPatience), std::future_status::ready);
}

// The binary itself: what it says when it is told wrong, and that it goes when it is told to.
TEST_F(ControlPlaneTest, TheProcessStartsAndEndsAsItShould) {
  const char* bin = std::getenv("MELTEMI_BIN_DIR");
  if (bin == nullptr) GTEST_SKIP() << "MELTEMI_BIN_DIR is not set";
  const std::string program = std::string(bin) + "/meltemid";
  const auto run = [&](const std::string& arguments) {
    return WEXITSTATUS(std::system((program + " " + arguments + " >" + root + "/out 2>&1").c_str()));
  };
  EXPECT_EQ(run("--config-reference"), 0);
  EXPECT_THAT(read(root + "/out"), HasSubstr("CA_TRUSTED_NODE_ACCOUNTS"));
  EXPECT_EQ(run(""), 1);
  EXPECT_THAT(read(root + "/out"), HasSubstr("--config-dir is needed"));
  const std::string good = " --ca-dir " + root + "/ca --token-public-key " + root + "/token.pub";
  EXPECT_EQ(run("--config-dir " + root + "/nowhere" + good), 1);
  EXPECT_THAT(read(root + "/out"), HasSubstr("nowhere"));
  EXPECT_EQ(run("--config-dir " + root + "/config" + good + " --xds-listen nonsense"), 1);
  EXPECT_THAT(read(root + "/out"), HasSubstr("--xds-listen"));

  const pid_t pid = fork();
  if (pid == 0) {
    execl(program.c_str(), "meltemid", "--config-dir", (root + "/config").c_str(), "--ca-dir",
          (root + "/ca").c_str(), "--token-public-key", (root + "/token.pub").c_str(), "--xds-listen",
          "127.0.0.1:0", "--monitoring-listen", "127.0.0.1:0", "--drain", "0s", nullptr);
    _exit(127);
  }
  // Told to go before it listens to signals it would end as any program does.
  ASSERT_TRUE(eventually([&] {
    const std::string status = read("/proc/" + std::to_string(pid) + "/status");
    const size_t blocked = status.find("SigBlk:");
    return blocked != std::string::npos &&
           std::stoull(status.substr(blocked + 7), nullptr, 16) >> (SIGTERM - 1) & 1;
  }));
  ASSERT_TRUE(eventually([&] { return std::filesystem::exists(root + "/ca/server-cert.pem"); }));
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  int status = -1;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace meltemi::control
