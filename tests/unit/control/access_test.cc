// Who gets what: the whole table of callers and wishes, on the pods that the configuration knows.
#include "userspace/control/access.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/support/few_descriptors.h"
#include "userspace/base/log.h"
#include "userspace/control/enrolled_pods.h"
#include "userspace/control/signing_rate.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

using config::Kind;
using config::Object;
using config::ObjectChange;

struct AccessTest : ::testing::Test {
  AccessTest() {
    pod("shop", "web-1", "u1", "web", "node1");
    pod("shop", "db-1", "u2", "db", "node2");
    pod("shop", "done-1", "u3", "done", "node1", "Succeeded");
    pod("shop", "wp-1", "u4", "wp", "node1", "Running", "wp");
    pod("shop", "unplaced", "u5", "later", "");
  }

  void pod(const std::string& ns, const std::string& name, const std::string& uid,
           const std::string& account, const std::string& node, const std::string& phase = "Running",
           const std::string& gateway = "") {
    Object object = Object::make(Kind::kPod, ns, name);
    object.mutable_meta().set_uid(uid);
    if (!gateway.empty()) {
      (*object.mutable_meta().mutable_labels())["gateway.networking.k8s.io/gateway-name"] = gateway;
    }
    object.edit<config::kube::Pod>([&](config::kube::Pod& body) {
      body.mutable_spec()->set_node_name(node);
      body.mutable_spec()->set_service_account_name(account);
      body.mutable_status()->set_phase(phase);
    });
    pods.apply({ObjectChange{object.key(), nullptr, std::make_shared<const Object>(object)}});
    pods.decide(uid, gateway.empty());
  }
  void remove(const std::string& name) {
    pods.apply({ObjectChange{{Kind::kPod, "shop", name}, nullptr, nullptr}});
  }
  static xds::Caller ztunnel(const std::string& node = "node1") {
    return {"istio-system", "ztunnel", "", "", node};
  }
  static xds::Caller agent(const std::string& node = "node1") {
    return {"istio-system", "meltemi-agent", "", "", node};
  }
  static xds::Caller waypoint() { return {"shop", "wp", "wp-1", "u4", "node1"}; }
  std::string grant(const xds::Caller& caller, const std::string& impersonate = "") {
    const auto identity = access.grant(caller, impersonate);
    if (!identity) EXPECT_EQ(identity.error().reason, Reason::kPermission);
    return identity ? std::string(identity->uri()) : "denied";
  }
  std::string scope(const xds::Caller& caller, std::string_view type, const std::string& gateway = "") {
    xds::Node node;
    if (!gateway.empty()) node.metadata["GATEWAY_NAME"] = gateway;
    const auto scope = access.scope_of(caller, node, type);
    return scope ? "[" + *scope + "]" : "denied";
  }

  void account(const std::string& name, const char* uid) {  // nullptr: deleted
    Object object = Object::make(Kind::kServiceAccount, "shop", name);
    if (uid) object.mutable_meta().set_uid(uid);
    accounts.apply({ObjectChange{object.key(), nullptr,
                                 uid ? std::make_shared<const Object>(object) : nullptr}});
  }

  PodIndex pods;
  AccountIndex accounts{"/nonexistent/accounts.json"};
  Access access{{}, &pods, &accounts};
};

TEST_F(AccessTest, ANodeProxyGetsIdentitiesOfItsNodeOnly) {
  const std::string web = "spiffe://cluster.local/ns/shop/sa/web";
  const std::string db = "spiffe://cluster.local/ns/shop/sa/db";
  EXPECT_EQ(grant(ztunnel("node1"), web), web);
  EXPECT_EQ(grant(ztunnel("node2"), web), "denied");
  EXPECT_EQ(grant(ztunnel("node2"), db), db);
  EXPECT_EQ(grant(ztunnel("node1"), db), "denied");
  EXPECT_EQ(grant(ztunnel(""), web), "denied") << "a token without a node proves no node";
  EXPECT_EQ(grant(ztunnel("node1"), "spiffe://cluster.local/ns/shop/sa/done"), "denied")
      << "the pod has ended";
  EXPECT_EQ(grant(ztunnel(""), "spiffe://cluster.local/ns/shop/sa/later"), "denied");
  EXPECT_EQ(grant(ztunnel("node1"), "spiffe://other.domain/ns/shop/sa/web"), "denied");
  EXPECT_EQ(grant(ztunnel("node1"), "spiffe://cluster.local/ns/other/sa/web"), "denied");
  EXPECT_EQ(grant(ztunnel("node1"), "nonsense"), "denied");
  remove("web-1");
  EXPECT_EQ(grant(ztunnel("node1"), web), "denied") << "no longer there";
}

