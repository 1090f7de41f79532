// Manifests to objects and back: strictness with file, line, path and fix; the envelope; printing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "userspace/config/object.h"
#include "userspace/config/pod_fields.h"

namespace meltemi::config {
namespace {

using testing::HasSubstr;

ReadResult read(std::string_view text) {
  ReadOptions options;
  options.warn_ignored = false;
  return read_objects(text, "web.yaml", options);
}

std::string first_problem(std::string_view text) {
  ReadResult result = read(text);
  return result.problems.empty() ? "no problem" : result.problems[0].to_string();
}

constexpr char kVirtualService[] = R"(apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: catalog
  namespace: shop
spec:
  hosts: [catalog]
  http:
  - match:
    - headers:
        x-dark-launch: {exact: v2}
    route:
    - destination: {host: catalog, subset: version-v2}
    retries: {attempts: 3, retryOn: 5xx, perTryTimeout: 2s}
  - route:
    - destination: {host: catalog, port: {number: 80}}
      weight: 100
    timeout: 1.5s
)";

TEST(Object, ReadsAnIstioKind) {
  ReadResult result = read(kVirtualService);
  ASSERT_TRUE(result.problems.empty()) << result.problems[0].to_string();
  ASSERT_EQ(result.objects.size(), 1u);
  const Object& object = result.objects[0];
  EXPECT_EQ(object.key().to_string(), "VirtualService shop/catalog");
  const auto& spec = object.as<kube::VirtualService>().spec();
  EXPECT_EQ(spec.http(0).match(0).headers().at("x-dark-launch").exact(), "v2");
  EXPECT_EQ(spec.http(0).retries().per_try_timeout().seconds(), 2);
  EXPECT_EQ(spec.http(1).timeout().nanos(), 500'000'000);
  EXPECT_EQ(object.line_of("spec.http[0].route"), 12);
  EXPECT_EQ(object.line_of("spec.http[1].fault.abort"), 15);
}

TEST(Object, PrintsWhatItRead) {
  ReadResult result = read(kVirtualService);
  ASSERT_EQ(result.objects.size(), 1u);
  std::string yaml = objects_to_yaml(result.objects);
  ReadResult again = read(yaml);
  ASSERT_EQ(again.objects.size(), 1u) << yaml;
  EXPECT_TRUE(again.objects[0].same_content(result.objects[0])) << yaml;
  EXPECT_THAT(yaml, HasSubstr("    retries:\n      attempts: 3\n      perTryTimeout: 2s\n"));
  ReadResult from_json = read(objects_to_json(result.objects));
  ASSERT_EQ(from_json.objects.size(), 1u);
  EXPECT_TRUE(from_json.objects[0].same_content(result.objects[0]));
}

TEST(Object, NamesTheUnknownFieldAndTheNearestOne) {
  EXPECT_EQ(first_problem("apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\n"
                          "metadata: {name: a, namespace: shop}\nspec:\n  hosts: [a]\n  http:\n"
                          "  - timout: 1s\n    route: []\n"),
            "error: VirtualService shop/a (web.yaml:7): spec.http[0].timout: unknown field "
            "\"timout\". Did you mean `timeout`? [IST0106]");
  EXPECT_THAT(
      first_problem("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n"
                    "  - {name: c, comand: [sh]}\n"),
      HasSubstr("spec.containers[0].comand: unknown field \"comand\". Did you mean `command`?"));
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: Service\nmetadata: {name: s, lables: {a: b}}\n"),
              HasSubstr("metadata.lables: unknown field \"lables\". Did you mean `labels`?"));
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspecs: {}\n"),
              HasSubstr("specs: unknown field \"specs\". Did you mean `spec`?"));
}

TEST(Object, SaysWhatTypeItWanted) {
  struct Case {
    const char* spec;
    const char* want;
  };
  const std::string head =
      "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: ";
  for (const Case& c : std::initializer_list<Case>{
           {"{hosts: a}",
            "spec.hosts: expected a list, found a string (\"a\"). Put a `- ` in front of it"},
           {"{hosts: [1]}",
            "spec.hosts[0]: expected a string, found a number (1). Quote it: \"1\""},
           {"{hosts: [yes]}", "expected a string, found a boolean (yes). Quote it: \"yes\""},
           {"[]", "spec: expected a map, found a list"},
           {"{http: [null]}", "spec.http[0]: a list entry may not be null"},
           {"{http: [{timeout: 5}]}",
            "expected a duration, found a number (5). Write it like \"10s\""},
           {"{http: [{timeout: soon}]}", "expected a duration, found a string (\"soon\")"},
           {"{http: [{route: [{weight: x}]}]}",
            "spec.http[0].route[0].weight: x is not a whole number"},
           {"{http: [{route: [{weight: 3000000000}]}]}",
            "3000000000 is not a whole number between"},
           {"{http: [{match: [{uri: {exact: a, prefix: b}}]}]}",
            "`exact` and `prefix` cannot both be set"},
           {"{http: [{match: [{ignoreUriCase: 1}]}]}",
            "expected true or false, found a number (1)"},
           {"{http: [{corsPolicy: {unmatchedPreflights: FORWRD}}]}", "Did you mean `FORWARD`?"}}) {
    EXPECT_THAT(first_problem(head + c.spec), HasSubstr(c.want));
  }
}

