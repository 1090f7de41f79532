#include "userspace/sandbox/pod_environment.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/unit/sandbox/objects.h"

namespace meltemi::sandbox {
namespace {

namespace kube = config::kube;
using testing::Contains;
using testing::HasSubstr;

TEST(Expand, ReplacesWhatIsKnownAndKeepsTheRest) {
  const std::map<std::string, std::string> env{{"A", "1"}, {"B", "two"}};
  EXPECT_EQ(expand("$(A)-$(B)", env), "1-two");
  EXPECT_EQ(expand("$(C) $A $", env), "$(C) $A $");
  EXPECT_EQ(expand("$$(A)", env), "$(A)");
  EXPECT_EQ(expand("$(A", env), "$(A");
}

class Environment : public testing::Test {
 protected:
  Environment()
      : store_(test::store_of(R"(
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {LEVEL: debug, url: http://x}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: shop}
stringData: {token: s3cret}
)")),
        layout_("test") {
    context_.store = &store_;
    context_.layout = &layout_;
    context_.bin_dir = "/opt/bin";
    context_.pod_ips = {*IpAddress::parse("10.244.1.2"), *IpAddress::parse("fd54::2")};
    context_.host_ips = {*IpAddress::parse("10.254.0.11")};
  }
  Result<std::vector<std::string>> environment(std::string_view env) {
    pod_ = test::object_of(fmt::format(R"(
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: shop, uid: u-1, labels: {{app: web}}}}
spec:
  nodeName: node1
  serviceAccountName: sa
  containers:
  - name: c
    image: i
    command: [x]
{})",
                                       env));
    context_.pod = &pod_;
    return container_environment(context_, pod_.as<kube::Pod>().spec().containers(0));
  }
  config::ObjectStore store_;
  Layout layout_;
  config::Object pod_;
  PodContext context_;
};

TEST_F(Environment, TakesValuesFieldsConfigMapsAndSecrets) {
  const auto env = environment(R"yaml(
    envFrom: [{configMapRef: {name: settings}, prefix: S_}]
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: BOTH, value: "$(IP)/$(APP)"}
    - {name: MAYBE, valueFrom: {configMapKeyRef: {name: absent, key: x, optional: true}}}
)yaml");
  ASSERT_TRUE(env) << env.error().to_string();
  EXPECT_THAT(*env, Contains("IP=10.244.1.2"));
  EXPECT_THAT(*env, Contains("APP=web"));
  EXPECT_THAT(*env, Contains("TOKEN=s3cret"));
  EXPECT_THAT(*env, Contains("BOTH=10.244.1.2/web"));
  EXPECT_THAT(*env, Contains("S_LEVEL=debug"));
  EXPECT_THAT(*env, Contains("HOSTNAME=p"));
  EXPECT_THAT(*env, Contains(testing::StartsWith("PATH=/opt/bin:")));
  for (const std::string& entry : *env) EXPECT_FALSE(entry.starts_with("MAYBE=")) << entry;
}

TEST_F(Environment, NamesWhatIsMissing) {
  const auto no_map =
      environment("    env: [{name: A, valueFrom: {configMapKeyRef: {name: absent, key: x}}}]\n");
  ASSERT_FALSE(no_map);
  EXPECT_THAT(no_map.error().detail, HasSubstr("ConfigMap shop/absent not found"));
  const auto no_key =
      environment("    env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: nope}}}]\n");
  ASSERT_FALSE(no_key);
  EXPECT_THAT(no_key.error().detail, HasSubstr("key \"nope\" of Secret shop/keys"));
  EXPECT_EQ(no_key.error().detail.find("s3cret"), std::string::npos) << "a secret in a message";
  const auto no_field =
      environment("    env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.nope}}}]\n");
  ASSERT_FALSE(no_field);
  EXPECT_THAT(no_field.error().detail, HasSubstr("status.nope"));
}

TEST(ResolvConf, SearchesTheNamespaceFirst) {
  EXPECT_THAT(resolv_conf("shop"),
              HasSubstr("search shop.svc.cluster.local svc.cluster.local cluster.local\n"));
  EXPECT_THAT(resolv_conf("shop"), HasSubstr("nameserver 10.96.0.10\n"));
}

TEST_F(Environment, FilesOfADownwardVolumeHaveItsDefaultMode) {
  pod_ = test::object_of(R"(
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, uid: u-1}
spec:
  automountServiceAccountToken: false
  containers: [{name: c, command: [x]}]
  volumes:
  - name: about
    downwardAPI: {defaultMode: 256, items: [{path: who, fieldRef: {fieldPath: metadata.name}}]}
)");
  context_.pod = &pod_;
  context_.volume_dir = testing::TempDir() + "downward-mode";
  ASSERT_TRUE(write_volumes(context_));
  struct stat file{};
  ASSERT_EQ(::stat((context_.volume_dir + "/about/who").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0400u);
}

}  // namespace
}  // namespace meltemi::sandbox
