// No field is silent. Every field of every kind is walked by reflection, set by itself in a small
// object that is sound without it, and must be one of: acted on (tests/data/acted_on_fields.tsv
// names the source that reads it), refused by an error that names it, named by a warning with its
// effect, or reported (what programs write and people do not). A field that somebody adds to a
// message fails here until it has its place.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/wrappers.pb.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "userspace/config/analyze.h"
#include "userspace/config/validate.h"

namespace meltemi::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

std::string source_dir() {
  const char* dir = std::getenv("MELTEMI_SOURCE_DIR");
  return dir != nullptr ? dir : ".";
}

std::string read_source_file(const std::string& path) {
  std::ifstream in(source_dir() + "/" + path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

// --- the names of fields -----------------------------------------------------------------------

// "Container.stdin", "net.HTTPRoute.timeout", "sec.Source.principals": message and field,
// kube.proto's without a prefix.
std::string name_of(const FieldDescriptor* field) {
  std::string message = field->containing_type()->full_name();
  for (const auto& [package, prefix] : {std::pair{"meltemi.kube.v1.", ""},
                                        {"istio.networking.v1alpha3.", "net."},
                                        {"istio.security.v1beta1.", "sec."},
                                        {"istio.type.v1beta1.", "type."}}) {
    if (message.starts_with(package)) message = prefix + message.substr(strlen(package));
  }
  return fmt::format("{}.{}", message, field->name());
}

// Field -> the file that reads it.
const std::map<std::string, std::string>& acted_on() {
  static const auto table = [] {
    std::map<std::string, std::string> out;
    std::istringstream in(read_source_file("tests/data/acted_on_fields.tsv"));
    for (std::string line; std::getline(in, line);) {
      const size_t tab = line.find('\t');
      if (line.empty() || line[0] == '#' || tab == std::string::npos) continue;
      EXPECT_TRUE(out.emplace(line.substr(0, tab), line.substr(tab + 1)).second)
          << line << " stands there twice";
    }
    return out;
  }();
  return table;
}

// Written by the API server, the kubelet and controllers. Manifests that were printed by `get` and
// applied again carry them; nobody means anything by them.
bool is_reported(std::string_view path) {
  if (path.starts_with("status")) return true;
  static constexpr std::string_view kMeta[] = {
      "metadata.uid",          "metadata.generation",      "metadata.resourceVersion",
      "metadata.creationTimestamp", "metadata.deletionTimestamp",
      "metadata.deletionGracePeriodSeconds", "metadata.ownerReferences",
      "metadata.managedFields", "metadata.selfLink"};
  return std::any_of(std::begin(kMeta), std::end(kMeta),
                     [&](std::string_view name) { return path.starts_with(name); });
}

// --- objects to set them in --------------------------------------------------------------------

constexpr std::string_view kWorld = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: way}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: catalog, namespace: shop, labels: {app: catalog}}
spec: {containers: [{name: main, command: [serve], ports: [{name: web, containerPort: 8080}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: world, namespace: shop}
spec: {host: catalog, subsets: [{name: v1}]}
)";

// A sound object for the fields below `path`; the longest path that fits is taken.
struct Base {
  Kind kind;
  std::string_view path;
  std::string_view rest;  // what stands beside apiVersion, kind and metadata
};

constexpr std::string_view kAccounts =
    "spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.1]}}]}]}";

const std::vector<Base>& bases() {
  static const auto keep = [](std::string text) -> std::string_view {
    static std::vector<std::unique_ptr<std::string>> texts;
    texts.push_back(std::make_unique<std::string>(std::move(text)));
    return *texts.back();
  };
  static const std::vector<Base> all = [] {
    std::vector<Base> out = {
        {Kind::kNamespace, "", ""},
        {Kind::kNode, "", ""},
        {Kind::kServiceAccount, "", ""},
        {Kind::kConfigMap, "", ""},
        {Kind::kSecret, "", ""},
        {Kind::kGatewayClass, "", ""},
        {Kind::kService, "", "spec: {selector: {app: catalog}, ports: [{name: http, port: 80}]}"},
        {Kind::kGateway, "",
         "spec: {gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, "
         "protocol: HBONE}]}"},
        {Kind::kGateway, "spec.listeners[0].allowedRoutes.namespaces.selector",
         "spec: {gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, "
         "protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: "
         "{matchExpressions: [{key: a, operator: In, values: [b]}]}}}}]}"},
        {Kind::kPeerAuthentication, "", "spec: {selector: {matchLabels: {app: catalog}}}"},
        {Kind::kAuthorizationPolicy, "",
         "spec: {selector: {matchLabels: {app: catalog}}, rules: [{from: [{source: {namespaces: "
         "[a]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, values: "
         "[10.0.0.1]}]}]}"},
        {Kind::kAuthorizationPolicy, "spec.provider",
         "spec: {action: CUSTOM, rules: [{}]}"},
        {Kind::kAuthorizationPolicy, "spec.targetRef",
         "spec: {targetRef: {kind: Service, name: catalog}, rules: [{}]}"},
        {Kind::kAuthorizationPolicy, "spec.targetRefs",
         "spec: {targetRefs: [{kind: Service, name: catalog}], rules: [{}]}"},
        {Kind::kVirtualService, "",
         "spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog}}]}]}"},
        {Kind::kVirtualService, "spec.tcp",
         "spec: {hosts: [catalog], tcp: [{route: [{destination: {host: catalog}}]}]}"},
        {Kind::kVirtualService, "spec.tls",
         "spec: {hosts: [catalog], tls: [{match: [{sniHosts: [catalog]}], route: [{destination: "
         "{host: catalog}}]}]}"},
        {Kind::kVirtualService, "spec.http[0].redirect",
         "spec: {hosts: [catalog], http: [{match: [{uri: {prefix: /}}], redirect: {scheme: "
         "https}}]}"},
        {Kind::kVirtualService, "spec.http[0].directResponse",
         "spec: {hosts: [catalog], http: [{directResponse: {status: 200}}]}"},
        {Kind::kVirtualService, "spec.http[0].delegate", "spec: {hosts: [catalog], http: [{}]}"},
        {Kind::kVirtualService, "spec.http[0].retries",
         "spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog}}], retries: "
         "{attempts: 1}}]}"},
        {Kind::kVirtualService, "spec.http[0].rewrite.uriRegexRewrite",
         "spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog}}], rewrite: "
         "{uriRegexRewrite: {match: a, rewrite: b}}}]}"},
        {Kind::kAuthorizationPolicy, "spec.rules[0].from[0].source.serviceAccounts", kAccounts},
        {Kind::kAuthorizationPolicy, "spec.rules[0].from[0].source.notServiceAccounts", kAccounts},
        {Kind::kGateway, "spec.addresses",
         "spec: {gatewayClassName: meltemi-waypoint, addresses: [{type: Hostname, value: "
         "catalog.shop.svc.cluster.local}], listeners: [{name: mesh, port: 15008, protocol: "
         "HBONE}]}"},
        {Kind::kDestinationRule, "", "spec: {host: catalog, subsets: [{name: v2}]}"},
    };
    // Parts of a traffic policy, wherever it stands.
    for (const auto& [at, open, close] :
         {std::tuple{"spec.trafficPolicy", "trafficPolicy: {", "}, subsets: [{name: v2}]"},
          {"spec.trafficPolicy.portLevelSettings[0]",
           "trafficPolicy: {portLevelSettings: [{port: {number: 80}, ",
           "}]}, subsets: [{name: v2}]"},
          {"spec.subsets[0].trafficPolicy", "subsets: [{name: v2, trafficPolicy: {", "}}]"},
          {"spec.subsets[0].trafficPolicy.portLevelSettings[0]",
           "subsets: [{name: v2, trafficPolicy: {portLevelSettings: [{port: {number: 80}, ",
           "}]}}]"}}) {
      for (const auto& [path, body] :
           {std::pair{"", "loadBalancer: {simple: RANDOM}"},
            {".loadBalancer.simple", "loadBalancer: {}"},
            {".loadBalancer.consistentHash", "loadBalancer: {}"},
            {".loadBalancer.warmup", "loadBalancer: {warmup: {duration: 5s}}"},
            {".loadBalancer.localityLbSetting.distribute",
             "loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 100}}]}}"},
            {".loadBalancer.localityLbSetting.failover",
             "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}"},
            {".connectionPool.http.http2KeepAlive",
             "connectionPool: {http: {http2KeepAlive: {interval: 5s, timeout: 5s}}}"},
            {".outlierDetection.consecutiveLocalOriginFailures",
             "outlierDetection: {splitExternalLocalOriginErrors: true}"},
            {".tls", "tls: {mode: ISTIO_MUTUAL}"},
            {".tls.mode", "loadBalancer: {simple: RANDOM}"}}) {
        out.push_back({Kind::kDestinationRule, keep(fmt::format("{}{}", at, path)),
                       keep(fmt::format("spec: {{host: catalog, {}{}{}}}", open, body, close))});
      }
    }
    for (const auto& [kind, selector, policy] :
         {std::tuple{Kind::kDeployment, "selector: {matchLabels: {app: catalog}}, ", ""},
          {Kind::kReplicaSet, "selector: {matchLabels: {app: catalog}}, ", ""},
          {Kind::kJob, "", "restartPolicy: Never, "},
          {Kind::kPod, "", ""}}) {
      const bool bare = kind == Kind::kPod;
      const std::string at = bare ? "spec" : "spec.template.spec";
      const auto add = [&](std::string_view path, std::string_view more, std::string_view inner) {
        const std::string spec =
            fmt::format("{{{}{}containers: [{{name: main, command: [serve]{}}}]}}", policy, more,
                        inner);
        out.push_back({kind, keep(path.empty() ? "" : fmt::format("{}.{}", at, path)),
                       keep(bare ? fmt::format("spec: {}", spec)
                                 : fmt::format("spec: {{{}template: {{metadata: {{labels: {{app: "
                                               "catalog}}}}, spec: {}}}}}",
                                               selector, spec))});
      };
      const auto in_container = [&](std::string_view list, const std::string& path,
                                    const std::string& with) {
        const bool init = list == "initContainers";
        add(fmt::format("{}[0].{}", list, path),
            init ? fmt::format("initContainers: [{{name: first, command: [serve], {}}}], ", with)
                 : "",
            init ? "" : ", " + with);
      };
      add("", "", "");
      add("containers[0].ports", "", ", ports: [{containerPort: 80}]");
      add("containers[0].env", "", ", env: [{name: A}]");
      add("containers[0].envFrom", "", ", envFrom: [{configMapRef: {name: a}}]");
      add("containers[0].envFrom[0].secretRef", "", ", envFrom: [{}]");
      add("containers[0].volumeMounts", "volumes: [{name: v, emptyDir: {}}], ",
          ", volumeMounts: [{name: v, mountPath: /v}]");
      add("initContainers", "volumes: [{name: v, emptyDir: {}}], initContainers: [{name: first, "
                            "command: [serve], env: [{name: A}], ports: [{containerPort: 80}], "
                            "volumeMounts: [{name: v, mountPath: /v}]}], ",
          "");
      for (const char* list : {"containers", "initContainers"}) {
        for (const char* probe : {"readinessProbe", "livenessProbe", "startupProbe"}) {
          for (const auto& [action, body] : {std::pair{"", "tcpSocket: {port: 80}"},
                                             {".httpGet", "httpGet: {port: 80}"},
                                             {".exec", "exec: {command: [a]}"},
                                             {".grpc", ""}}) {
            in_container(list, fmt::format("{}{}", probe, action),
                         fmt::format("{}: {{{}}}", probe, body));
          }
        }
        for (const auto& [from, body] :
             {std::pair{"fieldRef", "fieldRef: {fieldPath: metadata.name}"},
              {"configMapKeyRef", "configMapKeyRef: {name: a, key: b}"},
              {"secretKeyRef", "secretKeyRef: {name: a, key: b}"},
              {"resourceFieldRef", "secretKeyRef: {name: a, key: b}"}}) {
          in_container(list, fmt::format("env[0].valueFrom.{}", from),
                       fmt::format("env: [{{name: A, valueFrom: {{{}}}}}]", body));
        }
      }
      add("volumes", "volumes: [{name: v, emptyDir: {}}], ", "");
      for (const auto& [source, body] :
           {std::pair{"configMap", "configMap: {name: a}"}, {"secret", "secret: {secretName: a}"},
            {"projected", "projected: {}"}, {"downwardAPI", "downwardAPI: {}"},
            {"downwardAPI.items",
             "downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}"},
            {"projected.sources[0].downwardAPI.items",
             "projected: {sources: [{downwardAPI: {items: [{path: p, fieldRef: {fieldPath: "
             "metadata.name}}]}}]}"}}) {
        add(fmt::format("volumes[0].{}", source),
            fmt::format("volumes: [{{name: v, {}}}], ", body), "");
      }
    }
    return out;
  }();
  return all;
}

// Values that the fields want; others get one by their type. Keyed by the end of the path.
std::string value_for(Kind kind, std::string_view path, const FieldDescriptor* field) {
  if (path.ends_with("spec.restartPolicy")) {
    return kind == Kind::kPod ? "Never" : kind == Kind::kJob ? "OnFailure" : "Always";
  }
  static const std::vector<std::pair<std::string_view, std::string_view>> kValues = {
      {"metadata.namespace", "shop"},
      {"metadata.name", "catalog"},
      {"template.metadata.labels", "{app: catalog, k: v}"},
      {"fieldPath", "metadata.name"},
      {"fieldRef.apiVersion", "v1"},
      {"redirect.scheme", "http"},
      {"scheme", "HTTPS"},
      {"addresses[0].type", "Hostname"},
      {"volumeMounts[0].name", "v"},
      {"mountPath", "/m"},
      {"podIP", "10.0.0.9"},
      {"podIPs[0].ip", "10.0.0.9"},
      {"matchLabels", "{app: catalog}"},
      {"spec.selector", "{app: catalog}"},
      {"ports[0].protocol", "UDP"},
      {"clusterIP", "10.0.0.8"},
      {"clusterIPs", "[10.0.0.8]"},
      {"spec.type", "NodePort"},
      {"sessionAffinity", "ClientIP"},
      {"ipFamilies", "[IPv6]"},
      {"ipFamilyPolicy", "PreferDualStack"},
      {"internalTrafficPolicy", "Local"},
      {"externalTrafficPolicy", "Local"},
      {"trafficDistribution", "PreferClose"},
      {"spec.hosts", "[catalog, catalog.shop.svc.cluster.local]"},
      {"gateways", "[mesh]"},
      {"exportTo", "['.']"},
      {"destination.host", "catalog"},
      {"destination.subset", "v1"},
      {"destination.port.number", "80"},
      {"port.number", "80"},
      {"redirectCode", "308"},
      {"retryOn", "reset"},
      {"directResponse.status", "404"},
      {"spec.host", "catalog"},
      {"subsets[0].labels", "{app: catalog}"},
      {"distribute[0].from", "region"},
      {"distribute[0].to", "{a: 100}"},
      {"ipBlocks", "[10.0.0.0/8]"},
      {"notIpBlocks", "[10.0.0.0/8]"},
      {"remoteIpBlocks", "[10.0.0.0/8]"},
      {"notRemoteIpBlocks", "[10.0.0.0/8]"},
      {"operation.ports", "['81']"},
      {"operation.notPorts", "['81']"},
      {"when[0].key", "destination.ip"},
      {"when[0].values", "[10.0.0.2]"},
      {"when[0].notValues", "[10.0.0.2]"},
      {"targetRef.group", "''"},
      {"targetRef.kind", "Service"},
      {"targetRef.name", "catalog"},
      {"targetRefs[0].group", "core"},
      {"targetRefs[0].kind", "Service"},
      {"targetRefs[0].name", "catalog"},
      {"gatewayClassName", "istio-waypoint"},
      {"listeners[0].port", "15008"},
      {"listeners[0].protocol", "HBONE"},
      {"namespaces.from", "All"},
      {"matchExpressions[0].operator", "In"},
  };
  for (const auto& [end, value] : kValues) {
    if (!path.ends_with(end)) continue;
    if (path.size() == end.size() || path[path.size() - end.size() - 1] == '.') {
      return std::string(value);
    }
  }
  if (field->is_map()) {
    const FieldDescriptor* value = field->message_type()->map_value();
    if (value->type() == FieldDescriptor::TYPE_BYTES) return "{k: dmFsdWU=}";
    return value->cpp_type() == FieldDescriptor::CPPTYPE_UINT32 ? "{k: 100}" : "{k: v}";
  }
  std::string one;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      one = "true";
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      one = field->type() == FieldDescriptor::TYPE_BYTES ? "dmFsdWU=" : "word";
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      one = field->enum_type()->value(1)->name();
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      const Descriptor* type = field->message_type();
      if (type == google::protobuf::Duration::descriptor()) one = "7s";
      else if (type == google::protobuf::BoolValue::descriptor()) one = "true";
      else if (type->name() == "Value") one = "{a: b}";
      else one = "7";  // wrappers of numbers, IntOrString
      break;
    }
    default:
      one = "7";
  }
  return field->is_repeated() ? fmt::format("[{}]", one) : one;
}

