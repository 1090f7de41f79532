#include "waypoint/http/forward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "waypoint/http/header_ops.h"
#include "waypoint/http/local_reply.h"

namespace meltemi::waypoint {
namespace {

using testing::ElementsAre;

std::vector<std::string> lines(const Fields& fields) {
  std::vector<std::string> out;
  for (const Field f : fields) out.push_back(std::string(f.name) + ": " + std::string(f.value));
  return out;
}

Fields fields(std::initializer_list<std::pair<const char*, const char*>> list) {
  Fields f;
  for (const auto& [name, value] : list) f.add(name, value);
  return f;
}

struct Case {
  explicit Case(Fields f) : in(std::move(f)) {
    head.method = "GET";
    head.fields = &in;
    info.target = "/";
    info.authority = "shop";
    info.client_ip = "10.0.0.9";
  }
  std::vector<std::string> h1() {
    build_h1_request(head, info, out);
    return lines(out);
  }
  std::vector<std::string> h2() {
    build_h2_request(head, info, out);
    return lines(out);
  }
  Fields in, out;
  RequestHead head;
  ForwardInfo info;
};

TEST(ForwardRequest, KeepsCaseAndOrderBetweenHttp1) {
  Case c(fields({{"HOST", "shop"}, {"X-Legacy-HEADER", "1"}, {"accept", "*/*"}, {"X-a", "2"}}));
  EXPECT_THAT(c.h1(), ElementsAre("HOST: shop", "X-Legacy-HEADER: 1", "accept: */*", "X-a: 2",
                                  "x-forwarded-for: 10.0.0.9", "x-forwarded-proto: http"));
}

TEST(ForwardRequest, DropsHopByHopAndNominatedFields) {
  Case c(fields({{"Host", "shop"},
                 {"Connection", "close, X-Secret, keep-alive"},
                 {"X-Secret", "1"},
                 {"Keep-Alive", "5"},
                 {"TE", "gzip"},
                 {"Trailer", "x"},
                 {"Upgrade", "TLS/1.2"},
                 {"Proxy-Connection", "close"}}));
  EXPECT_THAT(c.h1(), ElementsAre("Host: shop", "x-forwarded-for: 10.0.0.9",
                                  "x-forwarded-proto: http"));
}

TEST(ForwardRequest, RemovesIdentityThatAClientClaims) {
  Case c(fields({{"Host", "shop"},
                 {"X-Forwarded-Client-Cert", "URI=spiffe://evil"},
                 {"x-envoy-original-path", "/admin"},
                 {"X-Envoy-Upstream-Rq-Timeout-Ms", "1"},
                 {"x-istio-source", "gateway"},
                 {"X-Forwarded-For", "1.2.3.4"},
                 {"X-Forwarded-For", "5.6.7.8"},
                 {"X-Meltemi-Waypoints", "shop/w"},
                 {"x-meltemi-anything", "1"},
                 {"X-ENVOY-Retry-On", "5xx"},
                 {"x-envoy-internal", "true"}}));
  const auto ours = ElementsAre("Host: shop", "x-forwarded-for: 10.0.0.9",
                                "x-forwarded-proto: http");
  EXPECT_THAT(c.h1(), ours);
  c.info.believe_forwarded = true;
  EXPECT_THAT(c.h1(), ElementsAre("Host: shop", "x-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.9",
                                  "x-forwarded-proto: http"))
      << "no proxy may say who the client is, nor tell us what to do";
}

TEST(ForwardRequest, WhereARequestCameFromIsSaidByProxiesOfTheMeshAlone) {
  Case c(fields({{"Host", "shop"},
                 {"X-Forwarded-For", "1.2.3.4"},
                 {"X-Forwarded-For", "5.6.7.8"},
                 {"X-Forwarded-Proto", "https"},
                 {"X-Forwarded-Host", "bank"},
                 {"X-Forwarded-Port", "443"},
                 {"Forwarded", "for=1.2.3.4;proto=https"}}));
  c.head.scheme = "https";  // an absolute form or :scheme says what the client likes
  const auto ours = ElementsAre("Host: shop", "x-forwarded-for: 10.0.0.9",
                                "x-forwarded-proto: http");
  EXPECT_THAT(c.h1(), ours);
  EXPECT_THAT(c.h2(), testing::Contains("x-forwarded-for: 10.0.0.9"));
  EXPECT_THAT(c.h2(), testing::Not(testing::Contains(testing::HasSubstr("1.2.3.4"))));
  c.info.believe_forwarded = true;
  EXPECT_THAT(c.h1(), ElementsAre("Host: shop", "X-Forwarded-Proto: https",
                                  "X-Forwarded-Host: bank", "X-Forwarded-Port: 443",
                                  "Forwarded: for=1.2.3.4;proto=https",
                                  "x-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.9"));
}

TEST(ForwardRequest, ALongConnectionHeaderHidesNothing) {
  std::string names = "a0";
  for (int i = 1; i < 40; ++i) names += ", a" + std::to_string(i);
  Fields f = fields({{"Host", "shop"}});
  f.add("Connection", names);
  for (int i = 0; i < 40; ++i) f.add("A" + std::to_string(i), "hop");
  Case c(std::move(f));
  EXPECT_THAT(c.h1(), ElementsAre("Host: shop", "x-forwarded-for: 10.0.0.9",
                                  "x-forwarded-proto: http"));
}

TEST(ForwardRequest, TrailersAreAnnouncedWhereTheyCanFollow) {
  Case c(fields({{"Host", "shop"},
                 {"Transfer-Encoding", "chunked"},
                 {"Trailer", "X-Sum"},
                 {"TE", "trailers;q=1, Trailers"},
                 {"Connection", "TE"}}));
  c.head.framing = H1Framing::kChunked;
  EXPECT_THAT(c.h1(), ElementsAre("Host: shop", "Transfer-Encoding: chunked", "Trailer: X-Sum",
                                  "x-forwarded-for: 10.0.0.9", "x-forwarded-proto: http",
                                  "te: trailers", "connection: TE"));
  EXPECT_THAT(c.h2(), testing::Contains("trailer: X-Sum"));
  EXPECT_THAT(c.h2(), testing::Contains("te: trailers"));
  c.head.framing = H1Framing::kLength;
  EXPECT_THAT(c.h1(), testing::Not(testing::Contains("Trailer: X-Sum"))) << "none can follow";
}

TEST(ForwardRequest, AnExpectationThatIsVoidIsNotForwarded) {
  Case c(fields({{"Host", "shop"}, {"Expect", "100-continue"}, {"Content-Length", "5"}}));
  c.head.framing = H1Framing::kLength;
  c.head.content_length = 5;
  EXPECT_THAT(c.h1(), testing::Contains("Expect: 100-continue"));
  c.head.version = HttpVersion::kHttp10;
  EXPECT_THAT(c.h1(), testing::Not(testing::Contains("Expect: 100-continue")));
  c.head.version = HttpVersion::kHttp11;
  c.head.framing = H1Framing::kNone;
  EXPECT_THAT(c.h1(), testing::Not(testing::Contains("Expect: 100-continue")));
  EXPECT_THAT(c.h2(), testing::Not(testing::Contains("expect: 100-continue")));
}

TEST(ForwardRequest, FramesBodies) {
  Case c(fields({{"Host", "shop"}, {"Content-Length", "5"}}));
  c.head.framing = H1Framing::kLength;
  c.head.content_length = 5;
  EXPECT_EQ(c.h1()[1], "Content-Length: 5");
  EXPECT_THAT(c.h2(), testing::Contains("content-length: 5"));

  Case chunked(fields({{"Host", "shop"}, {"Transfer-Encoding", "chunked"}}));
  chunked.head.framing = H1Framing::kChunked;
  EXPECT_EQ(chunked.h1()[1], "Transfer-Encoding: chunked");
  EXPECT_THAT(chunked.h2(), testing::Not(testing::Contains(testing::HasSubstr("transfer"))));

  Case h2(fields({{":method", "POST"}, {":path", "/"}, {"x", "1"}}));
  h2.head.version = HttpVersion::kHttp2;
  h2.head.method = "POST";
  EXPECT_THAT(h2.h1(), testing::Contains("content-length: 0"));
  h2.head.framing = H1Framing::kChunked;
  EXPECT_THAT(h2.h1(), testing::Contains("transfer-encoding: chunked"));
}

TEST(ForwardRequest, ToHttp2PutsPseudoFieldsFirstAndLowersNames) {
  Case c(fields({{"Host", "shop"}, {"X-Up", "1"}, {"TE", "gzip, Trailers"}}));
  EXPECT_THAT(c.h2(), ElementsAre(":method: GET", ":scheme: http", ":authority: shop", ":path: /",
                                  "x-up: 1", "te: trailers", "x-forwarded-for: 10.0.0.9",
                                  "x-forwarded-proto: http"));
}

TEST(ForwardRequest, AddsWhatTheRouteAsksFor) {
  Case c(fields({{"Host", "shop"}, {"x-request-id", "client"}}));
  c.info.authority = "other";
  c.info.original_path = "/old";
  c.info.forwarded_host = "shop";
  c.info.attempt = 2;
  c.info.request_id = "ours";
  EXPECT_THAT(c.h1(),
              ElementsAre("Host: other", "x-forwarded-for: 10.0.0.9", "x-forwarded-proto: http",
                          "x-request-id: ours", "x-forwarded-host: shop",
                          "x-envoy-original-path: /old", "x-envoy-attempt-count: 2"));
}

TEST(ForwardResponse, FramesForEachVersionOfClient) {
  const Fields in = fields({{"Server", "x"}, {"Transfer-Encoding", "chunked"}, {"Connection", "close"}});
  ResponseHead head;
  head.status = 200;
  head.fields = &in;
  head.framing = H1Framing::kChunked;
  EXPECT_EQ(response_framing(head, HttpVersion::kHttp11), H1Framing::kChunked);
  EXPECT_EQ(response_framing(head, HttpVersion::kHttp10), H1Framing::kUntilClose);
  head.framing = H1Framing::kUntilClose;
  EXPECT_EQ(response_framing(head, HttpVersion::kHttp11), H1Framing::kChunked);
  head.no_body = true;
  EXPECT_EQ(response_framing(head, HttpVersion::kHttp11), H1Framing::kNone);

  Fields out;
  head.no_body = false;
  build_h1_response(head, H1Framing::kChunked, AfterResponse::kDefault, out);
  EXPECT_THAT(lines(out), ElementsAre("Server: x", "Transfer-Encoding: chunked"));
  build_h1_response(head, H1Framing::kUntilClose, AfterResponse::kClose, out);
  EXPECT_THAT(lines(out), ElementsAre("Server: x", "connection: close"));
  build_h2_response(head, out);
  EXPECT_THAT(lines(out), ElementsAre(":status: 200", "server: x"));
}

TEST(ForwardResponse, AnswerToHeadKeepsItsLength) {
  const Fields in = fields({{"Content-Length", "1234"}});
  ResponseHead head;
  head.status = 200;
  head.fields = &in;
  head.framing = H1Framing::kLength;
  head.no_body = true;
  Fields out;
  build_h1_response(head, H1Framing::kNone, AfterResponse::kDefault, out);
  EXPECT_THAT(lines(out), ElementsAre("Content-Length: 1234"));
}

TEST(ForwardResponse, NoContentHasNoLength) {
  for (const uint16_t status : {103, 204}) {
    const Fields in = fields({{"Content-Length", "5"}, {"Link", "a"}});
    ResponseHead head;
    head.status = status;
    head.fields = &in;
    head.no_body = true;
    Fields out;
    build_h1_response(head, H1Framing::kNone, AfterResponse::kDefault, out);
    EXPECT_THAT(lines(out), ElementsAre("Link: a")) << status;
    build_h2_response(head, out);
    EXPECT_THAT(lines(out), ElementsAre(testing::StartsWith(":status"), "link: a")) << status;
  }
  const Fields in = fields({{"Content-Length", "5"}});
  ResponseHead head;
  head.status = 304;  // RFC 9110 section 15.4.5: it may say what a 200 would have had
  head.fields = &in;
  head.no_body = true;
  Fields out;
  build_h1_response(head, H1Framing::kNone, AfterResponse::kDefault, out);
  EXPECT_THAT(lines(out), ElementsAre("Content-Length: 5"));
}

TEST(ForwardTrailers, LosesWhatFramesOrRoutes) {
  Fields out;
  build_trailers(fields({{"Grpc-Status", "0"}, {"Content-Length", "1"}, {"Host", "x"}, {"TE", "x"},
                         {"Trailer", "y"}, {"X-Forwarded-For", "1.2.3.4"}, {"X-Envoy-Internal", "1"},
                         {"x-meltemi-waypoints", "z"}, {"Forwarded", "for=1.2.3.4"}}),
                 true, out);
  EXPECT_THAT(lines(out), ElementsAre("grpc-status: 0"));
}

TEST(HeaderOps, ChangesInOrder) {
  Fields f = fields({{"A", "1"}, {"b", "2"}, {"c", "3"}});
  HeaderOps ops;
  ops.remove = {"B"};
  ops.change = {{HeaderOp::Action::kAppend, "a", "4"},
                {HeaderOp::Action::kAddIfAbsent, "c", "no"},
                {HeaderOp::Action::kAddIfAbsent, "d", "5"},
                {HeaderOp::Action::kOverwriteIfExists, "zz", "no"},
                {HeaderOp::Action::kOverwriteIfExists, "c", "6"}};
  ops.apply(f);
  EXPECT_THAT(lines(f), ElementsAre("A: 1", "c: 6", "a: 4", "d: 5"));
  ops = {};
  ops.change = {{HeaderOp::Action::kOverwrite, "a", "7"}};
  ops.apply(f);
  EXPECT_THAT(lines(f), ElementsAre("A: 7", "c: 6", "d: 5"));
}

TEST(HeaderOps, RefusesWhatCouldSplitOrReframe) {
  for (const char* name : {"", "a b", ":path", "Content-Length", "transfer-encoding", "Connection",
                           "host", "a:b", "x\r\n"}) {
    EXPECT_FALSE(check_header_change(name, "v")) << name;
    EXPECT_FALSE(check_header_removal(name)) << name;
  }
  EXPECT_FALSE(check_header_change("x", "a\r\nb"));
  EXPECT_TRUE(check_header_change("x-ok", "a b"));
  EXPECT_EQ(*literal_value("50%%"), "50%");
  EXPECT_FALSE(literal_value("%REQ(x)%"));
}

TEST(LocalReply, StatusOfReasons) {
  EXPECT_EQ(status_of(Reason::kPolicyDeny), 403);
  EXPECT_EQ(status_of(Reason::kNoRoute), 404);
  EXPECT_EQ(status_of(Reason::kRequestTimeout), 504);
  EXPECT_EQ(status_of(Reason::kConnectRefused), 503);
  EXPECT_EQ(reply_body(Reason::kPolicyNoAllowMatch, "x"), "RBAC: access denied");
  EXPECT_EQ(grpc_status_of_http(403), 7);
  EXPECT_EQ(grpc_status_of(Reason::kRequestTimeout, 504), 4);
  EXPECT_EQ(grpc_status_of(Reason::kNoEndpoint, 503), 14);
  EXPECT_EQ(grpc_status_of(Reason::kLimitExceeded, 503), 14) << "may be tried again";
}

TEST(LocalReply, WhatMayBeTriedAgainIs503) {
  for (const Reason reason : {Reason::kConnectRefused, Reason::kConnectTimeout, Reason::kUpstreamReset,
                              Reason::kServerClosedEarly, Reason::kLimitExceeded}) {
    EXPECT_EQ(status_of(reason), 503) << reason_name(reason);
  }
  EXPECT_EQ(status_of(Reason::kUpstreamProtocol), 502) << "another try would get the same answer";
}

// gRPC's doc/http-grpc-status-mapping.md.
TEST(LocalReply, HttpStatusToGrpcStatus) {
  const std::pair<uint16_t, int> kTable[] = {{400, 13}, {401, 16}, {403, 7},  {404, 12}, {429, 14},
                                             {502, 14}, {503, 14}, {504, 14}, {200, 2},  {302, 2},
                                             {405, 2},  {418, 2},  {431, 2},  {500, 2},  {508, 2}};
  for (const auto& [http, grpc] : kTable) EXPECT_EQ(grpc_status_of_http(http), grpc) << http;
}

TEST(LocalReply, AGrpcMessageIsOneLineOfAscii) {
  EXPECT_EQ(grpc_message("plain text\n"), "plain text");
  EXPECT_EQ(grpc_message("50%\r\nx: y \xc3\xa9"), "50%25%0D%0Ax: y %C3%A9");
}

TEST(FieldId, GrpcIsNotGrpcWeb) {
  const auto grpc = [](const char* type) { return is_grpc(fields({{"Content-Type", type}})); };
  EXPECT_TRUE(grpc("application/grpc"));
  EXPECT_TRUE(grpc("Application/gRPC+proto"));
  EXPECT_TRUE(grpc("application/grpc; charset=utf-8"));
  EXPECT_FALSE(grpc("application/grpc-web+proto"));
  EXPECT_FALSE(grpc("application/grpcx"));
  EXPECT_FALSE(grpc("text/plain"));
}

TEST(FieldId, KnowsNamesInAnyCase) {
  EXPECT_EQ(field_id("CoNtEnT-lEnGtH"), FieldId::kContentLength);
  EXPECT_EQ(field_id("X-Envoy-Anything"), FieldId::kXEnvoy);
  EXPECT_EQ(field_id("x-envoy-"), FieldId::kOther);
  EXPECT_EQ(field_id("x-forwarded-fox"), FieldId::kOther);
  EXPECT_EQ(field_id(""), FieldId::kOther);
}

}  // namespace
}  // namespace meltemi::waypoint
