// What a stream is told: everything once, in its newest state, and only what it does not have.
#include "userspace/xds/subscription.h"

#include <gmock/gmock.h>

#include <map>

namespace meltemi::xds {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
namespace discovery = ::envoy::service::discovery::v3;

constexpr size_t kBig = 1 << 20;
const std::string kType = "type.googleapis.com/test.T";

struct Told {
  std::map<std::string, std::string> versions;
  std::vector<std::string> removed;
  std::string nonce;
};

discovery::DeltaDiscoveryResponse parse(const NextResponse& next) {
  std::string bytes;
  for (const grpc::Slice& slice : next.slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  EXPECT_EQ(bytes.size(), next.bytes);
  discovery::DeltaDiscoveryResponse out;
  EXPECT_TRUE(out.ParseFromString(bytes));
  return out;
}

struct SubscriptionTest : ::testing::Test {
  void set(const std::string& name, const std::string& version) {
    table->set(name, encode_resource(kType, name, version, "body of " + name));
  }
  static std::optional<Told> next(Subscription& s, size_t target = kBig) {
    const auto response = s.next(target);
    if (!response) return std::nullopt;
    const auto proto = parse(*response);
    EXPECT_EQ(proto.type_url(), kType);
    Told out;
    for (const auto& r : proto.resources()) {
      EXPECT_EQ(r.resource().type_url(), kType);
      EXPECT_EQ(r.resource().value(), "body of " + r.name());
      EXPECT_TRUE(out.versions.emplace(r.name(), r.version()).second) << "twice: " << r.name();
    }
    out.removed.assign(proto.removed_resources().begin(), proto.removed_resources().end());
    out.nonce = proto.nonce();
    return out;
  }
  Subscription wildcard(std::map<std::string, std::string> initial = {}) {
    Subscription s(kType, "", table);
    Subscription::Request request;
    for (const auto& [name, version] : initial) {
      (*request.mutable_initial_resource_versions())[name] = version;
    }
    EXPECT_TRUE(s.apply(request, true, 1000));
    return s;
  }
  static Status want(Subscription& s, std::vector<std::string> add,
                     std::vector<std::string> drop = {}, bool first = false) {
    Subscription::Request request;
    for (auto& name : add) request.add_resource_names_subscribe(name);
    for (auto& name : drop) request.add_resource_names_unsubscribe(name);
    return s.apply(request, first, 1000);
  }

  std::shared_ptr<ResourceTable> table = std::make_shared<ResourceTable>();
};

TEST_F(SubscriptionTest, TellsEverythingThenOnlyChanges) {
  set("a", "1");
  set("b", "1");
  auto s = wildcard();
  EXPECT_THAT(next(s)->versions, ElementsAre(Pair("a", "1"), Pair("b", "1")));
  EXPECT_FALSE(next(s));
  set("b", "2");
  set("b", "3");
  set("a", "1");  // no change
  table->remove("nobody");
  EXPECT_THAT(next(s)->versions, ElementsAre(Pair("b", "3")));
  EXPECT_FALSE(next(s));
}

TEST_F(SubscriptionTest, AnEmptyMeshIsSaidOnce) {
  auto s = wildcard();
  const auto told = next(s);
  ASSERT_TRUE(told);
  EXPECT_THAT(told->versions, IsEmpty());
  EXPECT_FALSE(next(s));
}

TEST_F(SubscriptionTest, ResumesByVersionAndTellsWhatIsGone) {
  set("same", "1");
  set("changed", "2");
  set("new", "1");
  auto s = wildcard({{"same", "1"}, {"changed", "1"}, {"gone", "7"}, {"refused", ""}});
  set("refused", "1");
  const auto told = next(s);
  EXPECT_THAT(told->versions,
              ElementsAre(Pair("changed", "2"), Pair("new", "1"), Pair("refused", "1")));
  EXPECT_THAT(told->removed, ElementsAre("gone"));
  EXPECT_FALSE(next(s));
}

TEST_F(SubscriptionTest, NothingChangedCostsAlmostNothing) {
  for (int i = 0; i < 100; ++i) set("r" + std::to_string(i), "1");
  std::map<std::string, std::string> initial;
  for (int i = 0; i < 100; ++i) initial["r" + std::to_string(i)] = "1";
  auto s = wildcard(initial);
  const auto response = s.next(kBig);
  ASSERT_TRUE(response);
  EXPECT_EQ(response->resources, 0u);
  EXPECT_LT(response->bytes, 100u);
}

TEST_F(SubscriptionTest, ASlowStreamHearsTheNewestStateOnly) {
  set("a", "1");
  set("b", "1");
  auto s = wildcard();
  ASSERT_TRUE(next(s));
  for (int i = 2; i < 500; ++i) set("a", std::to_string(i));
  table->remove("b");
  set("c", "1");
  table->remove("c");  // came and went while nobody looked
  const auto told = next(s);
  EXPECT_THAT(told->versions, ElementsAre(Pair("a", "499")));
  EXPECT_THAT(told->removed, UnorderedElementsAre("b", "c"));
  EXPECT_FALSE(next(s));
}

TEST_F(SubscriptionTest, ALongFirstAnswerIsCutAndStillComplete) {
  for (int i = 0; i < 50; ++i) set("r" + std::to_string(i), "1");
  auto s = wildcard({{"r7", "1"}, {"old", "1"}});
  std::map<std::string, std::string> all;
  std::vector<std::string> removed;
  int responses = 0;
  while (const auto told = next(s, 200)) {
    ++responses;
    all.insert(told->versions.begin(), told->versions.end());
    removed.insert(removed.end(), told->removed.begin(), told->removed.end());
  }
  EXPECT_GT(responses, 5);
  EXPECT_EQ(all.size(), 49u);
  EXPECT_THAT(removed, ElementsAre("old"));
}

TEST_F(SubscriptionTest, NamesGetTheirAnswerAndNothingElse) {
  set("a", "1");
  set("b", "1");
  Subscription s(kType, "", table);
  ASSERT_TRUE(want(s, {"a", "missing"}, {}, true));
  auto told = next(s);
  EXPECT_THAT(told->versions, ElementsAre(Pair("a", "1")));
  EXPECT_THAT(told->removed, ElementsAre("missing"));
  EXPECT_FALSE(next(s));
  set("b", "2");
  EXPECT_FALSE(next(s));
  set("missing", "1");
  EXPECT_THAT(next(s)->versions, ElementsAre(Pair("missing", "1")));
  ASSERT_TRUE(want(s, {"b"}, {"a"}));
  EXPECT_THAT(next(s)->versions, ElementsAre(Pair("b", "2")));
  set("a", "2");
  EXPECT_FALSE(next(s)) << "no longer wanted";
  // Asked for again means: send it again.
  ASSERT_TRUE(want(s, {"b"}));
  EXPECT_THAT(next(s)->versions, ElementsAre(Pair("b", "2")));
}

TEST_F(SubscriptionTest, NamesResumeByVersionToo) {
  set("a", "1");
  set("b", "2");
  Subscription s(kType, "", table);
  Subscription::Request request;
  for (const char* name : {"a", "b", "c"}) {
    request.add_resource_names_subscribe(name);
    (*request.mutable_initial_resource_versions())[name] = "1";
  }
  ASSERT_TRUE(s.apply(request, true, 1000));
  const auto told = next(s);
  EXPECT_THAT(told->versions, ElementsAre(Pair("b", "2")));
  EXPECT_THAT(told->removed, ElementsAre("c"));
}

TEST_F(SubscriptionTest, CountsAcksAndKeepsTheLastRefusal) {
  set("a", "1");
  auto s = wildcard();
  const auto told = next(s);
  EXPECT_FALSE(s.current());
  Subscription::Request nack;
  nack.set_response_nonce(told->nonce);
  nack.mutable_error_detail()->set_message("a: bad field");
  ASSERT_TRUE(s.apply(nack, false, 1000));
  EXPECT_EQ(s.nacked(), 1u);
  EXPECT_EQ(s.last_nack(), "a: bad field");
  EXPECT_TRUE(s.current());
  EXPECT_FALSE(next(s)) << "a refused resource is not sent again before it changes";
}

TEST_F(SubscriptionTest, TooManyNamesAreRefused) {
  Subscription s(kType, "", table);
  std::vector<std::string> names;
  for (int i = 0; i < 1001; ++i) names.push_back(std::to_string(i));
  const auto status = want(s, names, {}, true);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().reason, Reason::kLimitExceeded);
}

TEST_F(SubscriptionTest, TombstonesGoWhenEveryStreamHasPassed) {
  auto s = wildcard();
  ASSERT_TRUE(next(s));
  for (int i = 0; i < 3000; ++i) set("r" + std::to_string(i), "1");
  ASSERT_TRUE(next(s));
  for (int i = 0; i < 3000; ++i) table->remove("r" + std::to_string(i));
  table->trim();
  EXPECT_NE(table->find("r5"), nullptr) << "the stream has not been told yet";
  EXPECT_EQ(next(s)->removed.size(), 3000u);
  table->trim();
  EXPECT_EQ(table->find("r5"), nullptr);
  EXPECT_FALSE(next(s));
}

}  // namespace
}  // namespace meltemi::xds
