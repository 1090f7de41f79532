// Every validation message, by the smallest object that earns it, and objects that must pass
// unscathed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "userspace/config/validate.h"

namespace meltemi::config {
namespace {

using testing::HasSubstr;

struct Case {
  const char* spec;
  const char* want;  // part of some problem's text; "" means: no problem at all
};

std::string problems_of(std::string_view head, std::string_view spec) {
  ReadOptions options;
  options.warn_ignored = false;
  std::string text = std::string(head) + "spec: " + std::string(spec) + "\n";
  ReadResult read = read_and_validate(text, "f.yaml", options);
  std::string out;
  for (const Problem& problem : read.problems) {
    EXPECT_FALSE(problem.object.empty()) << problem.to_string();
    EXPECT_FALSE(problem.code.empty());
    EXPECT_EQ(problem.file, "f.yaml");
    EXPECT_GT(problem.line, 0) << problem.to_string();
    if (problem.severity == Severity::kError)
      EXPECT_FALSE(problem.fix.empty()) << problem.to_string();
    out += problem.to_string() + "\n";
  }
  EXPECT_EQ(has_errors(read.problems), read.objects.empty())
      << "an object with errors never gets through";
  return out;
}

void check(std::string_view head, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    std::string found = problems_of(head, c.spec);
    if (*c.want == '\0') {
      EXPECT_EQ(found, "") << c.spec;
    } else {
      EXPECT_THAT(found, HasSubstr(c.want)) << c.spec;
    }
  }
}

constexpr char kVs[] =
    "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: "
    "shop}\n";
constexpr char kDr[] =
    "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: "
    "shop}\n";
constexpr char kAp[] =
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: "
    "shop}\n";
constexpr char kPa[] =
    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: "
    "shop}\n";

TEST(ValidateVirtualService, Hosts) {
  check(kVs,
        {
            {"{hosts: [a], http: [{route: [{destination: {host: a}}]}]}", ""},
            {"{hosts: [a, b.example.com, \"*.wild.example\", 10.0.0.1], http: [{route: "
             "[{destination: {host: a}}]}]}",
             ""},
            {"{http: [{route: [{destination: {host: a}}]}]}",
             "virtual service must have at least one host"},
            {"{gateways: [mesh], http: [{route: [{destination: {host: a}}]}]}",
             "delegate virtual service must have no gateways specified"},
            {"{tcp: [{route: [{destination: {host: a}}]}]}",
             "delegate virtual service must have no tcp route specified"},
            {"{tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]}",
             "delegate virtual service must have no tls route specified"},
            {"{hosts: [\"*\"], http: [{route: [{destination: {host: a}}]}]}",
             "wildcard host * is not allowed for virtual services bound to the mesh gateway"},
            {"{hosts: [a, a], http: [{route: [{destination: {host: a}}]}]}",
             "duplicate hosts in virtual service: a & a"},
            {"{hosts: [\"*.b.c\", x.b.c], http: [{route: [{destination: {host: a}}]}]}",
             "duplicate hosts in virtual service: *.b.c & x.b.c"},
            {"{hosts: [\"a_b\"], http: [{route: [{destination: {host: a}}]}]}",
             "\"a_b\" is not a host name"},
            {"{hosts: [a]}", "http, tcp or tls must be provided in virtual service"},
            {"{hosts: [a], gateways: [\"/x\"], http: [{route: [{destination: {host: a}}]}]}",
             "config namespace and gateway name cannot be empty"},
            {"{hosts: [a], gateways: [\"A_/x\"], http: [{route: [{destination: {host: a}}]}]}",
             "is not a gateway's name"},
            {"{hosts: [a], gateways: [mesh, ns/gw], http: [{route: [{destination: {host: a}}]}]}",
             "binding to an ingress gateway has no effect yet"},
            {"{hosts: [a], exportTo: [\".\", \".\"], http: [{route: [{destination: {host: a}}]}]}",
             "duplicate entries in exportTo for entry ."},
            {"{hosts: [a], exportTo: [\".\", shop], http: [{route: [{destination: {host: a}}]}]}",
             "duplicate entries in exportTo: . and current namespace shop"},
            {"{hosts: [a], exportTo: [\"*\", b], http: [{route: [{destination: {host: a}}]}]}",
             "cannot have both public (*) and non-public exportTo values for a resource"},
            {"{hosts: [a], exportTo: [\"B_\"], http: [{route: [{destination: {host: a}}]}]}",
             "\"B_\" is no namespace"},
        });
}

std::string http(std::string_view route) {
  return "{hosts: [a], http: [{" + std::string(route) + "}]}";
}
void check_http(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    std::string spec = http(c.spec);
    check(kVs, {{spec.c_str(), c.want}});
  }
}

TEST(ValidateVirtualService, RouteConflicts) {
  check_http({
      {"route: [{destination: {host: a}}], redirect: {uri: /x}",
       "HTTP route cannot contain both route and redirect"},
      {"fault: {abort: {httpStatus: 500}}, redirect: {uri: /x}",
       "HTTP route cannot contain both fault and redirect"},
      {"rewrite: {uri: /y}, redirect: {uri: /x}",
       "HTTP route rule cannot contain both rewrite and redirect"},
      {"directResponse: {status: 200}, redirect: {uri: /x}",
       "HTTP route rule cannot contain both direct_response and redirect"},
      {"directResponse: {status: 200}, route: [{destination: {host: a}}]",
       "HTTP route cannot contain both route and direct_response"},
      {"directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}",
       "HTTP route cannot contain both fault and direct_response"},
      {"directResponse: {status: 200}, rewrite: {uri: /y}",
       "HTTP route rule cannot contain both rewrite and direct_response"},
      {"match: [{uri: {prefix: /}}]", "HTTP route, redirect or direct_response is required"},
      {"route: [{destination: {host: a}}], mirror: {host: b}, mirrors: [{destination: {host: b}}]",
       "HTTP route cannot contain both mirror and mirrors"},
      {"name: r, delegate: {name: d}, redirect: {uri: /x}",
       "root HTTP route r must not specify redirect"},
      {"name: r, delegate: {name: d}, route: [{destination: {host: a}}]",
       "root HTTP route r must not specify route"},
      {"delegate: {name: d}", "delegation to another VirtualService is not supported yet"},
  });
}

