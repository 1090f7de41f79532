// Our server and our client over TLS and over plaintext: what arrives, what is refused, and what
// happens when one of them goes away.
#include <gmock/gmock.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "userspace/pki/authority.h"
#include "userspace/sys/files.h"
#include "userspace/xds/ca_client.h"
#include "userspace/xds/delta_client.h"
#include "userspace/xds/node_report_client.h"
#include "userspace/xds/server.h"
#include "userspace/xds/status_page.h"

namespace meltemi::xds {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr auto kPatience = 60s;
const std::string kA(kTypeAddress);
const std::string kE(kTypeEndpoints);

// What a client has been told so far; waits for it to become what a test expects.
struct Received {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::string> resources;
  std::set<std::string> refuse;
  int responses = 0;
  uint64_t last_batch = 0;

  Handler handler() {
    return [this](const Update& update) {
      const std::lock_guard lock(mutex);
      std::vector<Rejection> out;
      ++responses;
      last_batch = update.resources.size();
      for (const auto& r : update.resources) {
        if (refuse.contains(std::string(r.name))) {
          out.push_back({std::string(r.name), "field x: not to my taste"});
        } else {
          resources[std::string(r.name)] = r.body;
        }
      }
      for (const auto name : update.removed) resources.erase(std::string(name));
      changed.notify_all();
      return out;
    };
  }
  template <typename F>
  bool wait(F&& condition) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kPatience, condition);
  }
  bool wait_for(const std::map<std::string, std::string>& expected) {
    return wait([&] { return resources == expected; });
  }
};

struct StreamTest : ::testing::Test {
  StreamTest() {
    std::string name = "/tmp/meltemi-xds-XXXXXX";
    directory = mkdtemp(name.data());
    write("token", "good-token\n");
  }
  ~StreamTest() override {
    server.reset();
    std::filesystem::remove_all(directory);
  }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(directory + "/" + name) << text;
    return directory + "/" + name;
  }

  ServerHooks hooks() {
    ServerHooks out;
    out.authenticate = [](std::string_view token) -> Result<Caller> {
      if (token != "good-token") {
        return fail(Reason::kPermission, Fault::kDownstream, "bad token");
      }
      return Caller{"istio-system", "ztunnel", "", "", "node-1"};
    };
    out.scope_of = [](const Caller&, const Node& node, std::string_view type) -> Result<std::string> {
      if (type == kTypeAuthorization) {
        return fail(Reason::kPermission, Fault::kDownstream, "not for you");
      }
      const auto it = node.metadata.find("SCOPE");
      return it == node.metadata.end() ? std::string() : it->second;
    };
    out.sign = [](const Caller& caller,
                  const CertificateCall& call) -> Result<std::vector<std::string>> {
      if (call.impersonate == "spiffe://forbidden") {
        return fail(Reason::kPermission, Fault::kDownstream, "secret reason");
      }
      return std::vector<std::string>{caller.node_name, call.csr_pem, call.impersonate,
                                      std::to_string(call.ttl.count())};
    };
    out.report = [this](const Caller& caller, const node::v1::NodeReport& report) -> Status {
      const std::lock_guard lock(report_mutex);
      reports.push_back(caller.node_name + ":" + report.node());
      report_came.notify_all();
      return {};
    };
    out.nacked = [this](const Caller&, const Nack& nack) {
      const std::lock_guard lock(report_mutex);
      nacks.push_back(nack.message);
      report_came.notify_all();
    };
    return out;
  }

  void start(uint16_t port = 0, bool ready = true) {
    server = std::make_unique<Server>(hooks());
    ServerOptions options;
    options.plaintext_listen = {{*IpAddress::parse("127.0.0.1"), port}};
    const Status started = server->start(options);
    ASSERT_TRUE(started) << started.error().to_string();
    address = "http://127.0.0.1:" + std::to_string(server->ports()[0]);
    if (ready) server->set_ready();
  }
  void put(const std::string& name, const std::string& version, const std::string& body,
           const std::string& type = kA, const std::string& scope = "") {
    server->update({{type, scope, name, version, body}});
  }
  void remove(const std::string& name, const std::string& type = kA) {
    server->update({{.type_url = type, .scope = "", .name = name, .removed = true}});
  }
  ChannelOptions channel() const {
    ChannelOptions out;
    out.address = address;
    out.token_file = directory + "/token";
    return out;
  }
  static Node node(const std::string& scope = "") {
    Node out = make_node("ztunnel", "10.0.0.1", "zt", "istio-system", "cluster.local");
    if (!scope.empty()) out.metadata["SCOPE"] = scope;
    return out;
  }

  std::string directory, address;
  std::unique_ptr<Server> server;
  std::mutex report_mutex;
  std::condition_variable report_came;
  std::vector<std::string> reports, nacks;
};

