#include "userspace/sandbox/layout.h"

#include <fmt/format.h>

#include <charconv>

namespace meltemi::sandbox {
namespace {

IpAddress address(std::string_view text) {
  return *IpAddress::parse(text);
}
Cidr cidr(std::string_view text) {
  return *Cidr::parse(text);
}

}  // namespace

Status check_sandbox_name(std::string_view name) {
  bool good = !name.empty() && name.size() <= 12 && name[0] >= 'a' && name[0] <= 'z';
  for (char c : name) good = good && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'));
  if (good) return {};
  return fail(
      Reason::kBadConfig, Fault::kConfig,
      fmt::format("sandbox name \"{}\": use 1 to 12 lower-case letters and digits, a letter "
                  "first (it becomes part of namespace and cgroup names)",
                  name));
}

std::string node_name(int index) {
  return fmt::format("node{}", index);
}

int node_index(std::string_view node) {
  if (!node.starts_with("node")) return 0;
  node.remove_prefix(4);
  int index = 0;
  auto [end, error] = std::from_chars(node.data(), node.data() + node.size(), index);
  if (error != std::errc() || end != node.data() + node.size() || node.starts_with('0')) return 0;
  return index >= 1 && index <= kMaxNodes ? index : 0;
}

AddressPair fabric_address() {
  return {address("10.254.0.1"), address("fd54:6d6c:254::1")};
}

AddressPair node_address(int index) {
  return {address(fmt::format("10.254.0.{}", 10 + index)),
          address(fmt::format("fd54:6d6c:254::{:x}", 0x100 + index))};
}

AddressPair pod_address(int index, int host) {
  return {address(fmt::format("10.244.{}.{}", index, host)),
          address(fmt::format("fd54:6d6c:244:{:x}::{:x}", index, host))};
}

Cidr pod_cidr_v4(int index) {
  return cidr(fmt::format("10.244.{}.0/24", index));
}
Cidr pod_cidr_v6(int index) {
  return cidr(fmt::format("fd54:6d6c:244:{:x}::/64", index));
}
Cidr fabric_cidr_v4() {
  return cidr("10.254.0.0/24");
}
Cidr fabric_cidr_v6() {
  return cidr("fd54:6d6c:254::/64");
}
Cidr service_cidr_v4() {
  return cidr("10.96.0.0/16");
}
Cidr service_cidr_v6() {
  return cidr("fd54:6d6c:96::/112");
}
AddressPair dns_address() {
  return service_address(10);
}

AddressPair service_address(uint16_t host) {
  return {address(fmt::format("10.96.{}.{}", host >> 8, host & 0xff)),
          address(fmt::format("fd54:6d6c:96::{:x}", host))};
}

AddressPair pod_gateway() {
  return {address("169.254.1.1"), address("fe80::1")};
}

}  // namespace meltemi::sandbox