TEST(ValidateVirtualService, Matches) {
  const char* route = ", route: [{destination: {host: a}}]";
  for (const Case& c : std::initializer_list<Case>{
           {"uri: {prefix: \"\"}", "\"uri\": prefix string match should not be empty"},
           {"uri: {regex: \"\"}", "\"uri\": regex string match should not be empty"},
           {"uri: {regex: \"(\"}", "Istio uses RE2 style regex-based match"},
           {"method: {prefix: \"\"}", "\"method\": prefix string match should not be empty"},
           {"scheme: {prefix: \"\"}", "\"scheme\": prefix"},
           {"authority: {regex: \"[\"}", "\"authority\": "},
           {"headers: {\"\": {exact: a}}", "header name cannot be empty"},
           {"headers: {\"a b\": {exact: a}}", "header name a b is not a valid header name"},
           {"headers: {\"@request.auth.claims.sub\": {exact: a}}",
            "matching on JWT claims is not supported yet"},
           {"withoutHeaders: {\"a b\": {exact: a}}", "is not a valid header name"},
           {"queryParams: {\"\": {exact: a}}", "query parameter name cannot be empty"},
           {"port: 70000", "port number 70000 must be in the range 1..65535"},
           {"sourceNamespace: \"A_\"", "sourceNamespace match A_ is invalid"},
           {"sourceLabels: {app: x}", "cannot match on the caller's labels"},
           {"sourceLabels: {\"a b\": x}", "is not a legal label key"},
           {"headers: {x-a: {}}, uri: {regex: \"/a.*\"}, method: {exact: GET}", ""}}) {
    std::string spec = "match: [{" + std::string(c.spec) + "}]" + route;
    check_http({{spec.c_str(), c.want}});
  }
  std::string large = "match: [{uri: {regex: \"" + std::string(1025, 'a') + "\"}}]" + route;
  check_http({{large.c_str(), "regex is too large, max length allowed is 1024"}});
}

TEST(ValidateVirtualService, Destinations) {
  check_http({
      {"route: [{}]", "destination is required"},
      {"route: [{destination: {}}]", "invalid destination host"},
      {"route: [{destination: {host: \"*\"}}]", "invalid destination host *"},
      {"route: [{destination: {host: \"a_b\"}}]", "invalid destination host a_b"},
      {"route: [{destination: {host: a, subset: V1}}]", "subset name is invalid: V1"},
      {"route: [{destination: {host: a, port: {number: 0}}}]",
       "port number 0 must be in the range"},
      {"route: [{destination: {host: a}, weight: -1}]", "weight -1 < 0"},
      {"route: [{destination: {host: a}}, {destination: {host: b}}]",
       "total destination weight = 0"},
      {"route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 5}]", ""},
  });
}

TEST(ValidateVirtualService, Headers) {
  const char* route = ", route: [{destination: {host: a}}]";
  for (const Case& c : std::initializer_list<Case>{
           {"request: {set: {\":path\": x}}", "pseudo header :path cannot be changed"},
           {"request: {add: {\":authority\": x}}", "pseudo header :authority cannot be changed"},
           {"request: {set: {\":authority\": x}}", ""},
           {"response: {set: {\":authority\": x}}", "a response has no :authority"},
           {"request: {remove: [\":method\"]}", "pseudo header :method cannot be removed"},
           {"request: {remove: [\"\"]}", "header name cannot be empty"},
           {"request: {set: {x: \"%START_TIME%\"}}", "header value configuration: format commands"},
           {"request: {set: {x: \"100%%\"}}", ""},
           {"request: {set: {x: \"a\\nb\"}}", "a header value has no line breaks"}}) {
    std::string spec = "headers: {" + std::string(c.spec) + "}" + route;
    check_http({{spec.c_str(), c.want}});
  }
  check_http(
      {{"rewrite: {authority: x}, route: [{destination: {host: a}, headers: {request: {set: "
        "{\":authority\": y}}}}]",
        "authority header cannot be set multiple times: have \"x\", attempting to set \"y\""},
       {"headers: {request: {set: {Host: x}}}, route: [{destination: {host: a}, headers: {request: "
        "{set: {host: y}}}}]",
        "authority header cannot be set multiple times"}});
}

TEST(ValidateVirtualService, TimeoutsAndRetries) {
  const char* route = ", route: [{destination: {host: a}}]";
  for (const Case& c : std::initializer_list<Case>{
           {"timeout: 0s", ""},
           {"timeout: 1.5s", ""},
           {"timeout: 10us", "duration must be greater than 1ms"},
           {"timeout: 1500us", "only durations to ms precision are supported"},
           {"retries: {attempts: -1}", "attempts cannot be negative"},
           {"retries: {attempts: 0}", ""},
           {"retries: {attempts: 0, perTryTimeout: 1s}",
            "http retry policy configured when attempts are set to 0 (disabled)"},
           {"retries: {attempts: 1, retryOn: \"5xx, 503,reset\"}", ""},
           {"retries: {attempts: 1, retryOn: 5x}",
            "\"5x\" is not a valid retryOn policy. Did you mean `5xx`?"},
           {"retries: {attempts: 1, retryOn: \"999\"}", "\"999\" is not a valid retryOn policy"},
           {"retries: {attempts: 1, perTryTimeout: 1us}",
            "retries.perTryTimeout: duration must be greater than 1ms"},
           {"retries: {attempts: 1, backoff: 1us}",
            "retries.backoff: duration must be greater than 1ms"},
           {"retries: {attempts: 1, retryRemoteLocalities: true}",
            "retryRemoteLocalities has no effect yet"}}) {
    std::string spec = std::string(c.spec) + route;
    check_http({{spec.c_str(), c.want}});
  }
}

TEST(ValidateVirtualService, RedirectRewriteDirectResponse) {
  std::string body =
      "directResponse: {status: 200, body: {string: \"" + std::string((1 << 20) + 1, 'x') + "\"}}";
  std::string large =
      "directResponse: {status: 200, body: {string: \"" + std::string(200 << 10, 'x') + "\"}}";
  check_http({
      {"redirect: {uri: /x, prefixRewrite: /y}, match: [{uri: {prefix: /}}]",
       "redirect may only specify one of uri or prefix_rewrite"},
      {"redirect: {prefixRewrite: /y}, match: [{uri: {exact: /a}}]",
       "redirect prefix_rewrite requires all URI matches to use prefix match type"},
      {"redirect: {prefixRewrite: /y}, match: [{uri: {prefix: /a}}]", ""},
      {"redirect: {}", "redirect must specify URI, authority, scheme, or port"},
      {"redirect: {uri: /x, port: 70000}", "port number 70000 must be in the range"},
      {"redirect: {uri: /x, redirectCode: 200}", "200 is not a valid redirect code, must be 3xx"},
      {"redirect: {uri: /x, redirectCode: 304}", "redirect code 304 is not supported"},
      {"redirect: {uri: /x, redirectCode: 308}", ""},
      {"redirect: {scheme: ftp}", "invalid redirect scheme, must be \"http\" or \"https\""},
      {"directResponse: {status: 100}", "HTTP status 100 is not in range 200-599"},
      {body.c_str(),
       "large direct_responses may impact control plane performance, must be less than 1MB"},
      {large.c_str(), "warning: VirtualService shop/v"},
      {"rewrite: {}, route: [{destination: {host: a}}]",
       "rewrite must specify at least one of URI, UriRegexRewrite, or authority"},
      {"rewrite: {uri: /x, uriRegexRewrite: {match: a, rewrite: b}}, route: [{destination: {host: "
       "a}}]",
       "rewrite may only contain one of URI or UriRegexRewrite"},
      {"rewrite: {uriRegexRewrite: {match: a}}, route: [{destination: {host: a}}]",
       "UriRegexRewrite requires both Rewrite and Match fields to be specified"},
      {"rewrite: {uriRegexRewrite: {match: \"(\", rewrite: b}}, route: [{destination: {host: a}}]",
       "UriRegexRewrite has errors"},
      {"rewrite: {uriRegexRewrite: {match: \"a\", rewrite: \"\\\\2\"}}, route: [{destination: "
       "{host: a}}]",
       "UriRegexRewrite has errors"},
  });
}

