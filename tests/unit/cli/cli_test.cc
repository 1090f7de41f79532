// The pure parts of the command line: tables, ports, selectors, kubectl's merge, waypoint
// manifests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "userspace/cli/context.h"
#include "userspace/cli/foreign_words.h"
#include "userspace/cli/jsonpath.h"
#include "userspace/cli/manifests.h"
#include "userspace/cli/mesh_state.h"
#include "userspace/cli/sessions.h"
#include "userspace/cli/table.h"
#include "userspace/cli/targets.h"
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

TEST(Output, WhatIsPrintedCannotSteerTheTerminal) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  print("pod/{} created\n", "a\x1b[2Jb");
  complain("error: {}\n", "\u202edesrever");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "pod/a\\u001b[2Jb created\n");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "error: \\u202edesrever\n");
}

TEST(Output, DataForProgramsStaysAsItIs) {
  testing::internal::CaptureStdout();
  write_data("a\r\n\x1b");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "a\r\n\x1b");
}

TEST(MeshState, SaysWhatSomebodyShouldLookAt) {
  const auto state = read_state(R"({"component": "ztunnel", "version": "1.2", "ready": true,
    "trouble": "", "configuration": "7", "counts": {"pods": 2, "connections": 5},
    "controlPlane": {"state": "NACK", "lastWord": "2020-01-01T00:00:00Z",
                     "types": [{"type": "t/Listener", "refused": "a: no port"}]},
    "certificates": {"available": 3, "missing": 1, "firstEnd": "2020-01-01T00:00:00Z"},
    "problems": ["no kubelet is known"]})");
  ASSERT_TRUE(state) << state.error().to_string();
  EXPECT_TRUE(state->ready);
  EXPECT_EQ(state->version, "1.2");
  EXPECT_EQ(state->configuration, "7");
  EXPECT_EQ(state->sync, "NACK");
  EXPECT_EQ(state->certificates, "3 for 0s, 1 missing") << "the first has ended";
  EXPECT_EQ(state->counts, "pods=2 connections=5");
  EXPECT_THAT(state->findings,
              testing::ElementsAre("refused a part of t/Listener: a: no port",
                                   "has no certificate for 1 of its identities", "no kubelet is known"));
}

TEST(MeshState, AStaleOneSaysSinceWhenAndWhy) {
  const auto state = read_state(R"({"component": "waypoint", "ready": false, "trouble": "a\nb",
    "controlPlane": {"state": "STALE", "lastWord": "2020-01-01T00:00:00.5Z", "servingSavedState": true,
                     "savedStateRefused": "", "lastError": "connection refused", "types": []}})");
  ASSERT_TRUE(state) << state.error().to_string();
  EXPECT_THAT(state->sync, testing::StartsWith("STALE "));
  EXPECT_THAT(state->findings,
              testing::ElementsAre("is not ready: a b",
                                   "has heard nothing of the control plane since 2020-01-01T00:00:00.5Z "
                                   "and acts on the last good state on disk; connection refused"));
  EXPECT_FALSE(read_state("<html>")) << "somebody else's page";
}

TEST(Tail, CountsLines) {
  EXPECT_EQ(tail_lines("a\nb\nc\n", 2), "b\nc\n");
  EXPECT_EQ(tail_lines("a\nb\nc", 1), "c");
  EXPECT_EQ(tail_lines("a\nb\n", 5), "a\nb\n");
  EXPECT_EQ(tail_lines("a\n", 0), "");
  EXPECT_EQ(tail_lines("", 3), "");
}

TEST(Ports, AreReadAsKubectlReadsThem) {
  EXPECT_EQ(parse_ports("12123:80"), (PortPair{12123, "80"}));
  EXPECT_EQ(parse_ports("80"), (PortPair{80, "80"}));
  EXPECT_EQ(parse_ports(":80"), (PortPair{0, "80"}));
  for (const char* bad : {"", ":", "80:", "65536", "8080:-", "http:80", "1:65536", "-1", "80:0", "1:2:3"})
    EXPECT_FALSE(parse_ports(bad)) << bad;
}

TEST(PortForward, TakesPortsByName) {
  EXPECT_EQ(parse_ports("8080:http"), (PortPair{8080, "http"}));
  EXPECT_EQ(parse_ports("http"), (PortPair{0, "http"}));
  EXPECT_EQ(parse_ports(":http-web"), (PortPair{0, "http-web"}));
}

TEST(Logs, EachLineOfSeveralSourcesNamesItsSource) {
  bool at_start = true;
  EXPECT_EQ(prefix_lines("a\nb", "[x] ", &at_start), "[x] a\n[x] b");
  EXPECT_EQ(prefix_lines("c\n", "[x] ", &at_start), "c\n");
  EXPECT_EQ(prefix_lines("d\n", "[x] ", &at_start), "[x] d\n");
  EXPECT_EQ(prefix_lines("", "[x] ", &at_start), "");
}

TEST(ForeignWords, OfKubectlAndIstioctlGetAPointerToOurs) {
  for (const char* word : {"edit", "analyze", "proxy-status", "pc", "kube-inject", "install", "top"})
    EXPECT_FALSE(advice_for(word).empty()) << word;
  for (const char* word : {"get", "apply", "waypoint", "", "edt"})
    EXPECT_TRUE(advice_for(word).empty()) << word;
}

