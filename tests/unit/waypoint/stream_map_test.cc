#include "waypoint/proxy/stream_map.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace meltemi::waypoint {
namespace {

TEST(StreamMap, BehavesLikeAMap) {
  StreamMap<int> map;
  std::map<uint32_t, int> oracle;
  std::mt19937 random(5);
  uint32_t next = 1;
  EXPECT_EQ(map.find(1), nullptr);
  EXPECT_EQ(map.take(1), nullptr);
  for (int i = 0; i < 50'000; ++i) {
    if (oracle.size() < 200 && random() % 2) {
      map.insert(next, std::make_unique<int>(i));
      oracle[next] = i;
      next += 2;
    } else if (!oracle.empty()) {
      auto it = oracle.begin();
      std::advance(it, random() % oracle.size());
      ASSERT_EQ(*map.find(it->first), it->second);
      ASSERT_EQ(*map.take(it->first), it->second);
      ASSERT_EQ(map.find(it->first), nullptr);
      oracle.erase(it);
    }
    ASSERT_EQ(map.size(), oracle.size());
  }
  for (const auto& [id, value] : oracle) ASSERT_EQ(*map.find(id), value);
  EXPECT_EQ(map.take_all().size(), oracle.size());
  EXPECT_TRUE(map.empty());
}

}  // namespace
}  // namespace meltemi::waypoint