TEST(ValidateVirtualService, FaultMirrorCors) {
  const char* route = ", route: [{destination: {host: a}}]";
  for (const Case& c : std::initializer_list<Case>{
           {"fault: {}", "HTTP fault injection must have an abort and/or a delay"},
           {"fault: {abort: {httpStatus: 500}}", "fault injection is not supported yet"},
           {"fault: {abort: {httpStatus: 100}}", "HTTP status 100 is not in range 200-599"},
           {"fault: {abort: {http2Error: X}}", "HTTP/2 abort fault injection not supported yet"},
           {"fault: {abort: {percentage: {value: 1}}}", "abort configured, but error type not set"},
           {"fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}",
            "percentage 101 is neither 0.0, nor in range [0.0001, 100.0]"},
           {"fault: {delay: {exponentialDelay: 1s}}", "exponentialDelay not supported yet"},
           {"fault: {delay: {fixedDelay: 1us}}", "fixedDelay: duration must be greater than 1ms"},
           {"mirror: {host: b}", "mirroring is not supported yet"},
           {"mirrors: [{}]", "destination is required for mirrors"},
           {"mirrors: [{destination: {host: b}, percentage: {value: 101}}]",
            "mirror_percentage must have a max value of 100"},
           {"mirrors: [{destination: {host: b}, percentage: {value: -1}}]",
            "mirror_percentage must have a min value of 0"},
           {"mirror: {host: b}, mirrorPercent: 101", "mirror_percent must have a max value of 100"},
           {"mirror: {host: b}, mirrorPercent: 1",
            "using deprecated setting \"mirrorPercent\", use \"mirrorPercentage\" instead"},
           {"corsPolicy: {allowMethods: [get]}", "\"get\" is not a supported HTTP method"},
           {"corsPolicy: {allowOrigins: [{}]}",
            "'{}' is not a valid match type for CORS allow origins"},
           {"corsPolicy: {maxAge: 1.5s}", "max_age duration is accurate only to seconds precision"},
           {"corsPolicy: {allowMethods: [GET]}", "corsPolicy is not supported yet"}}) {
    std::string spec = std::string(c.spec) + route;
    check_http({{spec.c_str(), c.want}});
  }
}

TEST(ValidateVirtualService, Reachability) {
  check(kVs, {
                 {"{hosts: [a], http: [{name: all, route: [{destination: {host: a}}]}, {name: "
                  "late, match: [{uri: {prefix: /x}}], route: [{destination: {host: a}}]}]}",
                  "virtualService rule late not used (route without matches in previous rule all)"},
                 {"{hosts: [a], http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: "
                  "a}}]}, {redirect: {uri: /y}}]}",
                  "virtualService rule #1 not used"},
                 {"{hosts: [a], http: [{match: [{uri: {prefix: /x}}], redirect: {uri: /y}}, "
                  "{match: [{uri: {prefix: /x}}], redirect: {uri: /z}}]}",
                  "virtualService rule #1 match #0 is not used (duplicate match in rule #0)"},
             });
}

TEST(ValidateVirtualService, TcpAndTls) {
  check(
      kVs,
      {
          {"{hosts: [a], tcp: [{route: [{destination: {host: a}}]}]}", ""},
          {"{hosts: [a], tcp: [{}]}", "TCP route is required"},
          {"{hosts: [a], tcp: [{match: [{port: 70000}], route: [{destination: {host: a}}]}]}",
           "port number 70000"},
          {"{hosts: [a], tcp: [{match: [{destinationSubnets: [x]}], route: [{destination: {host: "
           "a}}]}]}",
           "\"x\" is not an address or prefix"},
          {"{hosts: [a], tcp: [{match: [{destinationSubnets: [10.0.0.0/8]}], route: [{destination: "
           "{host: a}}]}]}",
           "matching on destination subnets is not supported yet"},
          {"{hosts: [a], tcp: [{match: [{sourceLabels: {a: b}}], route: [{destination: {host: "
           "a}}]}]}",
           "cannot match TCP on the caller"},
          {"{hosts: [a], tcp: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}",
           "total destination weight = 0"},
          {"{hosts: [a], tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]}",
           "routing TLS by SNI is not supported yet"},
          {"{hosts: [a], tls: [{route: [{destination: {host: a}}]}]}",
           "TLS route must have at least one match condition"},
          {"{hosts: [a], tls: [{match: [{sniHosts: [a]}]}]}", "TLS route is required"},
          {"{hosts: [a], tls: [{match: [{}], route: [{destination: {host: a}}]}]}",
           "TLS match must have at least one SNI host"},
          {"{hosts: [a.b], tls: [{match: [{sniHosts: [c.d]}], route: [{destination: {host: a}}]}]}",
           "SNI host \"c.d\" is not a compatible subset of any of the virtual service hosts: "
           "[a.b]"},
      });
}

TEST(ValidateDestinationRule, HostAndSubsets) {
  check(
      kDr,
      {
          {"{host: a}", ""},
          {"{host: \"*.b.c\", subsets: [{name: v1, labels: {version: v1}}]}", ""},
          {"{}", "host is required"},
          {"{host: \"a_b\"}", "\"a_b\" is not a host name"},
          {"{host: a, subsets: [{name: V1}]}", "subset name is invalid: V1"},
          {"{host: a, subsets: [{name: v1}, {name: v1}]}", "duplicate subset names: v1"},
          {"{host: a, subsets: [{name: v1, labels: {\"a b\": c}}]}", "is not a legal label key"},
          {"{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [a, b]}",
           "destination rule with workload selector cannot have multiple entries in exportTo"},
          {"{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [a]}",
           "destination rule with workload selector cannot have exportTo beyond current namespace"},
          {"{host: a, workloadSelector: {matchLabels: {a: b}}}", "not used by waypoints"},
      });
}