TEST_F(StreamTest, ResourcesArriveChangeAndGo) {
  start();
  put("a", "1", "one");
  put("b", "1", "two");
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(got.wait_for({{"a", "one"}, {"b", "two"}}));
  while (!client.synced()) std::this_thread::yield();
  put("a", "2", "three");
  ASSERT_TRUE(got.wait_for({{"a", "three"}, {"b", "two"}}));
  EXPECT_EQ(got.last_batch, 1u) << "only what changed";
  remove("b");
  ASSERT_TRUE(got.wait_for({{"a", "three"}}));
  // Told after the handler has returned.
  while (client.status().types[0].resources != 1) std::this_thread::yield();
  const auto status = client.status();
  EXPECT_EQ(status.state, StreamState::kConnected);
  EXPECT_EQ(status.connects, 1u);
  ASSERT_EQ(status.types.size(), 1u);
  EXPECT_EQ(status.types[0].nacks, 0u);
}

TEST_F(StreamTest, WhatIsReferredToComesFirstAndGoesLast) {
  start();
  const std::string cluster(kTypeCluster), route(kTypeRoute);
  put("r", "1", "to a", route);
  put("a", "1", "", cluster);
  std::mutex mutex;
  std::vector<std::string> told;
  const auto note = [&](const Update& update) {
    const std::lock_guard lock(mutex);
    for (const auto& r : update.resources) told.push_back("+" + std::string(r.name) + " " + std::string(r.body));
    for (const auto name : update.removed) told.push_back("-" + std::string(name));
    return std::vector<Rejection>();
  };
  const auto wait_told = [&](size_t count) {
    for (const auto end = std::chrono::steady_clock::now() + kPatience;
         std::chrono::steady_clock::now() < end;) {
      {
        const std::lock_guard lock(mutex);
        if (told.size() >= count) return std::exchange(told, {});
      }
      std::this_thread::sleep_for(2ms);
    }
    return std::vector<std::string>{"nothing in time"};
  };
  DeltaClient client(channel(), node());
  client.subscribe(route, note);  // asked for in the wrong order
  client.subscribe(cluster, note);
  ASSERT_TRUE(client.start());
  EXPECT_THAT(wait_told(2), ::testing::UnorderedElementsAre("+r to a", "+a "));
  server->update({{.type_url = cluster, .scope = "", .name = "a", .removed = true},
                  {route, "", "r", "2", "to b"},
                  {cluster, "", "b", "1", ""}});
  EXPECT_THAT(wait_told(3), ElementsAre("+b ", "+r to b", "-a"));
  // What comes back before anybody was told is not told at all to be gone.
  server->update({{.type_url = cluster, .scope = "", .name = "b", .removed = true},
                  {cluster, "", "b", "1", ""},
                  {route, "", "r", "3", "to b"}});
  EXPECT_THAT(wait_told(2), ElementsAre("+b ", "+r to b"));
}

TEST_F(StreamTest, AServerThatHasReadNothingSaysNothing) {
  start(0, /*ready=*/false);
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  while (server->streams().empty() || server->streams()[0].types.empty()) std::this_thread::yield();
  put("a", "1", "one");
  EXPECT_FALSE(client.synced());
  server->set_ready();
  ASSERT_TRUE(got.wait_for({{"a", "one"}}));
  EXPECT_EQ(got.responses, 1);
}