TEST_F(AccessTest, ANodeProxySpeaksForEnrolledPodsOnly) {
  const std::string web = "spiffe://cluster.local/ns/shop/sa/web";
  EXPECT_EQ(grant(ztunnel(), web), web);
  EXPECT_EQ(grant(ztunnel(), "spiffe://cluster.local/ns/shop/sa/wp"), "denied")
      << "a waypoint tunnels by itself";
  pods.decide("u1", false);
  EXPECT_EQ(grant(ztunnel(), web), "denied");
  pods.report("node1", {"u1"});
  EXPECT_EQ(grant(ztunnel(), web), web) << "on its way out the kernel still has it";
  pods.report("node1", {});
  pods.report("node2", {"u1"});
  EXPECT_EQ(grant(ztunnel(), web), "denied") << "another node's word";
  EXPECT_EQ(grant(ztunnel("node2"), web), "denied");
}

// Whatever a token was good for, it is good for no longer than the pod that it was made for.
TEST_F(AccessTest, ATokenEndsWithItsPod) {
  pod("istio-system", "zt-1", "zu", "ztunnel", "node1");
  const xds::Caller zt{"istio-system", "ztunnel", "zt-1", "zu", "node1"};
  const xds::Caller web{"shop", "web", "web-1", "u1", "node1"};
  const std::string own = "spiffe://cluster.local/ns/shop/sa/web";
  EXPECT_EQ(grant(web), own);
  EXPECT_EQ(grant(zt, own), own);
  EXPECT_EQ(scope(zt, xds::kTypeAddress), "[]");
  EXPECT_EQ(grant({"shop", "web", "web-1", "another-uid", "node1"}), "denied") << "made anew since";
  EXPECT_EQ(grant({"shop", "web", "web-1", "u1", "node2"}), "denied") << "it runs elsewhere";
  EXPECT_EQ(grant({"shop", "web", "", "", "node1"}), "denied") << "bound to nothing";
  EXPECT_EQ(grant({"shop", "done", "done-1", "u3", "node1"}), "denied") << "it has ended";
  remove("web-1");
  EXPECT_EQ(grant(web), "denied");
  pods.apply({ObjectChange{{Kind::kPod, "istio-system", "zt-1"}, nullptr, nullptr}});
  EXPECT_EQ(grant(zt), "denied");
  EXPECT_EQ(scope(zt, xds::kTypeAddress), "denied");
  EXPECT_FALSE(access.still_welcome(zt, {})) << "its stream ends";
  EXPECT_FALSE(access.may_report({"istio-system", "meltemi-agent", "ag-1", "au", "node1"}, "node1"));
}

TEST_F(AccessTest, AServiceAccountThatIsDeletedEndsWhatRestsOnIt) {
  const std::string own = "spiffe://cluster.local/ns/shop/sa/web";
  xds::Caller web{"shop", "web", "web-1", "u1", "node1"};
  web.account_uid = "a1";
  account("web", "a1");
  account("wp", "a2");
  EXPECT_EQ(grant(web), own);
  EXPECT_EQ(grant(ztunnel(), own), own);
  EXPECT_TRUE(access.still_welcome(waypoint(), {}));
  account("web", nullptr);
  account("wp", nullptr);
  EXPECT_EQ(grant(web), "denied");
  EXPECT_EQ(grant(ztunnel(), own), "denied") << "nor does the node's proxy get a certificate for it";
  EXPECT_EQ(scope(waypoint(), xds::kTypeListener, "wp"), "denied");
  const Status ended = access.still_welcome(waypoint(), {});
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().detail, "service account shop/wp was deleted");
  account("web", "a9");
  EXPECT_EQ(grant(web), "denied") << "the token was made for the one before";
  web.account_uid = "a9";
  EXPECT_EQ(grant(web), own);
  EXPECT_EQ(grant(ztunnel(), own), own);
}

