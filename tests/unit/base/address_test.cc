// Addresses: one form for both families, nothing accepted that inet_pton would not.
#include "userspace/base/address.h"

#include <gtest/gtest.h>

namespace meltemi {
namespace {

TEST(IpAddress, V4AndItsMappedFormAreOne) {
  const auto plain = IpAddress::parse("10.1.2.3");
  const auto mapped = IpAddress::parse("::ffff:10.1.2.3");
  ASSERT_TRUE(plain && mapped);
  EXPECT_EQ(*plain, *mapped);
  EXPECT_TRUE(mapped->is_v4());
  EXPECT_EQ(mapped->to_string(), "10.1.2.3");
  EXPECT_EQ(plain->wire(), std::string("\x0a\x01\x02\x03", 4));
}

TEST(IpAddress, RefusesWhatIsNotAnAddress) {
  for (const char* text : {"", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "fe80::1%eth0",
                           "[::1]", "1.2.3.4 ", "::g", "1.2.3.4/8"})
    EXPECT_FALSE(IpAddress::parse(text)) << text;
  EXPECT_FALSE(IpAddress::parse(std::string_view("1.2.3.4\0", 8)));
  EXPECT_FALSE(IpAddress::parse(std::string(300, '1')));
}

TEST(IpAddress, FromBytesTakesFourOrSixteen) {
  const std::string four("\x7f\x00\x00\x01", 4);
  EXPECT_TRUE(IpAddress::from_bytes(as_bytes(four))->is_loopback());
  EXPECT_FALSE(IpAddress::from_bytes(as_bytes("12345")));
  EXPECT_TRUE(IpAddress::parse("::1")->is_loopback());
  EXPECT_FALSE(IpAddress::parse("::2")->is_loopback());
  EXPECT_TRUE(IpAddress::parse("0.0.0.0")->is_unspecified());
  EXPECT_TRUE(IpAddress::parse("::")->is_unspecified());
}

TEST(Cidr, MasksHostBitsAndStaysInItsFamily) {
  const auto net = Cidr::parse("10.1.2.3/8");
  ASSERT_TRUE(net);
  EXPECT_EQ(net->to_string(), "10.0.0.0/8");
  EXPECT_TRUE(net->contains(*IpAddress::parse("10.255.0.1")));
  EXPECT_FALSE(net->contains(*IpAddress::parse("11.0.0.1")));
  const auto all6 = Cidr::parse("::/0");
  EXPECT_TRUE(all6->contains(*IpAddress::parse("fd00::1")));
  EXPECT_FALSE(all6->contains(*IpAddress::parse("10.0.0.1")));
  EXPECT_EQ(Cidr::parse("10.0.0.1")->length, 32);
  EXPECT_EQ(Cidr::parse("fd00::1")->length, 128);
  for (const char* text : {"10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/x", "/8"})
    EXPECT_FALSE(Cidr::parse(text)) << text;
}

// contains() against a bit-by-bit oracle.
TEST(Cidr, ContainsAgreesWithBitwiseOracle) {
  uint32_t seed = 12345;
  const auto next = [&] { return seed = seed * 1664525u + 1013904223u; };
  for (int i = 0; i < 20000; ++i) {
    const uint32_t a = next(), length = next() % 33;
    const uint32_t b = next() % 2 ? a ^ (1u << (next() % 32)) : next();
    const uint32_t mask = length == 0 ? 0 : ~uint32_t{0} << (32 - length);
    const auto net = Cidr::make(IpAddress::v4(a), length);
    ASSERT_EQ(net->contains(IpAddress::v4(b)), (a & mask) == (b & mask)) << a << '/' << length;
  }
}

TEST(SocketAddress, RoundTripsThroughTextAndSockaddr) {
  for (const char* text : {"1.2.3.4:80", "[fd00::1]:15008", "[::]:65535", "0.0.0.0:0"}) {
    const auto a = SocketAddress::parse(text);
    ASSERT_TRUE(a) << text;
    EXPECT_EQ(a->to_string(), text);
    sockaddr_storage storage;
    const socklen_t length = a->to_sockaddr(storage);
    EXPECT_EQ(SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length), a);
    const socklen_t six = a->to_sockaddr(storage, true);
    EXPECT_EQ(storage.ss_family, AF_INET6);
    EXPECT_EQ(SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), six), a);
  }
  for (const char* text : {"1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "[::1]", "::1:80", "host:80",
                           "[1.2.3.4]:80", "1.2.3.4:80x", "[::1]80", ""})
    EXPECT_FALSE(SocketAddress::parse(text)) << text;
}

TEST(HostPort, SplitsNamesAndBracketedAddresses) {
  EXPECT_EQ(split_host_port("catalog.shop:80")->host, "catalog.shop");
  EXPECT_EQ(split_host_port("catalog.shop:80")->port, 80);
  EXPECT_EQ(split_host_port("catalog")->port, 0);
  EXPECT_EQ(split_host_port("[::1]:8080")->host, "::1");
  for (const char* text : {":80", "", "[]:80", "[::1", "a:b", "a:99999", "[::1]x"})
    EXPECT_FALSE(split_host_port(text)) << text;
}

}  // namespace
}  // namespace meltemi
