// Wire to model: the peer's defaults, its reasons to refuse, and nothing that widens access.
#include "userspace/xds/workload_convert.h"

#include <gmock/gmock.h>

#include "security/authorization.pb.h"
#include "workload/workload.pb.h"

namespace meltemi::xds {
namespace {

using ::testing::HasSubstr;
namespace wds = ::istio::workload;
namespace sec = ::istio::security;

wds::Workload workload() {
  wds::Workload out;
  out.set_uid("Kubernetes//Pod/shop/web");
  out.set_name("web");
  out.set_namespace_("shop");
  out.add_addresses(IpAddress::parse("10.0.0.1")->wire());
  out.add_addresses(IpAddress::parse("fd00::1")->wire());
  return out;
}

TEST(Convert, FillsThePeersDefaults) {
  const auto w = to_workload(workload());
  ASSERT_TRUE(w) << w.error().to_string();
  EXPECT_EQ((*w)->identity.uri(), "spiffe://cluster.local/ns/shop/sa/default");
  EXPECT_EQ((*w)->cluster.view(), "Kubernetes");
  EXPECT_EQ((*w)->capacity, 1u);
  EXPECT_TRUE((*w)->healthy);
  EXPECT_EQ((*w)->protocol, model::TunnelProtocol::kTcp);
  ASSERT_EQ((*w)->addresses.size(), 2u);
  EXPECT_EQ((*w)->addresses[1].to_string(), "fd00::1");
}

TEST(Convert, KeepsEveryField) {
  auto proto = workload();
  proto.set_tunnel_protocol(wds::HBONE);
  proto.set_service_account("web");
  proto.set_trust_domain("td");
  proto.set_status(wds::UNHEALTHY);
  proto.mutable_capacity()->set_value(0);
  proto.set_network_mode(wds::HOST_NETWORK);
  proto.set_workload_type(wds::JOB);
  proto.add_authorization_policies("shop/deny");
  auto& ports = (*proto.mutable_services())["shop/web.shop.svc.cluster.local"];
  ports.add_ports()->set_service_port(80);
  ports.mutable_ports(0)->set_target_port(8080);
  proto.mutable_waypoint()->mutable_hostname()->set_namespace_("shop");
  proto.mutable_waypoint()->mutable_hostname()->set_hostname("wp.shop.svc.cluster.local");
  proto.mutable_waypoint()->set_hbone_mtls_port(15008);
  const auto w = *to_workload(proto);
  EXPECT_EQ(w->identity.uri(), "spiffe://td/ns/shop/sa/web");
  EXPECT_EQ(w->protocol, model::TunnelProtocol::kHbone);
  EXPECT_FALSE(w->healthy);
  EXPECT_EQ(w->capacity, 0u);
  EXPECT_EQ(w->network_mode, model::NetworkMode::kHostNetwork);
  EXPECT_EQ(w->type, model::WorkloadType::kJob);
  EXPECT_EQ(w->authorization_policies[0].view(), "shop/deny");
  EXPECT_EQ(w->services[0].service.view(), "shop/web.shop.svc.cluster.local");
  EXPECT_EQ(w->services[0].ports[0].target, 8080);
  EXPECT_EQ(w->waypoint->hostname.view(), "shop/wp.shop.svc.cluster.local");
}

TEST(Convert, RefusesWhatThePeerRefuses) {
  const auto refused = [](auto change) {
    auto proto = workload();
    change(proto);
    const auto w = to_workload(proto);
    return w ? std::string("accepted") : w.error().detail;
  };
  EXPECT_THAT(refused([](auto& w) { w.set_uid(""); }), HasSubstr("uid"));
  EXPECT_THAT(refused([](auto& w) { w.add_addresses("abc"); }), HasSubstr("addresses"));
  EXPECT_THAT(refused([](auto& w) { w.set_tunnel_protocol(wds::LEGACY_ISTIO_MTLS); }),
              HasSubstr("tunnel_protocol"));
  EXPECT_THAT(refused([](auto& w) { (*w.mutable_services())["nohost"]; }), HasSubstr("services"));
  EXPECT_THAT(refused([](auto& w) {
                (*w.mutable_services())["a/b"].add_ports()->set_service_port(70000);
              }),
              HasSubstr("70000"));
  EXPECT_THAT(refused([](auto& w) { w.mutable_waypoint(); }), HasSubstr("waypoint"));
  EXPECT_THAT(refused([](auto& w) { w.set_service_account("../x"); }), ::testing::Not("accepted"));
}

TEST(Convert, ServicesHaveAddressesAndPrefixes) {
  wds::Service proto;
  proto.set_name("web");
  proto.set_namespace_("shop");
  proto.set_hostname("web.shop.svc.cluster.local");
  proto.add_addresses()->set_address(IpAddress::parse("10.96.0.1")->wire());
  auto* full = proto.add_addresses();
  full->set_address(IpAddress::parse("10.96.0.2")->wire());
  full->set_length(32);
  auto* prefix = proto.add_addresses();
  prefix->set_address(IpAddress::parse("10.97.0.0")->wire());
  prefix->set_length(16);
  auto* port = proto.add_ports();
  port->set_service_port(80);
  port->set_app_protocol(wds::HTTP2);
  proto.add_subject_alt_names("spiffe://td/ns/a/sa/b");
  proto.add_subject_alt_names("not a spiffe id");
  auto s = to_service(proto);
  ASSERT_TRUE(s) << s.error().to_string();
  EXPECT_EQ((*s)->key.view(), "shop/web.shop.svc.cluster.local");
  EXPECT_EQ((*s)->vips.size(), 2u);
  ASSERT_EQ((*s)->cidr_vips.size(), 1u);
  EXPECT_EQ((*s)->cidr_vips[0].cidr.to_string(), "10.97.0.0/16");
  EXPECT_EQ((*s)->subject_alt_names.size(), 1u);
  prefix->set_length(33);
  EXPECT_FALSE(to_service(proto));
}

TEST(Convert, ABrokenPolicyEntryClosesInsteadOfOpening) {
  sec::Authorization proto;
  proto.set_name("p");
  proto.set_namespace_("shop");
  proto.set_action(sec::DENY);
  auto* match = proto.add_rules()->add_clauses()->add_matches();
  auto* bad = match->add_source_ips();
  bad->set_address("abc");
  bad->set_length(8);
  const auto deny = *to_policy(proto);
  ASSERT_EQ(deny->rules.size(), 1u);
  EXPECT_TRUE(deny->rules[0].clauses[0].matches[0].invalid);
  model::PolicyInput input;
  input.source_ip = *IpAddress::parse("10.0.0.1");
  EXPECT_EQ(model::first_matching_rule(*deny, input), 0) << "a DENY it cannot read denies";
  proto.set_action(sec::ALLOW);
  EXPECT_EQ(model::first_matching_rule(**to_policy(proto), input), -1)
      << "an ALLOW it cannot read allows nobody";

  match->Clear();
  match->add_destination_ports(70000);
  EXPECT_TRUE((*to_policy(proto))->rules[0].clauses[0].matches[0].invalid);
  match->Clear();
  match->add_principals();  // no match type
  EXPECT_TRUE((*to_policy(proto))->rules[0].clauses[0].matches[0].invalid);
}

TEST(Convert, BytesThatAreNoMessageAreRefused) {
  EXPECT_FALSE(decode_address("\xff\xff\xff"));
  EXPECT_FALSE(decode_address(""));
  EXPECT_FALSE(decode_policy("\xff"));
  wds::Address address;
  *address.mutable_workload() = workload();
  const auto decoded = decode_address(address.SerializeAsString());
  ASSERT_TRUE(decoded);
  EXPECT_TRUE(std::holds_alternative<model::WorkloadPtr>(*decoded));
}

}  // namespace
}  // namespace meltemi::xds