TEST(ValidateDestinationRule, TrafficPolicy) {
  for (const Case& c : std::initializer_list<Case>{
           {"{}", "traffic policy must have at least one field"},
           {"{loadBalancer: {simple: ROUND_ROBIN}}", ""},
           {"{tunnel: {targetPort: 80}, proxyProtocol: {version: V1}}",
            "tunnel and proxyProtocol must not be set together"},
           {"{tunnel: {targetHost: x}}", "tunnel target port is invalid"},
           {"{tunnel: {targetHost: x, targetPort: 1}}",
            "tunnelling to an external proxy is not supported yet"},
           {"{proxyProtocol: {version: V2}}", "the PROXY protocol is not supported yet"},
           {"{connectionPool: {}}", "connection pool must have at least one field"},
           {"{connectionPool: {tcp: {maxConnections: -1}}}", "-1 must not be negative"},
           {"{connectionPool: {tcp: {connectTimeout: 1us}}}",
            "connectTimeout: duration must be greater than 1ms"},
           {"{connectionPool: {tcp: {maxConnectionDuration: 1s}}}",
            "maxConnectionDuration has no effect yet"},
           {"{connectionPool: {tcp: {tcpKeepalive: {probes: 1}}}}",
            "tcpKeepalive has no effect yet"},
           {"{connectionPool: {http: {maxRetries: -1}}}", "maxRetries: -1 must not be negative"},
           {"{connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}}",
            "use client protocol must not be true when H2UpgradePolicy is UPGRADE"},
           {"{connectionPool: {http: {http2KeepAlive: {timeout: 1s}}}}",
            "http2 keepalive interval is required"},
           {"{connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}",
            "http2 keepalive timeout is required"},
           {"{connectionPool: {http: {http1MaxPendingRequests: 5, http2MaxRequests: 5, "
            "maxRequestsPerConnection: 1}}}",
            ""},
           {"{outlierDetection: {consecutiveLocalOriginFailures: 1}}",
            "outlier detection consecutive local origin failures is specified, but split external "
            "local origin errors is set to false"},
           {"{outlierDetection: {consecutiveErrors: 1}}",
            "outlier detection consecutive errors is deprecated"},
           {"{outlierDetection: {maxEjectionPercent: 101}}",
            "percentage 101 is not in range 0..100"},
           {"{outlierDetection: {interval: 1us}}", "interval: duration must be greater than 1ms"},
           {"{outlierDetection: {consecutive5xxErrors: 5}}", "outlierDetection has no effect yet"},
           {"{loadBalancer: {simple: PASSTHROUGH}}",
            "PASSTHROUGH load balancing is not supported yet"},
           {"{loadBalancer: {consistentHash: {httpCookie: {ttl: 1s}}}}",
            "name required for HttpCookie"},
           {"{loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 1, maglev: "
            "{tableSize: 7}}}}",
            "only one of MinimumRingSize or Maglev/Ringhash can be specified"},
           {"{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}",
            "tableSize must be set for maglev"},
           {"{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 6}}}}",
            "tableSize must be a prime number for maglev"},
           {"{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 5000011}}}}",
            "tableSize must be less than 5000011 for maglev"},
           {"{loadBalancer: {consistentHash: {useSourceIp: true}}}",
            "consistent hashing is not supported yet"},
           {"{loadBalancer: {localityLbSetting: {enabled: true}, zoneAwareLbSetting: {enabled: "
            "true}}}",
            "only one of localityLbSetting and zoneAwareLbSetting can be set"},
           {"{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 100}}], failover: "
            "[{from: a, to: b}]}}}",
            "can not simultaneously specify 'distribute' and 'failover'"},
           {"{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 101}}]}}}",
            "locality weight must be in range [1, 100]"},
           {"{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}}",
            "total locality weight 50 != 100"},
           {"{loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}}",
            "locality lb failover settings must specify different regions"},
           {"{loadBalancer: {localityLbSetting: {failover: [{from: a/z, to: b}]}}}",
            "locality lb failover only specify region"},
           {"{loadBalancer: {localityLbSetting: {failover: [{from: \"a*\", to: b}]}}}",
            "should not contain '*' wildcard"},
           {"{loadBalancer: {warmup: {}}}", "duration is required"},
           {"{loadBalancer: {warmup: {duration: 1s, minimumPercent: 101}}}",
            "minimumPercent value should be less than or equal to 100"},
           {"{loadBalancer: {warmup: {duration: 1s, aggression: 0}}}",
            "aggression should be greater than 0"},
           {"{loadBalancer: {warmup: {duration: 1s}}}", "warm-up has no effect yet"},
           {"{tls: {mode: MUTUAL}}", "client certificate required for mutual tls"},
           {"{tls: {mode: MUTUAL, clientCertificate: x}}", "private key required for mutual tls"},
           {"{tls: {mode: SIMPLE, credentialName: a, caCertificates: b}}",
            "cannot specify client certificates or CA certificate or CA CRL If credentialName is "
            "set"},
           {"{tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: b}}",
            "when InsecureSkipVerify is set true"},
           {"{tls: {mode: SIMPLE}}", "TLS origination is not supported yet"},
           {"{tls: {mode: ISTIO_MUTUAL}}", ""},
           {"{portLevelSettings: [{loadBalancer: {simple: RANDOM}}]}",
            "portTrafficPolicy must have valid port"},
           {"{portLevelSettings: [{port: {number: 80}}]}",
            "port traffic policy must have at least one field"},
           {"{portLevelSettings: [{port: {number: 80}, tls: {}}, {port: {number: 80}, tls: {}}]}",
            "port 80 is listed twice"},
           {"{portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}", ""}}) {
    std::string spec = "{host: a, trafficPolicy: " + std::string(c.spec) + "}";
    check(kDr, {{spec.c_str(), c.want}});
  }
  check(kDr, {{"{host: a, subsets: [{name: v1, trafficPolicy: {}}]}",
               "spec.subsets[0].trafficPolicy: traffic policy must have at least one field"}});
}

TEST(ValidateAuthorizationPolicy, Bindings) {
  check(kAp, {
                 {"{}", ""},
                 {"{selector: {matchLabels: {app: a}}, rules: [{}]}", ""},
                 {"{selector: {matchLabels: {app: a}}, targetRefs: [{kind: Service, group: \"\", "
                  "name: a}]}",
                  "only one of targetRefs or selector can be set"},
                 {"{selector: {}}", "workload selector specified without labels"},
                 {"{selector: {matchLabels: {\"\": a}}}",
                  "empty key is not supported in selector: \"=a\""},
                 {"{selector: {matchLabels: {a: \"*\"}}}",
                  "wildcard is not supported in selector: \"a=*\""},
                 {"{targetRefs: [{kind: Service, group: \"\"}]}", "targetRef name must be set"},
                 {"{targetRefs: [{group: \"\", name: a}]}", "targetRef kind must be set"},
                 {"{targetRefs: [{kind: Service, group: \"\", name: a, namespace: b}]}",
                  "cross namespace referencing is not currently supported"},
                 {"{targetRefs: [{kind: Pod, group: \"\", name: a}]}",
                  "targetRef to kind Pod of group \"\" is not supported"},
                 {"{targetRefs: [{kind: ServiceEntry, group: networking.istio.io, name: a}]}",
                  "a target of kind ServiceEntry is not supported yet"},
                 {"{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: a}}", ""},
             });
  std::string many = "{targetRefs: [";
  for (int i = 0; i < 17; ++i) many += "{kind: Service, group: \"\", name: a},";
  check(kAp, {{(many + "]}").c_str(), "17 targets, at most 16 are allowed"}});
}