// --- the walk ----------------------------------------------------------------------------------

struct Leaf {
  Kind kind;
  std::string path;  // "spec.containers[0].stdin"
  const FieldDescriptor* field;
};

bool is_leaf(const FieldDescriptor* field) {
  if (field->is_map()) {
    return field->message_type()->map_value()->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE;
  }
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return true;
  const Descriptor* type = field->message_type();
  return type->file()->package() == "google.protobuf" ||
         type == kube::IntOrString::descriptor() || type->field_count() == 0;
}

void collect(Kind kind, const Descriptor* type, const std::string& path, std::vector<Leaf>* out) {
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    std::string inner = path.empty() ? field->json_name() : path + "." + field->json_name();
    if (is_leaf(field)) {
      out->push_back({kind, inner, field});
    } else if (field->is_map()) {
      const std::string key = field->message_type()->map_key()->cpp_type() ==
                                      FieldDescriptor::CPPTYPE_UINT32 ? "[80]" : "[k]";
      collect(kind, field->message_type()->map_value()->message_type(), inner + key, out);
    } else {
      collect(kind, field->message_type(), inner + (field->is_repeated() ? "[0]" : ""), out);
    }
  }
}

std::vector<Leaf> leaves() {
  std::vector<Leaf> out;
  for (const KindInfo& info : all_kinds()) {
    collect(info.kind, kube::ObjectMeta::descriptor(), "metadata", &out);
    collect(info.kind, info.body->GetDescriptor(), "", &out);
  }
  return out;
}