TEST(Object, KnowsKindsItDoesNotDo) {
  EXPECT_THAT(
      first_problem("apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\n"),
      HasSubstr(
          "Telemetry t (web.yaml:2): kind Telemetry (telemetry.istio.io/v1) is not supported yet"));
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: Pood\nmetadata: {name: t}\n"),
              HasSubstr("unknown kind Pood (v1). Did you mean `Pod`?"));
  EXPECT_THAT(
      first_problem(
          "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: t}\n"),
      HasSubstr("Write one of: networking.istio.io/v1, networking.istio.io/v1beta1, "
                "networking.istio.io/v1alpha3"));
  EXPECT_THAT(first_problem("kind: Pod\n"), HasSubstr("`apiVersion` is missing"));
  EXPECT_THAT(first_problem("just text\n"), HasSubstr("expected an object"));
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: Pod\nmetadata: {}\n"),
              HasSubstr("Add metadata.name"));
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n"),
              HasSubstr("Namespace objects have no namespace"));
}

TEST(Object, RefusesAndNotesPodFields) {
  const std::string head =
      "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers: [{name: c, image: "
      "x}]\n";
  EXPECT_THAT(first_problem(head + "  hostPID: true\n"),
              HasSubstr("spec.hostPID: `hostPID` is not supported here"));
  EXPECT_EQ(first_problem(head + "  hostPID: false\n"), "no problem");
  EXPECT_THAT(first_problem(head + "  volumes: [{name: v, hostPath: {path: /}}]\n"),
              HasSubstr("spec.volumes[0].hostPath"));
  ReadResult result = read_objects(head + "  tolerations: [{operator: Exists}]\n", "p.yaml");
  ASSERT_EQ(result.objects.size(), 1u);
  ASSERT_EQ(result.problems.size(), 1u);
  EXPECT_EQ(result.problems[0].severity, Severity::kInfo);
  EXPECT_THAT(result.problems[0].message, HasSubstr("spec.tolerations (nodes have no taints)"));
  EXPECT_THAT(result.problems[0].message, HasSubstr("spec.containers[0].image"));
  // Kept for printing.
  EXPECT_THAT(objects_to_yaml(result.objects), HasSubstr("  tolerations:\n  - operator: Exists\n"));
}

TEST(Object, TheFieldTableFollowsTheSchema) {
  bool command = false, tolerations = false, host_path = false;
  for (const PodField& field : pod_fields()) {
    if (field.path == "spec.containers[].command[]")
      command = field.effect == FieldEffect::kHonoured;
    if (field.path == "spec.tolerations[]") tolerations = field.effect == FieldEffect::kAccepted;
    if (field.path == "spec.volumes[].hostPath") host_path = field.effect == FieldEffect::kRefused;
    if (field.effect != FieldEffect::kHonoured) EXPECT_FALSE(field.note.empty()) << field.path;
  }
  EXPECT_TRUE(command && tolerations && host_path);
  EXPECT_THAT(pod_fields_markdown(), HasSubstr("| `spec.nodeName` | honoured |  |"));
}

TEST(Object, TakesListsOfOneKind) {
  const ReadResult result = read(
      "apiVersion: v1\nkind: NamespaceList\nitems:\n"
      "- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n");
  ASSERT_EQ(result.objects.size(), 1u);
  EXPECT_EQ(result.objects[0].name(), "a");
  EXPECT_THAT(first_problem("apiVersion: v1\nkind: NamespaceList\nmetadata: {name: x}\n"),
              HasSubstr("unknown kind NamespaceList"));
}

TEST(Object, FlattensLists) {
  ReadResult result = read(
      "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: "
      "a}}\n"
      "- {apiVersion: v1, kind: Secret, metadata: {name: s}, data: {k: aGk=}}\n");
  ASSERT_EQ(result.objects.size(), 2u);
  EXPECT_EQ(result.objects[1].as<kube::Secret>().data().at("k"), "hi");
  EXPECT_EQ(result.objects[1].ns(), "default");
  EXPECT_THAT(objects_to_json(result.objects), HasSubstr("\"k\": \"aGk=\""));
  EXPECT_THAT(
      first_problem("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: '***'}\n"),
      HasSubstr("data[k]: not base64"));
}

TEST(Object, IntOrStringAndPorts) {
  ReadResult result = read(
      "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n"
      "  - {port: 80, targetPort: http}\n  - {port: 81, targetPort: 8081}\n");
  ASSERT_EQ(result.objects.size(), 1u);
  const auto& spec = result.objects[0].as<kube::Service>().spec();
  EXPECT_EQ(spec.ports(0).target_port().text(), "http");
  EXPECT_EQ(spec.ports(1).target_port().number(), 8081);
  std::string yaml = objects_to_yaml(result.objects);
  EXPECT_THAT(yaml, HasSubstr("targetPort: http"));
  EXPECT_THAT(yaml, HasSubstr("targetPort: 8081"));
  EXPECT_THAT(
      first_problem(
          "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: '80'}]}\n"),
      HasSubstr("expected a whole number, found a string (\"80\"). Remove the quotes"));
  EXPECT_THAT(
      first_problem(
          "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: http}]}\n"),
      HasSubstr("found a string (\"http\"). Write a number"));
}

TEST(Object, FindsKindsByCommandLineWords) {
  EXPECT_EQ(find_kind_word("po")->kind, Kind::kPod);
  EXPECT_EQ(find_kind_word("Pods")->kind, Kind::kPod);
  EXPECT_EQ(find_kind_word("vs")->kind, Kind::kVirtualService);
  EXPECT_EQ(find_kind_word("gateways.gateway.networking.k8s.io")->kind, Kind::kGateway);
  EXPECT_EQ(find_kind_word("virtualservices.networking.istio.io")->kind, Kind::kVirtualService);
  EXPECT_EQ(find_kind_word("gateways.networking.istio.io"), nullptr);
  EXPECT_EQ(find_kind_word("no")->kind, Kind::kNode);
  EXPECT_EQ(find_kind_word("events"), nullptr);
}

}  // namespace
}  // namespace meltemi::config