TEST(AccountIndex, WhatWasDeletedStaysSoOverARestartAlsoWhenNobodyLooked) {
  std::string directory = "/tmp/meltemi-accounts-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/accounts.json";
  const auto change = [](const std::string& name, bool there) {
    const Object object = Object::make(Kind::kServiceAccount, "shop", name);
    return ObjectChange{object.key(), nullptr, there ? std::make_shared<const Object>(object) : nullptr};
  };
  {
    AccountIndex accounts(file);
    accounts.apply({change("a", true), change("b", true), change("c", true), change("b", false)});
    ASSERT_TRUE(accounts.save());
    EXPECT_FALSE(std::filesystem::exists(file)) << "before all is read it knows nothing";
    EXPECT_FALSE(accounts.complete());
    ASSERT_TRUE(accounts.save());
  }
  AccountIndex accounts(file);
  accounts.apply({change("a", true)});
  EXPECT_TRUE(accounts.still_there("shop", "c", "")) << "not read yet";
  EXPECT_TRUE(accounts.complete());
  EXPECT_TRUE(accounts.still_there("shop", "a", ""));
  EXPECT_FALSE(accounts.still_there("shop", "b", ""));
  EXPECT_FALSE(accounts.still_there("shop", "c", ""));
  EXPECT_TRUE(accounts.still_there("shop", "never-declared", ""));
  EXPECT_EQ(accounts.gone(), 2u);
  std::filesystem::remove_all(directory);
}

class AccountFile : public ::testing::Test {
 protected:
  AccountFile() {
    EXPECT_NE(mkdtemp(directory.data()), nullptr);
    file = directory + "/accounts.json";
    AccountIndex accounts(file);
    accounts.apply({change("a", true), change("b", true), change("c", true), change("b", false)});
    accounts.complete();
    EXPECT_TRUE(accounts.save());
    whole = *sys::read_file(file);
  }
  ~AccountFile() override { std::filesystem::remove_all(directory); }
  static ObjectChange change(const std::string& name, bool there) {
    const Object object = Object::make(Kind::kServiceAccount, "shop", name);
    return {object.key(), nullptr, there ? std::make_shared<const Object>(object) : nullptr};
  }
  std::string directory = "/tmp/meltemi-accounts-XXXXXX", file, whole;
};

TEST_F(AccountFile, ThatCannotBeReadNowBringsNobodyBack) {
  std::unique_ptr<AccountIndex> accounts;
  {
    const test::FewDescriptors none(0);
    accounts = std::make_unique<AccountIndex>(file);
    accounts->apply({change("a", true)});
    EXPECT_FALSE(accounts->complete());
    EXPECT_FALSE(accounts->read_late());
    EXPECT_FALSE(accounts->save());
  }
  EXPECT_NE(accounts->problem().find(file), std::string::npos) << accounts->problem();
  EXPECT_EQ(*sys::read_file(file), whole) << "what could not be read was written over";
  EXPECT_TRUE(accounts->still_there("shop", "a", ""));
  for (const char* name : {"b", "c", "never-declared"}) {
    const Status there = accounts->still_there("shop", name, "");
    ASSERT_FALSE(there) << name;
    EXPECT_EQ(there.error().reason, Reason::kShutdown) << "later, not no";
  }
  EXPECT_TRUE(accounts->read_late());
  EXPECT_EQ(accounts->problem(), "");
  EXPECT_EQ(accounts->still_there("shop", "b", "").error().reason, Reason::kPermission);
  EXPECT_EQ(accounts->still_there("shop", "c", "").error().reason, Reason::kPermission) << "gone meanwhile";
  EXPECT_TRUE(accounts->still_there("shop", "never-declared", ""));
  EXPECT_TRUE(accounts->save());
  EXPECT_EQ(AccountIndex(file).gone(), 2u);
}

TEST_F(AccountFile, ThatIsDamagedIsKeptAsideAndSaid) {
  const std::string cut = whole.substr(0, whole.size() / 2);
  std::ofstream(file) << cut;
  AccountIndex accounts(file);
  EXPECT_NE(accounts.problem().find(file + ".refused"), std::string::npos) << accounts.problem();
  EXPECT_EQ(*sys::read_file(file + ".refused"), cut);
  EXPECT_TRUE(accounts.still_there("shop", "never-declared", ""));
  accounts.complete();
  EXPECT_TRUE(accounts.save());
  EXPECT_EQ(AccountIndex(file).problem(), "");
}