TEST(ValidateAuthorizationPolicy, Actions) {
  check(
      kAp,
      {
          {"{action: DENY}",
           "DENY action without `rules` is meaningless as it will never be triggered"},
          {"{action: CUSTOM, provider: {name: x}}", "CUSTOM action without `rules` is meaningless"},
          {"{action: CUSTOM, rules: [{}]}", "`provider.name` must not be empty"},
          {"{action: CUSTOM, provider: {name: x}, rules: [{}]}",
           "action CUSTOM is not supported yet"},
          {"{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {namespaces: [a]}}]}]}",
           "namespaces is currently not supported with CUSTOM action"},
          {"{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: source.principal, values: "
           "[a]}]}]}",
           "source.principal is currently not supported with CUSTOM action"},
          {"{action: ALLOW, provider: {name: x}}",
           "`provider` must not be with non CUSTOM action, found ALLOW"},
          {"{action: AUDIT, rules: [{}]}", "action AUDIT is not supported yet"},
          {"{action: BLOCK}", "unknown value \"BLOCK\""},
      });
  const std::string dry =
      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: "
      "shop, annotations: {istio.io/dry-run: \"";
  check(dry + "maybe\"}}\n", {{"{}", "\"maybe\" is not a boolean"}});
  check(dry + "true\"}}\n",
        {{"{action: AUDIT, rules: [{}]}", "dry-run is only possible with ALLOW and DENY"}});
}

TEST(ValidateAuthorizationPolicy, Rules) {
  for (const Case& c : std::initializer_list<Case>{
           {"from: [{source: {principals: [\"cluster.local/ns/a/sa/b\", \"*\"]}}]", ""},
           {"from: [{}]", "`from.source` must not be nil"},
           {"from: []", "`from` must not be empty, found in rule 0"},
           {"to: []", "`to` must not be empty"},
           {"when: []", "`when` must not be empty"},
           {"from: [{source: {}}]", "`from.source` must not be empty"},
           {"from: [{source: {namespaces: [\"\"]}}]",
            "empty value not allowed, found in spec.rules[0].from[0].source.namespaces"},
           {"from: [{source: {ipBlocks: [x]}}]", "bad IP address (x)"},
           {"from: [{source: {notIpBlocks: [10.0.0.0/33]}}]", "bad CIDR range (10.0.0.0/33)"},
           {"from: [{source: {serviceAccounts: [\"a*\"]}}]", "wildcard not allowed"},
           {"from: [{source: {serviceAccounts: [\"a/b/c\"]}}]",
            "expected format 'serviceAccount' or 'namespace/serviceAccount'"},
           {"from: [{source: {serviceAccounts: [a], principals: [b]}}]",
            "cannot set serviceAccounts with namespaces or principals, found at rule 0"},
           {"from: [{source: {notServiceAccounts: [a], namespaces: [b]}}]",
            "cannot set serviceAccounts with namespaces or principals"},
           {"from: [{source: {trustDomains: [\"a*b\"]}}]", "bad trust domain (\"a*b\")"},
           {"from: [{source: {notTrustDomains: [a/b]}}]", "bad trust domain"},
           {"to: [{}]", "`to.operation` must not be nil"},
           {"to: [{operation: {}}]", "`to.operation` must not be empty"},
           {"to: [{operation: {ports: [\"x\"]}}]", "bad port (x)"},
           {"to: [{operation: {ports: [80]}}]", "Quote it: \"80\""},
           {"to: [{operation: {notPorts: [\"0\"]}}]", "bad port (0)"},
           {"to: [{operation: {paths: [\"/a/{b}\"]}}]", "invalid or unsupported path /a/{b}"},
           {"to: [{operation: {paths: [\"/a/{**}/b\"]}}]", "invalid or unsupported path"},
           {"when: [{values: [a]}]", "`key` must not be empty"},
           {"when: [{key: source.ip}]",
            "at least one of `values` or `notValues` must be set for key source.ip"},
           {"when: [{key: source.ipp, values: [a]}]",
            "unknown attribute: source.ipp. Did you mean `source.ip`?"},
           {"when: [{key: source.user, values: [a]}]",
            "deprecated attribute source.user: only supported in v1alpha1"},
           {"when: [{key: source.ip, values: [a]}]", "bad IP address (a)"},
           {"when: [{key: destination.port, notValues: [a]}]", "bad port (a)"},
           {"when: [{key: source.serviceAccount, values: [\"a*\"]}]", "wildcard not allowed"},
           {"when: [{key: source.trustDomain, values: [a/b]}]", "bad trust domain"},
           {"when: [{key: connection.sni, values: [\"\"]}]", "empty value not allowed"}}) {
    std::string spec = "{rules: [{" + std::string(c.spec) + "}]}";
    check(kAp, {{spec.c_str(), c.want}});
  }
  std::string accounts = "{rules: [{from: [{source: {serviceAccounts: [";
  for (int i = 0; i < 17; ++i) accounts += "a" + std::to_string(i) + ",";
  check(kAp, {{(accounts + "]}}]}]}").c_str(), "17 service accounts, at most 16 are allowed"}});
  std::string rules = "{rules: [";
  for (int i = 0; i < 513; ++i) rules += "{},";
  check(kAp, {{(rules + "]}").c_str(), "513 rules, at most 512 are allowed"}});
}

TEST(ValidateAuthorizationPolicy, HttpAttributesAreSaidToFailClosed) {
  check(kAp,
        {
            {"{selector: {matchLabels: {a: b}}, rules: [{to: [{operation: {methods: [GET]}}]}]}",
             "rules[0]: to[0].operation.methods: ztunnel sees connections, not requests; the rule "
             "allows nothing. Put a waypoint in front"},
            {"{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
             "a rule of nothing else denies every connection"},
            {"{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
             "will deny all traffic to TCP ports under its scope"},
            {"{targetRefs: [{kind: Service, group: \"\", name: a}], rules: [{when: [{key: "
             "\"request.headers[x]\", values: [y]}]}]}",
             "when[0] (request.headers[x]): HTTP attributes are not evaluated yet; the rule allows "
             "nothing"},
            {"{targetRefs: [{kind: Service, group: \"\", name: a}], action: DENY, rules: [{from: "
             "[{source: {requestPrincipals: [\"*\"]}}]}]}",
             "the rule denies whatever its other attributes match"},
        });
}

constexpr char kSvc[] = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\n";