Value parse(std::string_view yaml) {
  ParsedDocuments parsed = parse_documents(yaml, "test");
  EXPECT_TRUE(parsed.problems.empty()) << yaml;
  return parsed.documents.empty() ? Value::map() : parsed.documents[0];
}

// Puts `value` at `path`; lists and maps on the way are made.
void put(Value* at, std::string_view path, Value value) {
  const size_t end = path.find_first_of(".[");
  const std::string_view name = path.substr(0, end);
  if (end == std::string_view::npos) {
    at->set(name, std::move(value));
    return;
  }
  std::string_view rest = path.substr(end);
  Value* next = at->find(name);
  if (next == nullptr) {
    next = &at->set(name, rest.starts_with("[0]") ? Value::list() : Value::map());
  }
  if (rest.starts_with("[0]")) {
    if (next->items.empty()) next->items.push_back(Value::map());
    next = &next->items[0];
    rest.remove_prefix(3);
  } else if (rest.starts_with("[")) {
    const std::string_view key = rest.substr(1, rest.find(']') - 1);
    rest.remove_prefix(rest.find(']') + 1);
    if (next->find(key) == nullptr) next->set(key, Value::map());
    next = next->find(key);
  }
  put(next, rest.substr(1), std::move(value));
}

// Whether `inner` is `outer` or a part of it.
bool within(std::string_view outer, std::string_view inner) {
  return outer.empty() ||
         (inner.starts_with(outer) && (inner.size() == outer.size() || inner[outer.size()] == '.' ||
                                       inner[outer.size()] == '['));
}

