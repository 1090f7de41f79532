// The last good state on disk: what comes back, what is refused, and how often it is written. The clock is
// the test's.
#include "userspace/xds/last_good.h"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/support/few_descriptors.h"
#include "userspace/sys/files.h"

namespace meltemi::xds {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

const StateOwner kOwner{"ztunnel", "node-1", "Kubernetes", "cluster.local"};
constexpr std::string_view kType = "type.googleapis.com/istio.workload.Address";

std::shared_ptr<const SavedResource> resource(std::string version, std::string body) {
  return std::make_shared<SavedResource>(std::move(version), std::move(body));
}

struct LastGoodTest : ::testing::Test {
  LastGoodTest() {
    std::string name = "/tmp/meltemi-state-XXXXXX";
    directory = mkdtemp(name.data());
    path = directory + "/ztunnel.state";
  }
  ~LastGoodTest() override { std::filesystem::remove_all(directory); }

  LastGoodOptions options(StateOwner owner = kOwner) {
    return {.path = path, .owner = std::move(owner), .now = [this] { return now; }};
  }
  void write_one() {
    LastGood state(options());
    (void)state.load();
    state.set(kType, "a", resource("1", "body"));
    state.answered(kType);
  }
  // Why the file is refused; it must then be aside.
  std::string refusal(const StateOwner& owner = kOwner) {
    LastGood state(options(owner));
    const auto loaded = state.load();
    if (loaded) return "taken";
    EXPECT_FALSE(std::filesystem::exists(path)) << "left in place";
    EXPECT_TRUE(std::filesystem::is_symlink(path + ".refused") ||
                std::filesystem::exists(path + ".refused"));
    return loaded.error().detail;
  }
  std::string bytes() const { return *sys::read_file(path); }
  void overwrite(const std::string& text) const { std::ofstream(path) << text; }

  std::string directory, path;
  WallTime now = std::chrono::system_clock::now();
};

TEST_F(LastGoodTest, WhatWasAcceptedComesBackWithItsVersions) {
  {
    LastGood state(options());
    EXPECT_EQ(state.load().error().reason, Reason::kNotFound);
    state.set(kType, "a", resource("1", std::string("\0\xff body", 7)));
    state.set(kType, "b", resource("2", ""));
    state.set(kType, "gone", resource("3", "x"));
    state.set(kType, "gone", nullptr);
    state.answered("type.empty");
  }
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  LastGood state(options());
  const auto loaded = state.load();
  ASSERT_TRUE(loaded.has_value()) << loaded.error().detail;
  ASSERT_EQ(loaded->types.size(), 2u) << "a type that has nothing was answered too";
  const SavedResources& saved = loaded->types.find(kType)->second;
  ASSERT_EQ(saved.size(), 2u);
  EXPECT_EQ(saved.find("a")->second->version, "1");
  EXPECT_EQ(saved.find("a")->second->body, std::string("\0\xff body", 7));
}

TEST_F(LastGoodTest, AFileCutAtAnyByteIsRefused) {
  write_one();
  const std::string whole = bytes();
  for (size_t n = 0; n < whole.size(); ++n) {
    const auto decoded = decode_state(whole.substr(0, n), kOwner);
    ASSERT_FALSE(decoded.has_value()) << n;
  }
  overwrite(whole.substr(0, whole.size() - 1));
  EXPECT_THAT(refusal(), HasSubstr("cut short"));
}

TEST_F(LastGoodTest, AFlippedBitAnywhereIsRefused) {
  write_one();
  const std::string whole = bytes();
  for (size_t i = 0; i < whole.size() * 8; ++i) {
    std::string flipped = whole;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ 1 << i % 8);
    ASSERT_FALSE(decode_state(flipped, kOwner).has_value()) << "bit " << i;
  }
  std::string flipped = whole;
  flipped.back() ^= 4;
  overwrite(flipped);
  EXPECT_THAT(refusal(), HasSubstr("checksum"));
}

TEST_F(LastGoodTest, ANewerFormatIsRefused) {
  write_one();
  std::string newer = bytes();
  newer[11] = 2;
  overwrite(newer);
  EXPECT_THAT(refusal(), HasSubstr("format is 2"));
}

TEST_F(LastGoodTest, TheStateOfAnotherNodeMeshOrSubscriberIsRefusedByName) {
  const auto refused = [&](std::string StateOwner::*field) {
    write_one();
    StateOwner other = kOwner;
    other.*field = "other";
    return refusal(other);
  };
  EXPECT_THAT(refused(&StateOwner::node), HasSubstr("node \"node-1\", not \"other\""));
  EXPECT_THAT(refused(&StateOwner::cluster), HasSubstr("cluster \"Kubernetes\""));
  EXPECT_THAT(refused(&StateOwner::trust_domain), HasSubstr("trust domain \"cluster.local\""));
  EXPECT_THAT(refused(&StateOwner::subscriber), HasSubstr("subscriber \"ztunnel\""));
}