TEST(EnrolledPods, AFileThatCannotBeReadNowIsNotWrittenOver) {
  std::string directory = "/tmp/meltemi-enrolled-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/enrolled.json";
  {
    EnrolledPods pods(file);
    pods.set("node1", {.enrolled = {"u1"}, .plain = {}});
    ASSERT_TRUE(pods.save({"u1"}));
  }
  const std::string whole = *sys::read_file(file);
  std::unique_ptr<EnrolledPods> pods;
  {
    const test::FewDescriptors none(0);
    pods = std::make_unique<EnrolledPods>(file);
    EXPECT_TRUE(pods->lost("node1"));
    pods->set("node2", {.enrolled = {"u2"}, .plain = {}});
    EXPECT_FALSE(pods->save({"u1", "u2"}));
  }
  EXPECT_NE(pods->problem(), "");
  EXPECT_EQ(*sys::read_file(file), whole);
  ASSERT_TRUE(pods->save({"u1", "u2"}));
  EXPECT_EQ(pods->problem(), "");
  const auto again = EnrolledPods(file).by_node();
  EXPECT_EQ(again.at("node1"), std::set<std::string>{"u1"});
  EXPECT_EQ(again.at("node2"), std::set<std::string>{"u2"});
  std::filesystem::remove_all(directory);
}

TEST(SigningRate, AnAskerInALoopIsSlowedAndNobodyElse) {
  constexpr int kSigningBurst = SigningLimits().burst;
  constexpr Duration kSigningInterval = SigningLimits().interval;
  SigningRate rate;
  MonoTime clock{};
  int signed_ = 0;
  for (int i = 0; i < 2500; ++i, clock += std::chrono::milliseconds(40)) {  // 25 a second, 100 s
    signed_ += bool(rate.take("node1 for web", clock));
  }
  EXPECT_LE(signed_, kSigningBurst + 100 / 3 + 1);
  EXPECT_GE(signed_, 30);
  EXPECT_TRUE(rate.take("node2 for web", clock));
  EXPECT_TRUE(rate.take("node1 for db", clock));
  clock += kSigningBurst * kSigningInterval;
  for (int i = 0; i < kSigningBurst; ++i) EXPECT_TRUE(rate.take("node1 for web", clock)) << i;
  const auto refused = rate.take("node1 for web", clock);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, Reason::kLimitExceeded);
  EXPECT_GT(rate.refused(), 2000u);
  SigningRate unlimited({.burst = 1, .interval = Duration(0)});
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(unlimited.take("node1 for web", clock));
}

