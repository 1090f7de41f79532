// Header values of HBONE: what we write, what we read from peers, and what hostile ones may not do.
#include <gtest/gtest.h>

#include "userspace/codec/authority.h"
#include "userspace/codec/baggage.h"
#include "userspace/codec/forwarded.h"
#include "userspace/codec/header_list.h"
#include "userspace/codec/http_date.h"
#include "userspace/codec/traceparent.h"

namespace meltemi::codec {
namespace {

const Baggage kFull{"Kubernetes", "shop", "deployment", "web", "web", "v1", "eu", "eu-1a"};

TEST(HttpDate, IsAnImfFixdate) {
  EXPECT_EQ(http_date(WallTime(std::chrono::seconds(784111777))), "Sun, 06 Nov 1994 08:49:37 GMT");
  EXPECT_EQ(http_date(WallTime(std::chrono::seconds(951782400))), "Tue, 29 Feb 2000 00:00:00 GMT");
}

TEST(Baggage, IstiosKeysInIstiosOrder) {
  EXPECT_EQ(format_baggage(kFull),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
            "service.name=web,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1a");
  EXPECT_EQ(parse_baggage(format_baggage(kFull)), kFull);
  EXPECT_EQ(format_baggage({}), "");
  EXPECT_EQ(format_baggage({.workload_type = "toaster", .workload_name = "x"}), "");
}

TEST(Baggage, AnyByteSurvivesOrIsDropped) {
  for (int c = 0; c < 256; ++c) {
    Baggage b;
    b.service = std::string("a") + static_cast<char>(c) + "b";
    const std::string text = format_baggage(b);
    for (char out : text) EXPECT_TRUE(out > 0x20 && out < 0x7f) << c;
    const Baggage back = parse_baggage(text);
    if (c < 0x20 || c == 0x7f)
      EXPECT_EQ(back, Baggage()) << "control bytes never reach telemetry";
    else
      EXPECT_EQ(back, b) << c;
  }
  EXPECT_EQ(format_baggage({.service = "a=b,c;d%"}), "service.name=a%3Db%2Cc%3Bd%25");
}

TEST(Baggage, ForgivingReader) {
  const Baggage b = parse_baggage(
      " k8s.namespace.name = shop ;meta=1 , unknown=x,service.name=old,broken,=,service.name=new,"
      "k8s.pod.name=p-1,k8s.job.extra.name=x,k8s.name=y,cloud.region=%zz%4");
  EXPECT_EQ(b.namespace_name, "shop");
  EXPECT_EQ(b.service, "new");
  EXPECT_EQ(b.workload_type, "pod");
  EXPECT_EQ(b.workload_name, "p-1");
  EXPECT_EQ(b.region, "%zz%4");
}

TEST(Baggage, Limits) {
  EXPECT_EQ(parse_baggage("service.name=" + std::string(257, 'x')).service, "");
  EXPECT_EQ(parse_baggage("service.name=" + std::string(256, 'x')).service.size(), 256u);
  std::string long_header = "service.name=a";
  while (long_header.size() < kMaxBaggageBytes) long_header += ",x=y";
  const Baggage b = parse_baggage(long_header + ",service.name=late");
  EXPECT_EQ(b.service, "a");
}

TEST(Forwarded, RoundTrip) {
  const auto v4 = *SocketAddress::parse("10.0.0.1:4711");
  const auto v6 = *SocketAddress::parse("[fd00::1]:80");
  EXPECT_EQ(format_forwarded(v4, "web.shop.svc.cluster.local"),
            "for=\"10.0.0.1:4711\";host=web.shop.svc.cluster.local");
  EXPECT_EQ(format_forwarded(v6, ""), "for=\"[fd00::1]:80\"");
  EXPECT_EQ(format_forwarded(v4, "a\"b:80"), "for=\"10.0.0.1:4711\";host=\"a\\\"b:80\"");
  for (const auto& address : {v4, v6}) {
    const Forwarded f = parse_forwarded(format_forwarded(address, "Web.Shop:80"));
    EXPECT_EQ(f.source, address);
    EXPECT_EQ(f.host, "web.shop:80");
  }
}

TEST(Forwarded, ForgivingReader) {
  EXPECT_EQ(parse_forwarded("For=\"[::1]\"; Host=\"a\";proto=http, for=1.2.3.4"),
            (Forwarded{SocketAddress{*IpAddress::parse("::1"), 0}, "a"}));
  EXPECT_EQ(parse_forwarded("for=1.2.3.4"),
            (Forwarded{SocketAddress{*IpAddress::parse("1.2.3.4"), 0}, ""}));
  EXPECT_EQ(parse_forwarded("for=unknown;host=a"), (Forwarded{std::nullopt, "a"}));
  EXPECT_EQ(parse_forwarded("host=a;host=b").host, "a");
  EXPECT_EQ(parse_forwarded(";;;host=a").host, "a");
  for (const char* bad : {"", ",", "for", "for=\"1.2.3.4", "for=\"a\\", "=", "host=\"a b\"",
                          "host=\"a\nb\"", "host=\"\x80\""})
    EXPECT_EQ(parse_forwarded(bad), Forwarded()) << bad;
  EXPECT_EQ(parse_forwarded("host=a" + std::string(kMaxForwardedBytes, ' ')), Forwarded());
}

TEST(Traceparent, RoundTripAndRefusals) {
  const std::string text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const auto t = Traceparent::parse(text);
  ASSERT_TRUE(t.has_value());
  EXPECT_EQ(t->to_string(), text);
  EXPECT_EQ(t->trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(t->parent_id_hex(), "b7ad6b7169203331");
  EXPECT_EQ(t->flags, 1);
  EXPECT_TRUE(Traceparent::parse("cc" + text.substr(2) + "-what-the-future-holds").has_value());
  for (const std::string& bad :
       {std::string(), text.substr(1), text + "0", text + "-x", "ff" + text.substr(2),
        std::string("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        "00-" + std::string(32, '0') + text.substr(35),
        text.substr(0, 36) + std::string(16, '0') + "-01", "cc" + text.substr(2) + "x",
        "00_" + text.substr(3)})
    EXPECT_FALSE(Traceparent::parse(bad).has_value()) << bad;
}

TEST(Traceparent, RandomIsNeverInvalid) {
  std::array<uint8_t, 24> zero{};
  const Traceparent t = Traceparent::from_random(zero);
  EXPECT_EQ(Traceparent::parse(t.to_string()), t);
}

TEST(Authority, TakesAddressesAndNames) {
  auto ip = Authority::parse("10.0.0.2:80");
  ASSERT_TRUE(ip && ip->ip);
  EXPECT_EQ(ip->to_string(), "10.0.0.2:80");
  auto v6 = Authority::parse("[fd00::2]:65535");
  ASSERT_TRUE(v6 && v6->ip);
  EXPECT_EQ(v6->port, 65535);
  EXPECT_EQ(v6->to_string(), "[fd00::2]:65535");
  auto name = Authority::parse("Web.shop.SVC.cluster.local.:8080");
  ASSERT_TRUE(name && !name->ip);
  EXPECT_EQ(name->hostname, "web.shop.svc.cluster.local");
  EXPECT_EQ(name->to_string(), "web.shop.svc.cluster.local:8080");
  EXPECT_TRUE(Authority::parse("_grpc.web:1").has_value());
  EXPECT_EQ(format_authority(SocketAddress{*IpAddress::parse("::1"), 1}), "[::1]:1");
}

TEST(Authority, Refuses) {
  const std::string label64(64, 'a');
  std::string long_name;
  while (long_name.size() < 254) long_name += "abc.";
  for (const std::string& bad : {std::string(),
                                 std::string("a"),
                                 std::string("a:"),
                                 std::string(":80"),
                                 std::string("a:0"),
                                 std::string("a:65536"),
                                 std::string("a:080000"),
                                 std::string("a:+80"),
                                 std::string("a: 80"),
                                 std::string("user@a:80"),
                                 std::string("a/b:80"),
                                 std::string("::1:80"),
                                 std::string("[::1]"),
                                 std::string("[::1:80"),
                                 std::string("[1.2.3.4]:80"),
                                 std::string("[fe80::1%eth0]:80"),
                                 std::string("1.2.3:80"),
                                 std::string("1.2.3.4.5:80"),
                                 std::string("999.1.1.1:80"),
                                 std::string("a..b:80"),
                                 std::string(".a:80"),
                                 std::string("a b:80"),
                                 std::string("a\0b:80", 6),
                                 std::string("a,b:80"),
                                 std::string(".:80"),
                                 label64 + ":80",
                                 long_name + "a:80",
                                 std::string("\xc3\xa9:80"),
                                 std::string("a%2eb:80")})
    EXPECT_FALSE(Authority::parse(bad).has_value()) << bad;
}

TEST(HeaderList, KeepsOrderCaseAndDuplicates) {
  HeaderList h;
  h.add("Host", "a");
  h.add("X-Trace", "1");
  h.add("x-trace", "2");
  EXPECT_EQ(h.size(), 3u);
  EXPECT_EQ(h.bytes(), 5u + 8 + 8);
  EXPECT_EQ(h.value("host"), "a");
  EXPECT_EQ(h.joined("X-TRACE"), "1, 2");
  EXPECT_EQ(h.count("x-trace"), 2u);
  EXPECT_FALSE(h.get("x").has_value());
  h.set("x-TRACE", "3");
  EXPECT_EQ(h.size(), 2u);
  EXPECT_EQ(h[1].name, "X-Trace");
  EXPECT_EQ(h[1].value, "3");
  EXPECT_EQ(h.bytes(), 5u + 8);
  h.set("new", h.value("host"));  // a view into itself
  EXPECT_EQ(h.value("new"), "a");
  for (int i = 0; i < 100; ++i) h.add(h[0].name, h[0].value);
  EXPECT_EQ(h[102].name, "Host");
  EXPECT_EQ(h.remove("HOST"), 101u);
  EXPECT_EQ(h.size(), 2u);
  h.release();
  EXPECT_TRUE(h.empty());
  EXPECT_EQ(h.bytes(), 0u);
}

TEST(HeaderList, EveryLengthAndViewsIntoItself) {
  std::string letters;
  for (int i = 0; i < 100; ++i) letters += static_cast<char>('a' + i % 26);
  HeaderList h;
  for (size_t n = 0; n <= 100; ++n)
    h.add(letters.substr(0, n), letters.substr(100 - n), n % 2 == 1);
  for (size_t n = 0; n <= 100; ++n) {
    EXPECT_EQ(h[n].name, letters.substr(0, n));
    EXPECT_EQ(h[n].value, letters.substr(100 - n));
    EXPECT_EQ(h[n].never_indexed, n % 2 == 1);
  }
  EXPECT_EQ(h.bytes(), 2u * 5050);
  HeaderList own;
  own.add("name", "value");
  for (int i = 0; i < 200; ++i) own.add(own[0].name, own[static_cast<size_t>(i)].value);
  own.set(own[0].name, own[200].value);
  EXPECT_EQ(own.size(), 1u);
  EXPECT_EQ(own.value("NAME"), "value");
}

TEST(HeaderList, CopiesAndMoves) {
  HeaderList a;
  a.add("x", "1", true);
  HeaderList b = a;
  HeaderList c = std::move(a);
  EXPECT_TRUE(a.empty());  // NOLINT: promised
  b.set("x", "2");
  EXPECT_EQ(c.value("x"), "1");
  EXPECT_TRUE(b[0].never_indexed && c[0].never_indexed);
  c = b;
  EXPECT_EQ(c.value("x"), "2");
  c.clear();
  EXPECT_EQ(c.bytes(), 0u);
  EXPECT_FALSE(c.has("x"));
}

TEST(HeaderList, UpperCase) {
  for (size_t n = 0; n < 30; ++n) {
    const std::string low(n, 'z');
    EXPECT_FALSE(has_upper_case(low));
    for (size_t i = 0; i < n; ++i) {
      for (int c = 0; c < 256; ++c) {
        std::string text = low;
        text[i] = static_cast<char>(c);
        ASSERT_EQ(has_upper_case(text), c >= 'A' && c <= 'Z') << c;
      }
    }
  }
  EXPECT_TRUE(equal_ignoring_case("Content-TYPE", "content-type"));
  EXPECT_FALSE(equal_ignoring_case("@a", "`a"));
  EXPECT_FALSE(equal_ignoring_case("content-typf", "content-type"));
  EXPECT_TRUE(equal_ignoring_case("", ""));
}

TEST(HeaderList, Validity) {
  EXPECT_TRUE(valid_header_name("X-Trace_1~"));
  for (const char* bad : {"", "a b", "a:", ":a", "a\n", "\x80"})
    EXPECT_FALSE(valid_header_name(bad));
  EXPECT_TRUE(valid_header_value(""));
  EXPECT_TRUE(valid_header_value("a\tb \x80"));
  for (const char* bad : {" a", "a ", "a\r\nb", "\x7f", "\t"})
    EXPECT_FALSE(valid_header_value(bad));
  EXPECT_FALSE(valid_header_value(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace meltemi::codec