TEST_F(LastGoodTest, WhatOthersCouldHaveWrittenIsRefused) {
  write_one();
  ASSERT_EQ(::chmod(path.c_str(), 0622), 0);
  EXPECT_THAT(refusal(), HasSubstr("others may write it"));
  write_one();
  std::filesystem::rename(path, directory + "/elsewhere");
  std::filesystem::create_symlink(directory + "/elsewhere", path);
  EXPECT_THAT(refusal(), HasSubstr("symbolic link"));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(refusal(), HasSubstr("no regular file"));
  if (::geteuid() != 0) return;
  write_one();
  ASSERT_EQ(::chown(path.c_str(), 12345, 0), 0);
  EXPECT_THAT(refusal(), HasSubstr("belongs to uid 12345"));
}

TEST_F(LastGoodTest, TooOldByChoiceIsRefusedAndStaysWhereItIs) {
  write_one();
  now += 3h;
  LastGoodOptions limited = options();
  limited.max_age = 2h;
  {
    LastGood state(limited);
    const auto loaded = state.load();
    ASSERT_FALSE(loaded.has_value());
    EXPECT_EQ(loaded.error().reason, Reason::kLimitExceeded);
    EXPECT_THAT(loaded.error().detail, HasSubstr("max-stale-age is 2h"));
  }
  limited.max_age = 4h;
  LastGood state(limited);
  const auto loaded = state.load();
  ASSERT_TRUE(loaded.has_value()) << "the operator may change his mind";
  EXPECT_EQ(std::chrono::round<std::chrono::seconds>(now - loaded->last_word), 3h);
}

TEST_F(LastGoodTest, ManyPushesAreWrittenTogether) {
  LastGood state(options());
  (void)state.load();
  for (int push = 0; push < 1000; ++push) {
    for (int i = 0; i < 10; ++i) {
      state.set(kType, std::to_string(push * 10 + i), resource("1", std::string(400, 'w')));
    }
  }
  state.flush();
  EXPECT_LE(state.saves(), 5u) << "ten thousand changes in a thousand pushes";
  LastGood again(options());
  EXPECT_EQ(again.load()->types.begin()->second.size(), 10'000u);
}

TEST_F(LastGoodTest, WhatCannotBeReadNowIsReadLaterAndNotWrittenOver) {
  write_one();
  const std::string whole = bytes();
  LastGood state(options());
  {
    const test::FewDescriptors none(0);
    const auto loaded = state.load();
    ASSERT_FALSE(loaded.has_value());
    EXPECT_EQ(loaded.error().reason, Reason::kSystem) << loaded.error().detail;
    state.set("type.other", "b", resource("7", "newer"));
    state.flush();
    EXPECT_EQ(state.saves(), 0u);
  }
  EXPECT_TRUE(state.unread());
  EXPECT_EQ(bytes(), whole);
  EXPECT_FALSE(std::filesystem::exists(path + ".refused"));
  const auto loaded = state.load();
  ASSERT_TRUE(loaded.has_value()) << loaded.error().detail;
  EXPECT_TRUE(loaded->types.contains(kType));
  EXPECT_FALSE(state.unread());
  state.set("type.other", "c", resource("8", "newest"));
  state.flush();
  EXPECT_GT(state.saves(), 0u);
  const auto both = decode_state(bytes(), kOwner);
  ASSERT_TRUE(both.has_value());
  EXPECT_TRUE(both->contains(kType));
  EXPECT_TRUE(both->contains(std::string_view("type.other")));
}

TEST_F(LastGoodTest, AnAnswerIsNewerThanAFileThatIsReadLater) {
  write_one();
  LastGood state(options());
  {
    const test::FewDescriptors none(0);
    EXPECT_FALSE(state.load());
  }
  // The control plane answers for one type before anybody reads again.
  state.set(kType, "new", resource("9", "newer"));
  state.answered("type.other");
  state.flush();
  const auto saved = decode_state(bytes(), kOwner);
  ASSERT_TRUE(saved.has_value());
  EXPECT_EQ(saved->find(kType)->second.size(), 1u) << "its answer is the newer knowledge";
  EXPECT_TRUE(saved->find(kType)->second.contains(std::string_view("new")));
}

TEST_F(LastGoodTest, AFileThatCannotBeWrittenHarmsNobody) {
  path = directory + "/missing/ztunnel.state";
  LastGood state(options());
  (void)state.load();
  state.set(kType, "a", resource("1", "body"));
  state.flush();
  EXPECT_EQ(state.saves(), 0u);
}

}  // namespace
}  // namespace meltemi::xds