Value base_for(const Leaf& leaf) {
  const Base* best = nullptr;
  for (const Base& base : bases()) {
    if (base.kind != leaf.kind || !within(base.path, leaf.path)) continue;
    if (best == nullptr || base.path.size() > best->path.size()) best = &base;
  }
  const KindInfo& info = kind_info(leaf.kind);
  return parse(fmt::format("apiVersion: {}\nkind: {}\nmetadata: {{name: catalog{}}}\n{}\n",
                           info.api_version(), info.name,
                           info.namespaced ? ", namespace: shop" : "",
                           best == nullptr ? "" : best->rest));
}

// Everything that is said about an object on its way into the mesh.
Problems said_about(const Value& document) {
  ObjectStore store;
  ReadResult world = read_and_validate(kWorld, "world.yaml");
  for (Object& object : world.objects) store.upsert(std::move(object));
  ReadResult read = read_and_validate(to_json(document), "f.yaml");
  Problems out = std::move(read.problems);
  for (Object& object : read.objects) {
    const ObjectKey key = object.key();
    store.upsert(std::move(object));
    for (Problem& problem : analyze_object(store, key)) out.push_back(std::move(problem));
  }
  return out;
}

// Whether a finding is about this field: it names it, or what it is a part of, or a part of it.
bool is_about(const Problem& problem, const std::string& path) {
  if (problem.message.find(path + " (") != std::string::npos) return true;
  if (problem.code == kCodeIgnoredField && problem.message.starts_with("accepted without effect")) {
    // One finding for several fields: the message lists them.
    std::string_view rest = path;
    for (size_t end; (end = rest.find_last_of(".[")) != std::string_view::npos;) {
      rest = rest.substr(0, end);
      if (problem.message.find(fmt::format("{} (", rest)) != std::string::npos) return true;
    }
    return false;
  }
  if (problem.field == "spec" || problem.field.empty()) return false;
  return within(problem.field, path) || within(path, problem.field);
}