TEST(ValidateService, WhatHasNoEffectIsNamedOnceWithIt) {
  const auto with = [](const char* field) {
    static std::string spec;
    spec = std::string("{") + field + ", ports: [{port: 80}]}";
    return spec.c_str();
  };
  for (const auto& [field, want] : std::vector<std::pair<const char*, const char*>>{
           {"type: LoadBalancer", "spec.type: has no effect: the Service is reached from inside"},
           {"type: NodePort", "spec.type: has no effect"},
           {"externalIPs: [10.99.99.99]", "spec.externalIPs: has no effect"},
           {"loadBalancerIP: 10.9.9.9", "spec.loadBalancerIP: has no effect"},
           {"loadBalancerSourceRanges: [10.0.0.0/8]", "write an AuthorizationPolicy with ipBlocks"},
           {"externalTrafficPolicy: Local", "spec.externalTrafficPolicy: has no effect"},
           {"sessionAffinity: ClientIP",
            "spec.sessionAffinity: has an effect behind a waypoint only: without one each connection "
            "may reach another pod"},
           {"sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            "spec.sessionAffinityConfig: has no effect: sessionAffinity is not ClientIP"},
           {"sessionAffinity: ClientIp", "One of: None, ClientIP"},
           {"internalTrafficPolicy: local", "One of: Cluster, Local"},
           {"trafficDistribution: Near", "One of: PreferClose, PreferSameZone, PreferSameNode"},
           {"ipFamilies: [ipv4]", "Write IPv4 or IPv6"},
           {"internalTrafficPolicy: Local, type: ClusterIP, publishNotReadyAddresses: true", ""},
       }) {
    check(kSvc, {{with(field), want}});
  }
}

TEST(ValidateService, AffinityOfClientsIsKeptBehindAWaypoint) {
  constexpr char kBound[] =
      "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, labels: "
      "{istio.io/use-waypoint: w}}\n";
  const auto with = [](const char* config) {
    static std::string spec;
    spec = std::string("{sessionAffinity: ClientIP, sessionAffinityConfig: ") + config +
           ", ports: [{port: 80}]}";
    return spec.c_str();
  };
  check(kBound, {{"{sessionAffinity: ClientIP, ports: [{port: 80}]}", ""}});
  for (const auto& [config, want] : std::vector<std::pair<const char*, const char*>>{
           {"{}", ""},
           {"{clientIP: {}}", ""},
           {"{clientIP: {timeoutSeconds: 60}}", "timeoutSeconds: is the least"},
           {"{clientIP: {timeoutSeconds: 0}}", "from 1 to 86400"},
           {"{clientIP: {timeoutSeconds: 86401}}", "from 1 to 86400"},
           {"{clientIP: {timeoutSeconds: 1.5}}", "from 1 to 86400"},
           {"{clientIP: {timeoutSeconds: soon}}", "from 1 to 86400"},
           {"{clientIP: {timeout: 60}}", "spec.sessionAffinityConfig.clientIP: unknown field"},
           {"{cookie: {}}", "spec.sessionAffinityConfig: unknown field"},
           {"[60]", "spec.sessionAffinityConfig: not an object"},
       }) {
    check(kBound, {{with(config), want}});
  }
}

TEST(ValidateLabels, AValueThatTheMeshDoesNotKnowIsNamed) {
  const auto with = [](std::string_view labels) {
    return problems_of("apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {" +
                           std::string(labels) + "}}\n",
                       "{}");
  };
  EXPECT_EQ(with("istio.io/dataplane-mode: ambient"), "");
  EXPECT_EQ(with("istio.io/dataplane-mode: none"), "");
  EXPECT_THAT(with("istio.io/dataplane-mode: ambinet"),
              HasSubstr("\"ambinet\" means nothing here, as if the label were not there. Did you "
                        "mean `ambient`?"));
  EXPECT_THAT(with("istio.io/use-waypoint: A_B"), HasSubstr("is not a legal name"));
}

TEST(ValidateLabels, AKeyOrValueThatNobodyReadsIsNamed) {
  struct Row {
    const char* kind;
    const char* meta;
    const char* want;  // "" for nothing
  };
  for (const auto& [kind, meta, want] : std::vector<Row>{
           {"Namespace", "annotations: {meltemi.io/egress-guard: disabled}", ""},
           {"Namespace", "annotations: {meltemi.io/egress-guard: \"off\"}",
            "warning: Namespace n (f.yaml:3): metadata.annotations[meltemi.io/egress-guard]: "
            "\"off\" means nothing here, as if the annotation were not there. Write disabled or enabled. "
            "[MLT0005]"},
           {"Service", "annotations: {meltemi.io/egress-guard: disabled}",
            "has no effect here: it is read as annotation of a Namespace. Move it there"},
           {"Namespace", "labels: {meltemi.io/egress-guard: disabled}",
            "annotation of a Namespace"},
           {"Namespace", "labels: {istio-injection: enable}", "Did you mean `enabled`?"},
           {"Namespace", "labels: {istio.io/dataplane-mod: ambient}",
            "has no effect: nothing here reads istio.io/dataplane-mod. Did you mean "
            "`istio.io/dataplane-mode`?"},
           {"Namespace", "labels: {topology.istio.io/network: n1}",
            "nothing here reads topology.istio.io/network"},
           {"Namespace", "annotations: {networking.istio.io/traffic-distribution: Near}",
            "means nothing here"},
           {"Service", "labels: {istio.io/dataplane-mode: ambient}",
            "read as label of a Namespace, label of a Pod, annotation of a Pod"},
           {"Service", "labels: {istio.io/use-waypoint: none, team: a, example.com/b: c}", ""},
       }) {
    const std::string found =
        problems_of(std::string("apiVersion: v1\nkind: ") + kind + "\nmetadata: {name: n, " + meta +
                        "}\n",
                    kind == std::string("Service") ? "{ports: [{port: 80}]}" : "{}");
    if (*want == '\0') {
      EXPECT_EQ(found, "") << meta;
    } else {
      EXPECT_THAT(found, HasSubstr(want)) << meta;
    }
  }
  const auto pod = [](const char* kind, const char* meta, const char* want) {
    const std::string body = "{containers: [{name: c, command: [a]}]}";
    const bool bare = kind == std::string("Pod");
    const std::string head = bare ? std::string("apiVersion: v1\nkind: Pod\nmetadata: {name: p, ") +
                                        meta + "}\n"
                                  : std::string("apiVersion: apps/v1\nkind: Deployment\nmetadata: "
                                                "{name: p, ") + meta + "}\n";
    const std::string found = problems_of(
        head, bare ? body
                   : "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b, "
                     "istio.io/dataplane-mode: ambinet}}, spec: " + body + "}}");
    EXPECT_THAT(found, HasSubstr(want)) << meta;
  };
  pod("Pod", "annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: \"80, http\"}",
      "\"http\" is not a port, and is left out of the list");
  pod("Pod", "annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: \"10.0.0.0/99\"}",
      "\"10.0.0.0/99\" is not an address or prefix");
  pod("Pod", "annotations: {traffic.sidecar.istio.io/includeOutboundPorts: \"80\"}",
      "nothing here");
  pod("Pod", "labels: {networking.istio.io/tunnel: hbone}", "Write http");
  pod("Deployment", "labels: {istio.io/dataplane-mode: ambient}",
      "Move it to spec.template.metadata");
  pod("Deployment", "labels: {a: b}",
      "spec.template.metadata.labels[istio.io/dataplane-mode]: \"ambinet\" means nothing here");
  EXPECT_THAT(problems_of("apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: "
                          "{name: meltemi-waypoint, labels: {istio.io/waypoint-for: services}}\n",
                          "{}"),
              HasSubstr("unknown value \"services\". Did you mean `service`?"));
}

TEST(Validate, AFieldThatNobodyActsOnIsNamedWithWhatHappensInstead) {
  const auto found = [](const char* kind, const char* rest) {
    std::string out;
    const ReadResult read = read_and_validate(
        std::string("apiVersion: v1\nkind: ") + kind +
            "\nmetadata: {name: n, finalizers: [a/b]}\n" + rest + "\n",
        "f.yaml");
    EXPECT_FALSE(has_errors(read.problems));
    for (const Problem& problem : read.problems) out += problem.to_string() + "\n";
    return out;
  };
  EXPECT_THAT(found("ConfigMap", "immutable: true"),
              HasSubstr("warning: ConfigMap default/n (f.yaml:4): immutable: has no effect: the "
                        "object can be changed all the same"));
  EXPECT_THAT(found("Secret", "immutable: true"), HasSubstr("immutable: has no effect"));
  EXPECT_THAT(found("ServiceAccount", "imagePullSecrets: [{name: a}]"),
              HasSubstr("images are not pulled"));
  EXPECT_THAT(found("Namespace", "spec: {finalizers: [kubernetes]}"),
              HasSubstr("spec.finalizers: has no effect"));
  EXPECT_THAT(found("ConfigMap", "data: {}"), HasSubstr("metadata.finalizers: has no effect"));
  EXPECT_THAT(found("Node", "spec: {podCIDR: 10.0.0.0/24, taints: [{key: a, effect: NoSchedule}]}"),
              HasSubstr("warning: Node n (f.yaml:4): spec.taints: has no effect: pods are placed on it"));
}

constexpr char kPodHead[] = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n";

TEST(ValidatePod, QuantitiesAndPrivilegesAreRead) {
  check(kPodHead,
        {
            {"{containers: [{name: c, command: [a], resources: {limits: {memory: 10Mx}}}]}",
             "spec.containers[0].resources.limits.memory: \"10Mx\" is not a quantity"},
            {"{containers: [{name: c, command: [a], resources: {limits: {memory: 1.5Gi, cpu: 100m}, "
             "requests: {cpu: 1, memory: 1e3}}}]}",
             ""},
            {"{containers: [{name: c, command: [a], securityContext: {privileged: true}}]}",
             "spec.containers[0].securityContext.privileged: has no effect"},
        });
}

TEST(Validate, AWrongTypeHidesNoOtherFinding) {
  const std::string found = problems_of(
      kVs,
      "{hosts: [catalog], http: [{timeout: soon, route: [{destination: {host: catalog}}]}, "
      "{retries: {attempts: -1}, route: [{destination: {host: catalog, port: {number: 70000}}}]}]}");
  EXPECT_THAT(found, HasSubstr("spec.http[0].timeout"));
  EXPECT_THAT(found, HasSubstr("attempts cannot be negative"));
  EXPECT_THAT(found, HasSubstr("port number 70000 must be in the range"));
  // What the broken field itself may cause is not told twice.
  const std::string once = problems_of(kDr, "{host: 5, subsets: [{name: UPPER}]}");
  EXPECT_THAT(once, testing::Not(HasSubstr("host is required")));
  EXPECT_THAT(once, HasSubstr("subset name is invalid: UPPER"));
}

TEST(Read, FieldsWithoutEffectAreNamedOnceWhereTheyMatter) {
  const ReadResult read = read_objects(
      std::string(kPodHead) +
          "spec: {subdomain: x, hostAliases: [{ip: 10.0.0.1}], containers: [{name: c, image: i, "
          "command: [a], imagePullPolicy: Always}]}\n",
      "f.yaml");
  ASSERT_EQ(read.problems.size(), 2u);
  EXPECT_EQ(read.problems[0].severity, Severity::kWarning);
  EXPECT_THAT(read.problems[0].message, HasSubstr("spec.hostAliases (/etc/hosts is not written)"));
  EXPECT_EQ(read.problems[1].severity, Severity::kInfo) << "what every manifest has is not told";
}

TEST(ValidatePeerAuthentication, All) {
  check(kPa, {
                 {"{mtls: {mode: STRICT}}", ""},
                 {"{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: DISABLE}}}", ""},
                 {"{portLevelMtls: {80: {mode: DISABLE}}}",
                  "mesh/namespace peer authentication cannot have port level mTLS"},
                 {"{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: DISABLE}}}",
                  "port must be in range 1..65535"},
                 {"{mtls: {mode: STRCT}}", "Did you mean `STRICT`?"},
             });
  check(
      "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: "
      "istio-system}\n",
      {{"{selector: {matchLabels: {a: b}}}", "has no effect in the root namespace"}});
}

TEST(ValidateGateway, Waypoints) {
  const std::string head =
      "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: "
      "shop}\n";
  check(head,
        {
            {"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
             "HBONE}]}",
             ""},
            {"{listeners: []}", "a Gateway needs a class"},
            {"{gatewayClassName: nginx, listeners: [{name: a, port: 80, protocol: HTTP}]}",
             "class nginx is not supported yet"},
            {"{gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15009, protocol: "
             "HBONE}]}",
             "Expected a single listener on port 15008 with protocol \"HBONE\""},
            {"{gatewayClassName: meltemi-waypoint, listeners: []}", "Expected a single listener"},
            {"{gatewayClassName: meltemi-waypoint, listeners: [{name: A, port: 15008, protocol: "
             "HBONE}]}",
             "\"A\" is not a legal name"},
            {"{gatewayClassName: meltemi-waypoint, listeners: [{name: a, port: 15008, protocol: "
             "HBONE}, {name: a, port: 15008, protocol: HBONE}]}",
             "listener name a is used twice"},
            {"{gatewayClassName: meltemi-waypoint, listeners: [{name: a, port: 15008, protocol: "
             "HBONE, allowedRoutes: {namespaces: {from: Some}}}]}",
             "unknown value \"Some\""},
        });
  check(
      "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: none, namespace: "
      "shop, labels: {istio.io/waypoint-for: cats}, annotations: {istio.io/for-service-account: "
      "\"A_\"}}\n",
      {{"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
        "HBONE}]}",
        "`none` is a reserved waypoint name"},
       {"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
        "HBONE}]}",
        "unknown traffic type \"cats\""},
       {"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
        "HBONE}]}",
        "is not a legal service account"}});
}

TEST(ValidateService, All) {
  check("apiVersion: v1\nkind: Service\nmetadata: {name: s}\n",
        {
            {"{selector: {a: b}, ports: [{port: 80, targetPort: http}]}", ""},
            {"{selector: {a: b}, clusterIP: None}", ""},
            {"{selector: {a: b}}", "a Service needs at least one port"},
            {"{type: Clusterip, ports: [{port: 80}]}", "unknown type \"Clusterip\""},
            {"{type: ExternalName, externalName: x}", "type ExternalName is not supported yet"},
            {"{ports: [{port: 0}]}", "port number 0 must be in the range"},
            {"{ports: [{port: 80, protocol: tcp}]}", "unsupported protocol \"tcp\""},
            {"{ports: [{name: a, port: 80}, {name: b, port: 80}]}", "port 80 is listed twice"},
            {"{ports: [{port: 80}, {port: 81}]}", "a Service with several ports needs port names"},
            {"{ports: [{name: A, port: 80}]}", "\"A\" is not a legal port name"},
            {"{ports: [{name: a, port: 80}, {name: a, port: 81}]}", "port name a is used twice"},
            {"{ports: [{port: 80, targetPort: 0}]}", "targetPort: port number 0"},
            {"{ports: [{port: 80}], clusterIP: x}", "\"x\" is not an IP address"},
            {"{ports: [{port: 80}], clusterIPs: [x]}",
             "spec.clusterIPs[0]: \"x\" is not an IP address"},
            {"{ports: [{port: 80}], selector: {\"a b\": c}}", "is not a legal label key"},
            {"{ports: [{port: 80}], selector: {a: \"b c\"}}", "is not a legal label value"},
        });
}

TEST(ValidatePod, All) {
  for (
      const Case& c : std::initializer_list<Case>{
          {"{containers: [{name: c, command: [x]}]}", ""},
          {"{}", "a pod needs at least one container"},
          {"{containers: [{name: C}]}", "\"C\" is not a legal container name"},
          {"{containers: [{name: c}, {name: c}]}", "container name c is used twice"},
          {"{containers: [{name: c, ports: [{containerPort: 0}]}]}", "port number 0"},
          {"{containers: [{name: c, ports: [{containerPort: 1, name: \"1\"}]}]}",
           "\"1\" is not a legal port name"},
          {"{containers: [{name: c, ports: [{containerPort: 1, name: a}, {containerPort: 2, name: "
           "a}]}]}",
           "port name a is used twice"},
          {"{containers: [{name: c, env: [{name: a=b}]}]}",
           "an environment variable needs a name without '='"},
          {"{containers: [{name: c, env: [{name: a, value: b, valueFrom: {fieldRef: {fieldPath: "
           "metadata.name}}}]}]}",
           "either `value` or one source"},
          {"{containers: [{name: c, env: [{name: a, valueFrom: {fieldRef: {fieldPath: "
           "spec.x}}}]}]}",
           "unknown field path \"spec.x\""},
          {"{containers: [{name: c, volumeMounts: [{name: v, mountPath: /x}]}]}",
           "no volume is named \"v\""},
          {"{volumes: [{name: v, emptyDir: {}}], containers: [{name: c, volumeMounts: [{name: v, "
           "mountPath: x}]}]}",
           "a mount path must be absolute"},
          {"{volumes: [{name: v}], containers: [{name: c}]}", "a volume needs exactly one source"},
          {"{volumes: [{name: V, emptyDir: {}}], containers: [{name: c}]}",
           "\"V\" is not a legal volume name"},
          {"{volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}], containers: [{name: c}]}",
           "volume name v is used twice"},
          {"{containers: [{name: c, readinessProbe: {}}]}",
           "a probe needs exactly one of httpGet, tcpSocket, exec. Add one"},
          {"{containers: [{name: c, livenessProbe: {tcpSocket: {port: 1}, exec: {command: [x]}}}]}",
           "Keep one"},
          {"{containers: [{name: c, readinessProbe: {httpGet: {port: web}}}]}",
           "no container port is named \"web\""},
          {"{containers: [{name: c, readinessProbe: {httpGet: {port: 80, scheme: FTP}}}]}",
           "unknown scheme \"FTP\""},
          {"{containers: [{name: c, startupProbe: {exec: {}}}]}", "exec.command is required"},
          {"{containers: [{name: c, readinessProbe: {tcpSocket: {port: 1}, periodSeconds: -1}}]}",
           "periodSeconds: -1 is negative"},
          {"{containers: [{name: c}], restartPolicy: Sometimes}",
           "unknown restart policy \"Sometimes\""},
          {"{containers: [{name: c}], terminationGracePeriodSeconds: -1}",
           "a grace period cannot be negative"},
          {"{containers: [{name: c}], serviceAccountName: A_}", "\"A_\" is not a legal name"}}) {
    check("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n", {c});
  }
  EXPECT_THAT(
      problems_of(
          "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: x, podIPs: [{ip: y}]}\n",
          "{containers: [{name: c}]}"),
      testing::AllOf(HasSubstr("status.podIP: \"x\" is not an IP address"),
                     HasSubstr("status.podIPs[0].ip: \"y\"")));
}

TEST(ValidateControllers, All) {
  const char* pods = "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}";
  auto deployment = [&](std::string_view kind, const std::string& spec) {
    return problems_of(
        "apiVersion: apps/v1\nkind: " + std::string(kind) + "\nmetadata: {name: d}\n", spec);
  };
  for (const char* kind : {"Deployment", "ReplicaSet"}) {
    EXPECT_EQ(deployment(kind, std::string("{selector: {matchLabels: {a: b}}, ") + pods + "}"), "");
    EXPECT_THAT(deployment(kind, std::string("{") + pods + "}"),
                HasSubstr("a selector is required"));
    EXPECT_THAT(deployment(kind, std::string("{selector: {matchLabels: {a: c}}, ") + pods + "}"),
                HasSubstr("the selector does not match the template's labels. Add a: c to "
                          "spec.template.metadata.labels"));
    EXPECT_THAT(deployment(kind, std::string("{replicas: -1, selector: {matchLabels: {a: b}}, ") +
                                     pods + "}"),
                HasSubstr("replicas cannot be negative"));
    EXPECT_THAT(deployment(kind,
                           "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: "
                           "b}}, spec: {restartPolicy: Never, containers: [{name: c}]}}}"),
                HasSubstr("pods always restart"));
    EXPECT_THAT(deployment(kind, std::string("{selector: {matchLabels: {a: b}, matchExpressions: "
                                             "[{key: x, operator: Exists}]}, ") +
                                     pods + "}"),
                HasSubstr("matchExpressions is not supported yet"));
  }
  const char* job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\n";
  check(
      job,
      {
          {"{template: {spec: {restartPolicy: Never, containers: [{name: c}]}}}", ""},
          {"{template: {spec: {containers: [{name: c}]}}}", "a Job's pods must not always restart"},
          {"{backoffLimit: -1, template: {spec: {restartPolicy: Never, containers: [{name: c}]}}}",
           "backoffLimit: -1 is negative"},
          {"{template: {spec: {restartPolicy: Never, containers: [{name: C}]}}}",
           "spec.template.spec.containers[0].name"},
      });
}

TEST(ValidateMetadata, NamesLabelsAnnotations) {
  auto found = [](std::string_view meta) {
    return problems_of(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: " + std::string(meta) + "\n#", "");
  };
  EXPECT_EQ(found("{name: a.b-c, namespace: shop}"), "");
  EXPECT_THAT(found("{name: A}"), HasSubstr("\"A\" is not a legal name"));
  EXPECT_THAT(found("{name: ../x}"), HasSubstr("is not a legal name"));
  EXPECT_THAT(found("{name: a, namespace: a.b}"), HasSubstr("\"a.b\" is not a legal namespace"));
  EXPECT_THAT(found("{name: a, labels: {\"a b\": c}}"),
              HasSubstr("metadata.labels[a b]: \"a b\" is not a legal label key"));
  EXPECT_THAT(found("{name: a, labels: {a: \"-\"}}"), HasSubstr("is not a legal label value"));
  EXPECT_THAT(found("{name: a, annotations: {internal.istio.io/parents: x}}"),
              HasSubstr("annotation found, this may not be set by users"));
  EXPECT_THAT(found("{name: a, annotations: {internal.istio.io/webhook-always-reject: x}}"),
              HasSubstr("asks to be rejected"));
}

}  // namespace
}  // namespace meltemi::config
