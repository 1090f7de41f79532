// The pure parts of the command line: tables, ports, selectors, kubectl's merge, waypoint
// manifests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "userspace/cli/manifests.h"
#include "userspace/cli/objects.h"
#include "userspace/cli/sessions.h"
#include "userspace/cli/table.h"
#include "userspace/cli/waypoint.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using testing::HasSubstr;

TEST(Table, AlignsAndLeavesNoTrailingBlanks) {
  Table table({"NAME", "STATUS"});
  table.add({"a", "Running"});
  table.add({"longer-name", ""});
  EXPECT_EQ(table.text(), "NAME          STATUS\na             Running\nlonger-name\n");
  EXPECT_EQ(table.text(true), "a             Running\nlonger-name\n");
}

TEST(Table, ACellCannotForgeALine) {
  Table table({"NAME"});
  table.add({"x\nNAME   fake"});
  const std::string text = table.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

TEST(Tail, CountsLines) {
  EXPECT_EQ(tail_lines("a\nb\nc\n", 2), "b\nc\n");
  EXPECT_EQ(tail_lines("a\nb\nc", 1), "c");
  EXPECT_EQ(tail_lines("a\nb\n", 5), "a\nb\n");
  EXPECT_EQ(tail_lines("a\n", 0), "");
  EXPECT_EQ(tail_lines("", 3), "");
}

TEST(Ports, AreReadAsKubectlReadsThem) {
  EXPECT_EQ(parse_ports("12123:80"), (PortPair{12123, 80}));
  EXPECT_EQ(parse_ports("80"), (PortPair{80, 80}));
  EXPECT_EQ(parse_ports(":80"), (PortPair{0, 80}));
  for (const char* bad : {"", ":", "a", "80:", "65536", "1:65536", "-1", "80:0", "1:2:3"})
    EXPECT_FALSE(parse_ports(bad)) << bad;
}

TEST(Target, TakesBothSpellings) {
  const auto slash = parse_target({"deploy/web"});
  ASSERT_TRUE(slash);
  EXPECT_EQ(slash->kind->kind, Kind::kDeployment);
  EXPECT_THAT(slash->names, testing::ElementsAre("web"));
  const auto words = parse_target({"po", "a", "b"});
  ASSERT_TRUE(words);
  EXPECT_THAT(words->names, testing::ElementsAre("a", "b"));
  const auto bad = parse_target({"nonsense", "x"});
  ASSERT_FALSE(bad);
  EXPECT_THAT(bad.error().detail, HasSubstr("doesn't have a resource type \"nonsense\""));
}

TEST(Selector, MatchesLabels) {
  Object pod = Object::make(Kind::kPod, "shop", "p");
  (*pod.mutable_meta().mutable_labels())["app"] = "web";
  EXPECT_TRUE(selected(pod, *parse_selector("app=web")));
  EXPECT_TRUE(selected(pod, *parse_selector("app")));
  EXPECT_TRUE(selected(pod, *parse_selector("")));
  EXPECT_FALSE(selected(pod, *parse_selector("app=web,tier=x")));
  EXPECT_FALSE(parse_selector("app!=web")) << "silently matching everything would be worse";
  EXPECT_FALSE(parse_selector("=x"));
}

Object labelled(std::map<std::string, std::string> labels) {
  Object ns = Object::make(Kind::kNamespace, "", "shop");
  for (const auto& [key, value] : labels) (*ns.mutable_meta().mutable_labels())[key] = value;
  return ns;
}

TEST(Apply, KeepsLabelsThatACommandHasSet) {
  // apply, then label, then apply the same file again: as with kubectl, the label stays.
  const Object first = merge_applied(labelled({{"team", "a"}}), nullptr);
  Object live = first;
  (*live.mutable_meta().mutable_labels())["istio.io/dataplane-mode"] = "ambient";
  const Object again = merge_applied(labelled({{"team", "a"}}), &live);
  EXPECT_EQ(again.label("istio.io/dataplane-mode"), "ambient");
  EXPECT_EQ(again.label("team"), "a");
}

TEST(Apply, RemovesLabelsThatTheManifestNoLongerHas) {
  const Object live = merge_applied(labelled({{"team", "a"}, {"tier", "web"}}), nullptr);
  const Object next = merge_applied(labelled({{"team", "b"}}), &live);
  EXPECT_EQ(next.label("tier"), "");
  EXPECT_EQ(next.label("team"), "b");
}

TEST(Waypoint, ManifestIsIstios) {
  WaypointOptions options;
  options.traffic = "all";
  const auto gateway = waypoint_gateway("shop", options);
  ASSERT_TRUE(gateway) << gateway.error().detail;
  const std::string yaml = config::objects_to_yaml({*gateway});
  EXPECT_THAT(yaml, HasSubstr("kind: Gateway"));
  EXPECT_THAT(yaml, HasSubstr("gatewayClassName: istio-waypoint"));
  EXPECT_THAT(yaml, HasSubstr("istio.io/waypoint-for: all"));
  EXPECT_THAT(yaml, HasSubstr("protocol: HBONE"));
  EXPECT_THAT(yaml, HasSubstr("port: 15008"));
}

// Without --for it serves the account's workloads and the Services that run as it alone: a label would
// take one of the two away.
TEST(Waypoint, OfAServiceAccountSaysNothingOfTrafficUnlessAsked) {
  WaypointOptions options;
  options.service_account = "catalog";
  const std::string yaml = config::objects_to_yaml({*waypoint_gateway("shop", options)});
  EXPECT_THAT(yaml, HasSubstr("istio.io/for-service-account: catalog"));
  EXPECT_THAT(yaml, ::testing::Not(HasSubstr("istio.io/waypoint-for")));
}

TEST(Waypoint, RefusesReservedNamesAndUnknownTraffic) {
  WaypointOptions none;
  none.name = "none";
  EXPECT_FALSE(waypoint_gateway("shop", none));
  WaypointOptions wrong;
  wrong.traffic = "everything";
  const auto refused = waypoint_gateway("shop", wrong);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().detail, HasSubstr("invalid traffic type: everything"));
}

}  // namespace
}  // namespace meltemi::cli