// Refused for what it is, not for a value that this test got wrong.
bool refuses(const Problem& problem) {
  static const std::set<std::string_view> kInvalidHere = {
      "metadata.namespace",           // of a cluster's kind
      "spec.targetRef.namespace", "spec.targetRefs[0].namespace",
  };
  return problem.severity == Severity::kError &&
         (problem.code == kCodeUnsupported || problem.code == kCodeRefusedField ||
          kInvalidHere.contains(problem.field));
}

std::string shown(const Problems& problems) {
  std::string out;
  for (const Problem& problem : problems) out += "\n  " + problem.to_string();
  return out;
}

TEST(Fields, EveryOneIsActedOnOrRefusedOrNamed) {
  std::set<std::string> met, quiet;
  std::map<std::string, Problems> baselines;
  for (const Leaf& leaf : leaves()) {
    const std::string name = name_of(leaf.field);
    met.insert(name);
    Value document = base_for(leaf);
    const std::string bare = to_json(document, true);
    auto [baseline, fresh] = baselines.try_emplace(bare);
    if (fresh) baseline->second = said_about(document);
    put(&document, leaf.path, parse(value_for(leaf.kind, leaf.path, leaf.field)));
    Problems found;
    for (Problem& problem : said_about(document)) {
      const bool old = std::any_of(
          baseline->second.begin(), baseline->second.end(), [&](const Problem& p) {
            return p.field == problem.field && p.message == problem.message;
          });
      if (!old) found.push_back(std::move(problem));
    }
    const std::string what =
        fmt::format("{} {} ({})", kind_info(leaf.kind).name, leaf.path, name);
    bool refused = false, named = false, invalid = false;
    for (const Problem& problem : baseline->second) {
      if (!is_about(problem, leaf.path)) continue;
      refused |= refuses(problem);
      // What stands around it was named already, and the field with it.
      named |= problem.field.size() < leaf.path.size() &&
               (problem.code == kCodeUnsupported || problem.code == kCodeIgnoredField);
    }
    for (const Problem& problem : found) {
      if (!is_about(problem, leaf.path)) {
        if (problem.severity == Severity::kError) invalid = true;
        continue;
      }
      if (refuses(problem)) refused = true;
      else if (problem.severity == Severity::kError) invalid = true;
      else named = true;
    }
    if (is_reported(leaf.path)) {
      EXPECT_FALSE(refused || invalid)
          << what << " cannot be printed and applied again" << shown(found);
      continue;
    }
    const bool acted = acted_on().contains(name);
    EXPECT_FALSE(invalid && !refused) << what << ": give value_for() a sound value" << shown(found);
    if (acted) {
      if (!refused && !named) quiet.insert(name);
    } else {
      EXPECT_TRUE(refused || named || invalid)
          << what << " is silent: act on it (and say where in tests/data/acted_on_fields.tsv), "
          << "refuse it, or name it" << shown(found);
    }
  }
  for (const auto& [name, file] : acted_on()) {
    EXPECT_TRUE(met.contains(name)) << name << " of tests/data/acted_on_fields.tsv is no field";
    EXPECT_TRUE(quiet.contains(name))
        << name << " is acted on, and refused or named wherever it stands";
  }
}

// The table is true: the file that is named reads the field.
TEST(Fields, WhatIsActedOnIsReadWhereTheTableSays) {
  std::map<std::string, std::string> texts;
  for (const auto& [name, file] : acted_on()) {
    auto [text, fresh] = texts.try_emplace(file);
    if (fresh) text->second = read_source_file(file);
    std::string accessor = name.substr(name.rfind('.') + 1);
    for (std::string_view keyword : {"template", "namespace", "operator"}) {
      if (accessor == keyword) accessor += "_";
    }
    const std::regex reads("\\b(has_)?" + accessor + "(_size|_case)?\\(\\)");
    EXPECT_TRUE(std::regex_search(text->second, reads))
        << file << " does not read " << name << " (" << accessor << "())";
  }
}

}  // namespace
}  // namespace meltemi::config