TEST_F(StreamTest, ARefusedResourceLeavesTheGoodOnesApplied) {
  start();
  put("good", "1", "g");
  put("bad", "1", "b");
  Received got;
  got.refuse = {"bad"};
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(got.wait_for({{"good", "g"}}));
  {
    std::unique_lock lock(report_mutex);
    ASSERT_TRUE(report_came.wait_for(lock, kPatience, [&] { return !nacks.empty(); }));
    EXPECT_THAT(nacks, ElementsAre("bad: field x: not to my taste"));
  }
  while (client.status().types[0].nacks != 1) std::this_thread::yield();
  EXPECT_EQ(sync_state(client.status()), "NACK");
  EXPECT_EQ(client.status().types[0].refused, "bad: field x: not to my taste");
  EXPECT_THAT(server->streams()[0].types[0].last_nack, HasSubstr("bad: field x"));
  {
    const std::lock_guard lock(got.mutex);
    got.refuse.clear();
  }
  put("good", "2", "another");
  ASSERT_TRUE(got.wait_for({{"good", "another"}}));
  while (client.status().types[0].responses < 2) std::this_thread::yield();
  EXPECT_EQ(sync_state(client.status()), "NACK") << "a word about others is none about it";
  put("bad", "2", "better");
  ASSERT_TRUE(got.wait_for({{"good", "another"}, {"bad", "better"}}));
  while (client.status().types[0].responses < 3) std::this_thread::yield();
  EXPECT_EQ(client.status().types[0].refused, "");
}

TEST_F(StreamTest, ReconnectsAndIsToldOnlyTheDifference) {
  start();
  const uint16_t port = server->ports()[0];
  for (int i = 0; i < 50; ++i) put("r" + std::to_string(i), "1", "x");
  put("changes", "1", "old");
  put("goes", "1", "x");
  put("refused", "1", "x");
  Received got;
  got.refuse = {"refused"};
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(got.wait([&] { return got.resources.size() == 52; }));
  server->stop(0ms);
  {
    const std::lock_guard lock(got.mutex);
    EXPECT_EQ(got.resources.size(), 52u) << "what is known stays while the server is away";
    got.refuse.clear();
  }
  server = nullptr;
  start(port, /*ready=*/false);
  for (int i = 0; i < 50; ++i) put("r" + std::to_string(i), "1", "x");
  put("changes", "2", "new");
  put("refused", "1", "y");
  server->set_ready();
  ASSERT_TRUE(got.wait([&] { return got.resources.contains("refused"); }));
  EXPECT_EQ(got.last_batch, 2u) << "the changed one, and the one that was refused before";
  EXPECT_EQ(got.resources.at("changes"), "new");
  EXPECT_FALSE(got.resources.contains("goes"));
  EXPECT_EQ(client.status().connects, 2u);
  EXPECT_GE(client.status().failures, 1u);
}

TEST_F(StreamTest, TheServerMayBeAwayAtTheStart) {
  start();
  const uint16_t port = server->ports()[0];
  server.reset();
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  while (client.status().failures < 3) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(client.status().state, StreamState::kConnecting);
  EXPECT_THAT(client.status().last_error, HasSubstr(address));
  start(port);
  put("a", "1", "one");
  EXPECT_TRUE(got.wait_for({{"a", "one"}}));
}

TEST_F(StreamTest, TheLastGoodStateIsServedWithoutAControlPlaneAndResumedByVersion) {
  start();
  const uint16_t port = server->ports()[0];
  const LastGoodOptions state{.path = directory + "/state", .owner = {"ztunnel", "n", "c", "t"}};
  for (int i = 0; i < 50; ++i) put("r" + std::to_string(i), "1", "x");
  put("changes", "1", "old");
  put("goes", "1", "x");
  put("e", "1", "endpoints", kE);
  put("other", "1", "unwanted", kE);
  {
    Received got, named;
    DeltaClient client(channel(), node());
    client.subscribe(kA, got.handler());
    client.subscribe_named(kE, named.handler());
    client.set_names(kE, {"e", "other"});
    client.keep(state);
    ASSERT_TRUE(client.start());
    ASSERT_TRUE(got.wait([&] { return got.resources.size() == 52; }));
    ASSERT_TRUE(named.wait([&] { return named.resources.size() == 2; }));
    EXPECT_EQ(staleness(client.status(), std::chrono::system_clock::now()), Duration::zero());
    EXPECT_EQ(staleness_note(client.status(), {}), "");
    client.set_names(kE, {"e"});
    while (server->streams().empty() || server->streams()[0].types[1].names != 1) {
      std::this_thread::yield();
    }
  }
  server.reset();

  // A new process, and nobody answers.
  Received got, named;
  bool saved = false;
  DeltaClient client(channel(), node());
  client.subscribe(kA, [&](const Update& update) {
    saved |= update.saved;
    return got.handler()(update);
  });
  client.subscribe_named(kE, named.handler());
  client.set_names(kE, {"e"});
  client.keep(state);
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(named.wait_for({{"e", "endpoints"}})) << "what nobody wanted any more is not kept";
  ASSERT_TRUE(got.wait([&] { return got.resources.size() == 52; }));
  EXPECT_TRUE(saved);
  EXPECT_TRUE(client.synced());
  while (!client.status().serving_saved) std::this_thread::yield();
  const ClientStatus status = client.status();
  EXPECT_GE(staleness(status, status.last_word + 90s), 90s);
  EXPECT_THAT(staleness_note(status, status.last_word + 90s),
              HasSubstr("no word of the control plane for 1m30s, serving the last good state"));

  // It comes back: only what changed is sent, and what went meanwhile goes.
  start(port, /*ready=*/false);
  for (int i = 0; i < 50; ++i) put("r" + std::to_string(i), "1", "x");
  put("changes", "2", "new");
  put("e", "1", "endpoints", kE);
  server->set_ready();
  ASSERT_TRUE(got.wait([&] { return got.resources.at("changes") == "new"; }));
  EXPECT_EQ(got.last_batch, 1u);
  EXPECT_FALSE(got.resources.contains("goes"));
  EXPECT_FALSE(client.status().serving_saved);
  EXPECT_EQ(staleness(client.status(), std::chrono::system_clock::now()), Duration::zero());
}