TEST(EnrolledPods, AFileThatCannotBeWrittenIsToldOnceAndWrittenWhenItCan) {
  ASSERT_TRUE(log::init("info", log::Format::kPlain));
  std::string directory = "/tmp/meltemi-enrolled-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/pods.json", told = directory + "/log";
  const int stderr_was = dup(2), to = open(told.c_str(), O_WRONLY | O_CREAT, 0600);
  dup2(to, 2);
  EnrolledPods pods(file);
  std::filesystem::create_directory(file);  // in its way, for root too
  pods.set("node1", {{"u1"}, {}});
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(pods.save({"u1"}));
  EXPECT_TRUE(pods.dirty()) << "it is owed";
  std::filesystem::remove(file);
  EXPECT_TRUE(pods.save({"u1"}));
  EXPECT_EQ(EnrolledPods(file).count("node1", [](const auto&) { return true; }),
            std::set<std::string>{"u1"});
  std::string text;
  while (text.find("is written again") == std::string::npos) {  // the log's thread writes it
    log::flush();
    std::ifstream in(told);
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  dup2(stderr_was, 2);
  close(stderr_was);
  close(to);
  const size_t first = text.find("enrolled pods are not kept");
  EXPECT_NE(first, std::string::npos) << text;
  EXPECT_EQ(text.find("enrolled pods are not kept", first + 1), std::string::npos) << text;
  std::filesystem::remove_all(directory);
}

TEST_F(AccessTest, OthersGetTheirOwnIdentityOnly) {
  EXPECT_EQ(grant(waypoint()), "spiffe://cluster.local/ns/shop/sa/wp");
  EXPECT_EQ(grant(waypoint(), "spiffe://cluster.local/ns/shop/sa/wp"),
            "spiffe://cluster.local/ns/shop/sa/wp");
  EXPECT_EQ(grant(waypoint(), "spiffe://cluster.local/ns/shop/sa/web"), "denied");
  EXPECT_EQ(grant(agent(), "spiffe://cluster.local/ns/shop/sa/web"), "denied");
  EXPECT_EQ(grant(ztunnel()), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
  EXPECT_EQ(grant({"shop", "ztunnel", "", "", "node1"}, "spiffe://cluster.local/ns/shop/sa/web"),
            "denied")
      << "a service account of that name in another namespace";
}

TEST_F(AccessTest, EachRoleSeesItsTypes) {
  EXPECT_EQ(scope(ztunnel(), xds::kTypeAddress), "[]");
  EXPECT_EQ(scope(ztunnel(), xds::kTypeAuthorization), "[]");
  EXPECT_EQ(scope(ztunnel(), xds::kTypePodEnrolment), "denied");
  EXPECT_EQ(scope(ztunnel(), xds::kTypeListener), "denied");
  EXPECT_EQ(scope(agent("node2"), xds::kTypePodEnrolment), "[node/node2]");
  EXPECT_EQ(scope(agent(""), xds::kTypePodEnrolment), "denied");
  EXPECT_EQ(scope(agent(), xds::kTypeAddress), "denied");
  for (const auto type : {xds::kTypeListener, xds::kTypeRoute, xds::kTypeCluster, xds::kTypeEndpoints}) {
    EXPECT_EQ(scope(waypoint(), type, "wp"), "[waypoint/shop/wp]");
  }
  EXPECT_EQ(scope(waypoint(), xds::kTypeAddress, "wp"), "[]");
  EXPECT_EQ(scope(waypoint(), xds::kTypeAuthorization, "wp"), "denied");
  EXPECT_EQ(scope(waypoint(), xds::kTypePodEnrolment, "wp"), "denied");
  EXPECT_EQ(scope(ztunnel(), "type.googleapis.com/istio.debug"), "denied");
}

// The stream lives on without such a type, so nobody without rights may get as far as this.
TEST_F(AccessTest, OnlyWhoMayHaveOtherTypesHearsThatOneIsNotForHim) {
  const auto why = [&](const xds::Caller& caller) {
    return access.scope_of(caller, {}, xds::kTypePodEnrolment).error().reason;
  };
  EXPECT_EQ(why(ztunnel()), Reason::kUnsupported);
  EXPECT_EQ(why(waypoint()), Reason::kUnsupported);
  EXPECT_EQ(why({"shop", "web", "web-1", "u1", "node1"}), Reason::kPermission);
}

TEST_F(AccessTest, AWaypointProvesItsGatewayByItsPod) {
  EXPECT_EQ(scope(waypoint(), xds::kTypeListener, "another"), "denied");
  EXPECT_EQ(scope({"shop", "web", "web-1", "u1", "node1"}, xds::kTypeListener, "wp"), "denied")
      << "an ordinary pod";
  EXPECT_EQ(scope({"shop", "wp", "wp-1", "old-uid", "node1"}, xds::kTypeListener, "wp"), "denied")
      << "the token of a pod that was replaced";
  EXPECT_EQ(scope({"shop", "wp", "", "", ""}, xds::kTypeListener, "wp"), "denied")
      << "not bound to a pod";
  EXPECT_EQ(scope({"shop", "web", "wp-1", "u4", "node1"}, xds::kTypeListener, "wp"), "denied")
      << "another service account";
  xds::Node node;
  EXPECT_TRUE(access.still_welcome(waypoint(), node));
  remove("wp-1");
  EXPECT_FALSE(access.still_welcome(waypoint(), node));
  EXPECT_TRUE(access.still_welcome(ztunnel(), node));
}

TEST_F(AccessTest, AnAgentReportsForItsNode) {
  EXPECT_TRUE(access.may_report(agent("node1"), "node1"));
  EXPECT_FALSE(access.may_report(agent("node1"), "node2"));
  EXPECT_FALSE(access.may_report(agent(""), ""));
  EXPECT_FALSE(access.may_report(ztunnel("node1"), "node1"));
}

}  // namespace
}  // namespace meltemi::control