std::string spelled(const std::vector<std::string>& words) {
  const auto targets = parse_targets(words);
  if (!targets) return "error: " + targets.error().detail;
  std::string out;
  for (const Target& target : *targets) {
    out += std::string(target.kind->singular) + ":";
    for (const std::string& name : target.names) out += " " + name;
    out += ";";
  }
  return out;
}

TEST(Targets, TakeKubectlsSpellings) {
  EXPECT_EQ(spelled({"deploy/web"}), "deployment: web;");
  EXPECT_EQ(spelled({"po", "a", "b"}), "pod: a b;");
  EXPECT_EQ(spelled({"pods"}), "pod:;");
  EXPECT_EQ(spelled({"pods,svc"}), "pod:;service:;");
  EXPECT_EQ(spelled({"pods,svc", "web"}), "pod: web;service: web;");
  EXPECT_EQ(spelled({"deploy/web", "svc/web", "svc/db"}), "deployment: web;service: web db;");
  EXPECT_EQ(spelled({"all"}), "pod:;service:;deployment:;job:;");
}

TEST(Targets, NeverTakeOneKindForAnother) {
  EXPECT_THAT(spelled({"nonsense", "x"}), HasSubstr("doesn't have a resource type \"nonsense\""));
  EXPECT_THAT(spelled({"pods,nonsense"}), HasSubstr("resource type \"nonsense\""));
  EXPECT_THAT(spelled({"deploy/web", "web"}), HasSubstr("\"web\" stands beside KIND/NAME"));
  EXPECT_THAT(spelled({"deploy", "svc/web"}), HasSubstr("\"svc/web\" stands beside a kind"));
  EXPECT_THAT(spelled({"deploy/"}), HasSubstr("no name behind the slash"));
  EXPECT_FALSE(parse_target("pods")) << "one object is meant";
}

TEST(Selector, MatchesLabels) {
  Object pod = Object::make(Kind::kPod, "shop", "p");
  (*pod.mutable_meta().mutable_labels())["app"] = "web";
  for (const char* fits :
       {"", "app=web", "app==web", "app", "!tier", "app!=db", "tier!=web", "app in (db, web)",
        "app notin (db)", "tier notin (web)", "app=web,!tier", "app in (web),app notin (db,cache)"})
    EXPECT_TRUE(selected(pod, parse_selector(fits).value())) << fits;
  for (const char* other : {"app=db", "tier", "!app", "app!=web", "app in (db)", "app notin (web)",
                            "app=web,tier=x", "app=Web"})
    EXPECT_FALSE(selected(pod, parse_selector(other).value())) << other;
}

TEST(Selector, WhatIsNoSelectorMatchesNothing) {
  for (const char* bad : {"=x", "app in web", "app in (web", "app (web)", "in (web)", "a b", "!",
                          ",", "app=web,", "app=a=b"})
    EXPECT_FALSE(parse_selector(bad)) << bad << ": matching something else would be worse";
}

config::Value pods() {
  return config::parse_documents(R"({"kind": "List", "items": [
    {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "web"}},
     "status": {"ready": true, "ips": ["10.0.0.1", "10.0.0.2"],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}},
    {"metadata": {"name": "b"}, "status": {"ready": false, "ips": []}}]})",
                                 "")
      .documents.at(0);
}

TEST(JsonPath, AnswersAsKubectlDoes) {
  const config::Value root = pods();
  for (const auto& [path, answer] : std::initializer_list<std::pair<const char*, const char*>>{
           {"{.items[*].metadata.name}", "a b"},
           {"{.items[0].metadata.name}", "a"},
           {"{.items[-1].metadata.name}", "b"},
           {"{.items[0].metadata.labels.app\\.kubernetes\\.io/name}", "web"},
           {"{.items[0].metadata.labels['app.kubernetes.io/name']}", "web"},
           {"{.items[0].status.ips}", R"(["10.0.0.1","10.0.0.2"])"},
           {"{.items[*].status.ready}", "true false"},
           {"{.items[0].status.conditions[?(@.type==\"Ready\")].status}", "True"},
           {"{.items[0].status.conditions[?(@.type!='Ready')].status}", "False"},
           {"{range .items[*]}{.metadata.name}:{.status.ips[0]}{\"\\n\"}{end}", "a:10.0.0.1\nb:\n"},
           {"{range .items[?(@.metadata.name==\"none\")]}x{end}done", "done"},
           {"{range .items[*]}{range .status.ips[*]}{@} {end}{end}", "10.0.0.1 10.0.0.2 "},
           {"{$.kind}", "List"},
           {"{.items[7].metadata.name}{.nowhere.at.all}", ""},
           {"kind", "List"},
           {"{.kind}{\" }\"}", "List }"},
           {"{..metadata.name}", "a b"},
           {"{.items[0]..name}", "a"},
           {"{.items..status.ready}", "true false"},
           {"{..status.ips[0]}", "10.0.0.1"}}) {
    const auto got = evaluate_jsonpath(path, root);
    ASSERT_TRUE(got) << path << ": " << got.error().detail;
    EXPECT_EQ(*got, answer) << path;
  }
}

TEST(JsonPath, RefusesWhatItDoesNotUnderstand) {
  const config::Value root = pods();
  for (const char* bad : {"{.items[*]", "{..}", "{.items[1:2]}", "{range .items[*]}x", "{end}",
                          "{.items[0}", "{.items[?(@.a>1)].b}", "{items}{\"x"})
    EXPECT_FALSE(evaluate_jsonpath(bad, root)) << bad;
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