TEST_F(StreamTest, NotesAreKeptWithTheResourcesAndHandedOverBeforeThem) {
  start();
  put("a", "1", "one");
  put("b", "1", "two");
  const LastGoodOptions state{.path = directory + "/state", .owner = {"ztunnel", "n", "c", "t"}};
  {
    Received got;
    DeltaClient client(channel(), node());
    client.on_notes("notes", [](const SavedResources&) { ADD_FAILURE() << "there are none yet"; });
    client.subscribe(kA, [&](const Update& update) {
      client.note("kept", "of " + std::to_string(update.resources.size()));
      client.note("withdrawn", "x");
      client.note("withdrawn", std::nullopt);
      client.note("replaced", std::nullopt);
      client.note("replaced", "y");
      return got.handler()(update);
    });
    client.keep(state);
    ASSERT_TRUE(client.start());
    ASSERT_TRUE(got.wait([&] { return got.resources.size() == 2; }));
  }
  server.reset();
  std::vector<std::string> order;
  {
    Received got;
    DeltaClient client(channel(), node());
    client.on_notes("notes", [&](const SavedResources& notes) {
      for (const auto& [name, note] : notes) order.push_back(name + "=" + note->body);
      client.note("kept", std::nullopt);
    });
    client.subscribe(kA, [&](const Update& update) {
      order.push_back("resources");
      return got.handler()(update);
    });
    client.keep(state);
    ASSERT_TRUE(client.start());
    ASSERT_TRUE(got.wait([&] { return got.resources.size() == 2; }));
  }
  EXPECT_EQ(order, (std::vector<std::string>{"kept=of 2", "replaced=y", "resources"}));
  const auto saved = decode_state(*sys::read_file(state.path), state.owner);
  ASSERT_TRUE(saved.has_value());
  EXPECT_EQ(saved->at("notes").size(), 1u) << "one was taken back";
}

TEST_F(StreamTest, AStateThatIsTooOldIsNotServedAndTheReasonIsSaid) {
  start();
  put("a", "1", "one");
  const LastGoodOptions state{.path = directory + "/state", .owner = {"ztunnel", "n", "c", "t"}};
  {
    Received got;
    DeltaClient client(channel(), node());
    client.subscribe(kA, got.handler());
    client.keep(state);
    ASSERT_TRUE(client.start());
    ASSERT_TRUE(got.wait_for({{"a", "one"}}));
  }
  const uint16_t port = server->ports()[0];
  server.reset();
  LastGoodOptions limited = state;
  limited.max_age = 1h;
  limited.now = [] { return std::chrono::system_clock::now() + 2h; };
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  client.keep(limited);
  ASSERT_TRUE(client.start());
  while (client.status().failures < 3) std::this_thread::sleep_for(5ms);
  EXPECT_FALSE(client.synced());
  EXPECT_EQ(got.responses, 0);
  EXPECT_THAT(staleness_note(client.status(), std::chrono::system_clock::now()),
              HasSubstr("refused: the control plane's last word in it is 2h"));
  start(port);
  put("a", "1", "one");
  EXPECT_TRUE(got.wait_for({{"a", "one"}}));
}

