#include "waypoint/http/normalise.h"

#include <gtest/gtest.h>

#include <random>

namespace meltemi::waypoint {
namespace {

std::string path_of(std::string_view raw, PathRules rules = {}) {
  Arena arena;
  const auto t = normalise_target(raw, rules, arena);
  return t ? std::string(t->full) : "refused: " + t.error().detail;
}

TEST(NormaliseTarget, LeavesOrdinaryTargetsAlone) {
  for (const char* same : {"/", "/a/b.html", "/a//b", "/?q=1", "/a?x=%2F&y=..//", "/a;v=1/b",
                           "/.well-known/x", "/...", "/a%20b", "*", "/%C3%A9"}) {
    EXPECT_EQ(path_of(same), same);
  }
}

TEST(NormaliseTarget, ResolvesDotSegmentsAndBackslashes) {
  EXPECT_EQ(path_of("/a/../b"), "/b");
  EXPECT_EQ(path_of("/a/./b"), "/a/b");
  EXPECT_EQ(path_of("/../../etc"), "/etc");
  EXPECT_EQ(path_of("/a/b/.."), "/a/");
  EXPECT_EQ(path_of("/a/."), "/a/");
  EXPECT_EQ(path_of("/.."), "/");
  EXPECT_EQ(path_of("/a\\..\\admin"), "/admin");
  EXPECT_EQ(path_of("/a//../b"), "/a/b");
}

TEST(NormaliseTarget, DecodesUnreservedAndUpperCasesTheRest) {
  EXPECT_EQ(path_of("/%61dmin"), "/admin");
  EXPECT_EQ(path_of("/a/%2e%2E/b"), "/b");
  EXPECT_EQ(path_of("/%3b%c3"), "/%3B%C3");
  EXPECT_EQ(path_of("/%7Euser?%61"), "/~user?%61") << "the query is not touched";
}

TEST(NormaliseTarget, RefusesWhatIsAmbiguous) {
  for (const char* bad : {"", "a", "/a%00", "/a%", "/a%2", "/a%zz", "/a#b",
                          "/a b", "/a\tb", "/..;/admin", "/.;x/admin", "/a?b c", "/a?\x7f",
                          "http://x/", "/a/../b\x01", "/%41 b", "/\\a#b"}) {
    EXPECT_TRUE(path_of(bad).starts_with("refused")) << bad << " -> " << path_of(bad);
  }
}

TEST(NormaliseTarget, RulesForEscapedSlashesAndMerging) {
  EXPECT_EQ(path_of("/a%2Fb"), "/a%2Fb") << "as in Envoy and Istio: kept unless told otherwise";
  EXPECT_EQ(path_of("/a%2fb"), "/a%2Fb");
  EXPECT_EQ(path_of("/a%2Fb", {EscapedSlashes::kReject, false}),
            path_of("/a%5cb", {EscapedSlashes::kReject, false}))
      << "both refused";
  for (const char* raw : {"/a/../b", "//a", "/%61", "/a%2Fb", "/a\\b"}) {
    EXPECT_EQ(path_of(raw, {.normalize = false}), raw);
  }
  EXPECT_EQ(path_of("/../\x01", {.normalize = false}), path_of("/#"))
      << "what no path may hold is refused in every form";
  EXPECT_EQ(path_of("/a%2F..%5cb", {EscapedSlashes::kUnescape, false}), "/b");
  EXPECT_EQ(path_of("//a///b//", {EscapedSlashes::kReject, true}), "/a/b/");
}

// Whatever goes in: what comes out is stable, and has nothing that a second reader could resolve.
TEST(NormaliseTarget, IsIdempotentAndLeavesNothingToResolve) {
  std::mt19937 random(1);
  static constexpr std::string_view kPieces[] = {"/", ".", "..", "%2e", "%2F", "%5C", "\\", "a", "B",
                                                 "%41", ";", "?", "%25", "%", "2e", "//", "%3f"};
  for (int i = 0; i < 20000; ++i) {
    std::string raw = "/";
    const size_t n = random() % 12;
    for (size_t k = 0; k < n; ++k) raw += kPieces[random() % std::size(kPieces)];
    for (const auto escaped : {EscapedSlashes::kReject, EscapedSlashes::kKeep,
                               EscapedSlashes::kUnescape}) {
      for (const bool merge : {false, true}) {
        const PathRules rules{escaped, merge};
        Arena arena;
        const auto once = normalise_target(raw, rules, arena);
        if (!once) continue;
        const auto twice = normalise_target(once->full, rules, arena);
        ASSERT_TRUE(twice) << raw << " -> " << once->full << ": " << twice.error().detail;
        ASSERT_EQ(twice->full, once->full) << raw;
        ASSERT_EQ(once->path.find("/../"), std::string_view::npos) << raw;
        ASSERT_FALSE(once->path.ends_with("/..")) << raw;
        ASSERT_EQ(once->path.find('\\'), std::string_view::npos) << raw;
        if (merge) ASSERT_EQ(once->path.find("//"), std::string_view::npos) << raw;
      }
    }
  }
}

TEST(NormaliseHost, IgnoresCaseTrailingDotAndPort) {
  Arena arena;
  for (const char* text : {"Shop.Example", "shop.example.", "SHOP.EXAMPLE.:8080", "shop.example:80"}) {
    const auto h = normalise_host(text, arena);
    ASSERT_TRUE(h) << text;
    EXPECT_EQ(h->name, "shop.example") << text;
  }
  EXPECT_EQ(normalise_host("a:8080", arena)->port, 8080);
  EXPECT_EQ(normalise_host("[FD00::1]:80", arena)->name, "fd00::1");
}

TEST(NormaliseHost, RefusesWhatIsNoHost) {
  Arena arena;
  const std::string too_long(300, 'a');
  for (const std::string& text :
       {std::string(""), std::string("user@host"), std::string("a b"), std::string("a/b"),
        std::string("a:b"), std::string("a:99999"), std::string("[::1"), std::string("[zz]"),
        std::string("a:1:2"), std::string("."), too_long, std::string("a\r\nb")}) {
    EXPECT_FALSE(normalise_host(text, arena) && text != ".") << text;
  }
}

TEST(Arena, KeepsItsFirstBlockAndServesAnySize) {
  Arena arena;
  const std::string_view a = arena.copy("hello");
  const std::string big(100'000, 'x');
  const std::string_view b = arena.copy(big);
  const std::string_view c = arena.join(a, std::string_view("-"), std::string_view("world"));
  EXPECT_EQ(a, "hello");
  EXPECT_EQ(b, big);
  EXPECT_EQ(c, "hello-world");
  arena.reset();
  EXPECT_EQ(arena.copy("again").data(), a.data()) << "the same memory is used again";
}

TEST(Arena, FirstPieceMayBeLarge) {
  Arena arena;
  const std::string big(10'000, 'y');
  EXPECT_EQ(arena.copy(big), big);
  arena.reset();
  EXPECT_EQ(arena.copy(big), big);
  EXPECT_EQ(arena.copy("z"), "z");
}

TEST(NormaliseHost, RefusesEmptyLabels) {
  Arena arena;
  for (const char* host : {"x..", "a..b", ".a", ".", "..", "a..:80"}) {
    EXPECT_FALSE(normalise_host(host, arena)) << host;
  }
  EXPECT_EQ(normalise_host("a.b.", arena)->name, "a.b");
}

}  // namespace
}  // namespace meltemi::waypoint