TEST_F(StreamTest, ABadTokenIsRefusedAndAFreshOneIsRead) {
  start();
  put("a", "1", "one");
  write("token", "stolen");
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  while (client.status().failures < 2) std::this_thread::sleep_for(5ms);
  EXPECT_THAT(client.status().last_error, HasSubstr("permission"));
  EXPECT_GE(server->stats().refused, 1u);
  write("token", "good-token");
  EXPECT_TRUE(got.wait_for({{"a", "one"}}));
}

TEST_F(StreamTest, FailuresNeverBecomeAHotLoop) {
  start();
  write("token", "");  // an error before anything is sent
  DeltaClient client(channel(), node());
  Received got;
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  std::this_thread::sleep_for(1s);
  // 10 ms doubling, at least halved by jitter: 5+10+20+40+80+160+320+640 ms.
  EXPECT_LE(client.status().failures, 9u);
  EXPECT_THAT(client.status().last_error, HasSubstr("is empty"));
}

TEST_F(StreamTest, ATypeThatTheCallerMayNotSeeEndsTheStream) {
  start();
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kTypeAuthorization, got.handler());
  ASSERT_TRUE(client.start());
  while (client.status().failures < 1) std::this_thread::sleep_for(5ms);
  EXPECT_THAT(client.status().last_error, HasSubstr("not for you"));
  EXPECT_THAT(got.resources, IsEmpty());
}

TEST_F(StreamTest, EachScopeSeesItsOwn) {
  start();
  put("mine", "1", "m", kA, "node-1");
  put("theirs", "1", "t", kA, "node-2");
  Received one, two;
  DeltaClient a(channel(), node("node-1")), b(channel(), node("node-2"));
  a.subscribe(kA, one.handler());
  b.subscribe(kA, two.handler());
  ASSERT_TRUE(a.start());
  ASSERT_TRUE(b.start());
  EXPECT_TRUE(one.wait_for({{"mine", "m"}}));
  EXPECT_TRUE(two.wait_for({{"theirs", "t"}}));
}

TEST_F(StreamTest, NamedSubscriptionsFollowTheirNames) {
  start();
  put("e1", "1", "x", kE);
  put("e2", "1", "y", kE);
  Received addresses, endpoints;
  DeltaClient client(channel(), node());
  client.subscribe(kA, addresses.handler());
  client.subscribe_named(kE, endpoints.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(addresses.wait([&] { return addresses.responses == 1; }));
  while (!client.synced()) std::this_thread::yield();
  EXPECT_EQ(endpoints.responses, 0) << "no names, no subscription";
  client.set_names(kE, {"e1", "later"});
  ASSERT_TRUE(endpoints.wait_for({{"e1", "x"}}));
  put("later", "1", "z", kE);
  ASSERT_TRUE(endpoints.wait_for({{"e1", "x"}, {"later", "z"}}));
  client.set_names(kE, {"e2"});
  ASSERT_TRUE(endpoints.wait([&] { return endpoints.resources.contains("e2"); }));
  put("e1", "2", "changed", kE);
  put("e2", "2", "yy", kE);
  ASSERT_TRUE(endpoints.wait([&] { return endpoints.resources["e2"] == "yy"; }));
  EXPECT_EQ(endpoints.resources["e1"], "x") << "no longer asked for";
}

TEST_F(StreamTest, AChangeReachesManyStreams) {
  start();
  constexpr int kClients = 20;
  std::vector<std::unique_ptr<Received>> got;
  std::vector<std::unique_ptr<DeltaClient>> clients;
  for (int i = 0; i < kClients; ++i) {
    got.push_back(std::make_unique<Received>());
    clients.push_back(std::make_unique<DeltaClient>(channel(), node()));
    clients.back()->subscribe(kA, got.back()->handler());
    ASSERT_TRUE(clients.back()->start());
  }
  for (int i = 0; i < 200; ++i) put("a", std::to_string(i), std::to_string(i));
  for (auto& g : got) EXPECT_TRUE(g->wait_for({{"a", "199"}}));
  EXPECT_EQ(server->stats().streams, static_cast<size_t>(kClients));
}

TEST_F(StreamTest, DisconnectedStreamsComeBack) {
  start();
  put("a", "1", "one");
  Received got;
  DeltaClient client(channel(), node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  ASSERT_TRUE(got.wait_for({{"a", "one"}}));
  server->disconnect([](const Caller& caller, const Node& n) -> Status {
    if (caller.node_name != "node-1" || !n.id.starts_with("ztunnel~")) return {};
    return fail(Reason::kPermission, Fault::kDownstream, "no pod a/b as the token describes it");
  });
  put("a", "2", "two");
  EXPECT_TRUE(got.wait_for({{"a", "two"}}));
  EXPECT_EQ(client.status().connects, 2u);
  EXPECT_EQ(server->stats().ended_unwelcome, 1u);
}

TEST(StatusPage, SaysInStepOrHowOldAndUntilWhen) {
  const WallTime now{std::chrono::seconds(1'800'000'000)};
  ProcessStatus status{.component = "ztunnel", .version = "1", .ready = true, .trouble = {},
                       .control_plane = ClientStatus(), .configuration = "7",
                       .certificates = ProcessStatus::Certificates(), .counts = {{"pods", 2}},
                       .problems = {}};
  ClientStatus& client = *status.control_plane;
  client.state = StreamState::kConnected;
  client.types.resize(2);
  client.types[0].synced = true;
  client.types[1].named = true;
  EXPECT_EQ(sync_state(client), "SYNCED") << "of names there may be none";
  client.types[0].synced = false;
  EXPECT_EQ(sync_state(client), "SYNCING");
  client.state = StreamState::kConnecting;
  client.last_word = now - std::chrono::minutes(5);
  client.serving_saved = true;
  status.certificates->add(now + std::chrono::hours(2));
  status.certificates->add(now + std::chrono::hours(1));
  status.certificates->add(WallTime::max());
  const std::string page = status_page(status, now);
  for (const char* part : {"\"state\": \"STALE\"", "\"staleSeconds\": 300", "\"servingSavedState\": true",
                           "\"lastWord\": \"2027-01-15T07:55:00", "\"available\": 2", "\"missing\": 1",
                           "\"firstEnd\": \"2027-01-15T09:00:00", "\"pods\": 2",
                           "\"configuration\": \"7\""}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
}

TEST_F(StreamTest, PlaintextIsForLoopbackOnly) {
  Server other(hooks());
  ServerOptions options;
  options.plaintext_listen = {{*IpAddress::parse("0.0.0.0"), 0}};
  EXPECT_EQ(other.start(options).error().reason, Reason::kBadConfig);
}

TEST_F(StreamTest, APortInUseIsNamed) {
  start();
  Server other(hooks());
  ServerOptions options;
  options.plaintext_listen = {{*IpAddress::parse("127.0.0.1"), server->ports()[0]}};
  const Status started = other.start(options);
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().detail, HasSubstr(std::to_string(server->ports()[0])));
}

TEST_F(StreamTest, CertificatesAreAskedForAndRefused) {
  start();
  CaClient client(channel());
  const auto ask = [&](const std::string& impersonate) {
    auto promise = std::make_shared<std::promise<Result<std::vector<std::string>>>>();
    client.sign("CSR", 60s, impersonate, [promise](auto result) { promise->set_value(result); });
    return promise->get_future().get();
  };
  const auto chain = ask("spiffe://td/ns/a/sa/b");
  ASSERT_TRUE(chain) << chain.error().to_string();
  EXPECT_THAT(*chain, ElementsAre("node-1", "CSR", "spiffe://td/ns/a/sa/b", "60"));
  const auto refused = ask("spiffe://forbidden");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, Reason::kPermission);
  EXPECT_THAT(refused.error().detail, ::testing::Not(HasSubstr("secret reason")));
  write("token", "stolen");
  EXPECT_EQ(ask("").error().reason, Reason::kPermission);
  write("token", "good-token");
  server->stop(0ms);
  const auto away = ask("");
  ASSERT_FALSE(away);
  EXPECT_EQ(away.error().retry, Retry::kSafe);
}

TEST_F(StreamTest, ReportsArriveAlsoWhenTheServerComesLate) {
  start();
  const uint16_t port = server->ports()[0];
  server.reset();
  NodeReportClient client(channel());
  node::v1::NodeReport report;
  report.set_node("node-1");
  client.report(report);
  while (client.last_error().empty()) std::this_thread::sleep_for(5ms);
  EXPECT_FALSE(client.acknowledged());
  start(port);
  std::unique_lock lock(report_mutex);
  ASSERT_TRUE(report_came.wait_for(lock, kPatience, [&] { return !reports.empty(); }));
  EXPECT_EQ(reports[0], "node-1:node-1");
  lock.unlock();
  while (!client.acknowledged()) std::this_thread::sleep_for(5ms);
}

struct TlsTest : StreamTest {
  TlsTest() {
    pki::AuthorityOptions options;
    options.directory = directory + "/ca";
    ca = std::move(*pki::CertificateAuthority::open(options, std::chrono::system_clock::now()));
    options.directory = directory + "/other";
    other = std::move(*pki::CertificateAuthority::open(options, std::chrono::system_clock::now()));
  }
  void start_tls(std::vector<std::string> names, std::vector<IpAddress> addresses) {
    const auto key = *pki::PrivateKey::generate();
    const auto cert =
        *ca->issue_server(key, names, addresses, std::chrono::system_clock::now());
    server = std::make_unique<Server>(hooks());
    ServerOptions options;
    options.tls_listen = {{*IpAddress::parse("127.0.0.1"), 0}};
    options.certificate_file = write("server-cert.pem", cert.chain_pem);
    options.key_file = write("server-key.pem", std::string(key.to_pem().view()));
    ASSERT_TRUE(server->start(options));
    server->set_ready();
    address = "https://127.0.0.1:" + std::to_string(server->ports()[0]);
    put("a", "1", "one");
  }
  std::unique_ptr<pki::CertificateAuthority> ca, other;
};

TEST_F(TlsTest, TheRootIsReadAgainForEveryAttempt) {
  start_tls({"meltemid.istio-system.svc"}, {*IpAddress::parse("127.0.0.1")});
  ChannelOptions options = channel();
  options.root_ca = write("root.pem", other->root_bundle_pem());  // the wrong one
  Received got;
  DeltaClient client(options, node());
  client.subscribe(kA, got.handler());
  ASSERT_TRUE(client.start());
  while (client.status().failures < 2) std::this_thread::sleep_for(5ms);
  EXPECT_FALSE(client.synced());
  write("root.pem", ca->root_bundle_pem());
  EXPECT_TRUE(got.wait_for({{"a", "one"}}));
}

TEST_F(TlsTest, TheServersNameCounts) {
  start_tls({"meltemid.istio-system.svc"}, {});
  ChannelOptions options = channel();
  options.root_ca = ca->root_bundle_pem();  // inline PEM
  Received by_address, by_name;
  DeltaClient wrong(options, node());
  wrong.subscribe(kA, by_address.handler());
  ASSERT_TRUE(wrong.start());
  options.server_name = "meltemid.istio-system.svc";
  DeltaClient right(options, node());
  right.subscribe(kA, by_name.handler());
  ASSERT_TRUE(right.start());
  EXPECT_TRUE(by_name.wait_for({{"a", "one"}}));
  while (wrong.status().failures < 1) std::this_thread::sleep_for(5ms);
  EXPECT_FALSE(wrong.synced()) << "127.0.0.1 is not in the certificate";
}

TEST(Channel, BadAddressesAreNamed) {
  for (const char* bad : {"", "https://", "10.0.0.1", "https://10.0.0.1", "https://a:b", "a:1/path"}) {
    const Status status = check_address(bad);
    ASSERT_FALSE(status) << bad;
    EXPECT_EQ(status.error().reason, Reason::kBadConfig);
  }
  for (const char* good : {"https://10.0.0.1:15012", "istiod.istio-system.svc:15012",
                           "http://127.0.0.1:1", "https://[fd00::1]:15012/"}) {
    EXPECT_TRUE(check_address(good)) << good;
  }
}

TEST(Channel, BackoffDoublesToItsLimit) {
  EXPECT_EQ(backoff(1, 1.0), 10ms);
  EXPECT_EQ(backoff(1, 0.0), 5ms);
  EXPECT_EQ(backoff(3, 1.0), 40ms);
  EXPECT_EQ(backoff(1000, 1.0), 4s) << "recovery within 5 s of the cause's end";
}

}  // namespace
}  // namespace meltemi::xds
