// What the agent keeps on disk, and what it makes of a decision.
#include "userspace/agent/pod_record.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/support/few_descriptors.h"
#include "userspace/agent/control_link.h"
#include "userspace/agent/options.h"
#include "userspace/sys/files.h"

namespace meltemi::agent {
namespace {

namespace wire = meltemi::node::v1;

PodRecord full_record() {
  PodRecord r;
  r.uid = "u-1";
  r.name = "web-0";
  r.namespace_name = "shop";
  r.netns_path = "/run/netns/cni-1";
  r.cni_addresses = {*IpAddress::parse("10.0.0.7"), *IpAddress::parse("fd00::7")};
  r.cookie = 0xffffffffffffffffull;
  r.saved_sysctls = {{"net/ipv4/tcp_fwmark_accept", "0"}};
  r.probed_addresses = {*IpAddress::parse("10.0.0.7")};
  r.probed_ports = {8080, 65535};
  wire::PodEnrolment d;
  d.set_uid("u-1");
  d.set_name("web-0");
  d.set_namespace_("shop");
  d.set_service_account("web");
  d.add_addresses(IpAddress::parse("10.0.0.9")->wire());
  d.set_enrol(true);
  d.set_reason("namespace_opt_in");
  d.add_probe_ports(8080);
  d.set_inbound_mode(wire::STRICT);
  d.add_exclude_outbound_cidrs("169.254.169.254/32");
  d.add_exclude_outbound_ports(25);
  r.decision = d;
  return r;
}

TEST(Record, SurvivesTheDisk) {
  const PodRecord r = full_record();
  PodRecord undecided;
  undecided.name = "x";
  undecided.namespace_name = "y";
  const auto back = records_from_json(records_to_json({r, undecided}));
  ASSERT_TRUE(back) << back.error().to_string();
  ASSERT_EQ(back->size(), 2u);
  const PodRecord& b = back->front();
  EXPECT_EQ(b.uid, r.uid);
  EXPECT_EQ(b.label(), "shop/web-0");
  EXPECT_EQ(b.netns_path, r.netns_path);
  EXPECT_EQ(b.cni_addresses, r.cni_addresses);
  EXPECT_EQ(b.cookie, r.cookie);
  EXPECT_EQ(b.saved_sysctls, r.saved_sysctls);
  EXPECT_EQ(b.probed_addresses, r.probed_addresses);
  EXPECT_EQ(b.probed_ports, r.probed_ports);
  ASSERT_TRUE(b.decision);
  EXPECT_EQ(b.decision->SerializeAsString(), r.decision->SerializeAsString());
  EXPECT_FALSE(back->back().decision);
  EXPECT_FALSE(back->back().wanted());
}

TEST(Record, IgnoresFieldsOfANewerAgent) {
  const auto got =
      records_from_json(R"({"version":1,"future":1,"pods":[{"name":"a","namespace":"b","new":[],)"
                        R"("decision":{"uid":"u","enrol":true,"later":3}}]})");
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_TRUE(got->front().wanted());
}

TEST(Record, RefusesWhatItCannotRead) {
  for (const char* text : {"", "[]", "{", R"({"version":2})", R"({"version":1,"pods":[{"uid":3}]})",
                           R"({"version":1,"pods":[{"cniAddresses":["x"]}]})",
                           R"({"version":1,"pods":[{"decision":{"enrol":"maybe"}}]})",
                           R"({"version":1,"pods":[{"probedPorts":["a"]}]})"}) {
    const auto got = records_from_json(text);
    ASSERT_FALSE(got) << text;
    EXPECT_EQ(got.error().reason, Reason::kBadConfig) << text;
  }
}

TEST(Record, AChangedByteDoesNotFitTheChecksum) {
  std::string text = records_to_json({full_record()});
  const size_t at = text.find("web-0");
  ASSERT_NE(at, std::string::npos);
  text[at + 4] = '1';
  const auto got = records_from_json(text);
  ASSERT_FALSE(got);
  EXPECT_NE(got.error().detail.find("checksum"), std::string::npos) << got.error().detail;
}

class RecordFile : public ::testing::Test {
 protected:
  RecordFile() {
    std::string name = "/tmp/meltemi-records-XXXXXX";
    directory = ::mkdtemp(name.data());
    path = directory + "/enrolments.json";
  }
  ~RecordFile() override { std::filesystem::remove_all(directory); }
  void write(const std::string& text) {
    ASSERT_TRUE(sys::write_file_atomically(path, text, 0600).has_value());
  }
  std::string directory, path;
};

TEST_F(RecordFile, ThatIsAbsentHoldsNothing) {
  const auto kept = read_records(path);
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_TRUE(kept->records.empty());
  EXPECT_EQ(kept->problem, "");
}

TEST_F(RecordFile, ThatIsDamagedIsKeptAsideAndNamed) {
  const std::string whole = records_to_json({full_record()});
  for (const std::string& text : {whole.substr(0, whole.size() / 2), std::string("not JSON"),
                                  std::string(R"({"version":1,"checksum":"0","pods":[]})")}) {
    write(text);
    const auto kept = read_records(path);
    ASSERT_TRUE(kept) << kept.error().to_string();
    EXPECT_TRUE(kept->records.empty());
    EXPECT_NE(kept->problem.find(path + ".refused"), std::string::npos) << kept->problem;
    EXPECT_EQ(*sys::read_file(path + ".refused"), text);
    EXPECT_NE(read_records(path)->problem, "") << "damaged until it is written anew";
  }
  write(whole);
  ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
  EXPECT_NE(read_records(path)->problem.find("others may write it"), std::string::npos);
}

TEST_F(RecordFile, ThatCannotBeReadNowIsAnErrorAndStays) {
  const std::string whole = records_to_json({full_record()});
  write(whole);
  {
    const test::FewDescriptors none(0);
    const auto kept = read_records(path);
    ASSERT_FALSE(kept);
    EXPECT_EQ(kept.error().reason, Reason::kSystem);
    EXPECT_NE(kept.error().detail.find(path), std::string::npos) << kept.error().detail;
  }
  EXPECT_EQ(*sys::read_file(path), whole);
  EXPECT_EQ(read_records(path)->records.size(), 1u);
}

TEST(Record, BecomesASpec) {
  const auto spec = spec_of(full_record());
  ASSERT_TRUE(spec);
  EXPECT_EQ(spec->addresses, full_record().cni_addresses) << "CNI knows better than an old status";
  EXPECT_EQ(spec->probe_ports, std::vector<uint16_t>{8080});
  EXPECT_TRUE(spec->strict);
  EXPECT_EQ(spec->exclude_ports, std::vector<uint16_t>{25});
  ASSERT_EQ(spec->exclude_cidrs.size(), 1u);
  EXPECT_EQ(spec->exclude_cidrs[0].to_string(), "169.254.169.254/32");

  PodRecord without_cni = full_record();
  without_cni.cni_addresses.clear();
  EXPECT_EQ(spec_of(without_cni)->addresses, std::vector<IpAddress>{*IpAddress::parse("10.0.0.9")});
}

TEST(Record, ANamespaceThatSwitchesTheGuardOffHasUnguardedPods) {
  EXPECT_TRUE(spec_of(full_record())->guard) << "it is on by default";
  PodRecord off = full_record();
  off.decision->set_unguarded(true);
  EXPECT_FALSE(spec_of(off)->guard);
  const auto back = records_from_json(records_to_json({off}));
  ASSERT_TRUE(back) << back.error().to_string();
  EXPECT_FALSE(spec_of(back->front())->guard) << "after a restart of the agent too";
}

TEST(Record, MalformedDecisionsAreNamed) {
  const auto error_of = [](auto&& change) {
    PodRecord r = full_record();
    change(*r.decision);
    const auto spec = spec_of(r);
    EXPECT_FALSE(spec);
    return spec ? std::string() : spec.error().detail;
  };
  EXPECT_NE(error_of([](auto& d) { d.add_exclude_outbound_cidrs("10/33"); }).find("10/33"),
            std::string::npos);
  EXPECT_NE(error_of([](auto& d) { d.add_probe_ports(70000); }).find("70000"), std::string::npos);
  EXPECT_NE(error_of([](auto& d) { d.add_exclude_outbound_ports(0); }).find("excluded port"),
            std::string::npos);
  EXPECT_NE(error_of([](auto& d) { d.add_addresses("abc"); }).find("address"), std::string::npos);
}

TEST(Record, ADecisionFromTheWireMustNameItsPod) {
  const wire::PodEnrolment good = *full_record().decision;
  EXPECT_TRUE(decode_enrolment("u-1", good.SerializeAsString()));
  EXPECT_FALSE(decode_enrolment("u-2", good.SerializeAsString()));
  EXPECT_FALSE(decode_enrolment("u-1", "\xff\xff"));
  wire::PodEnrolment nameless = good;
  nameless.clear_name();
  EXPECT_FALSE(decode_enrolment("u-1", nameless.SerializeAsString()));
}

TEST(Options, NameTheFlagThatIsWrong) {
  Options o;
  EXPECT_NE(check(o).error().detail.find("--node-name"), std::string::npos);
  o.node_name = "n1";
  EXPECT_TRUE(check(o));
  o.tunnel_mark = o.capture_mark;
  EXPECT_NE(check(o).error().detail.find("mark"), std::string::npos);
  o.tunnel_mark = 1;
  o.probe_v4 = "fd00::1";
  EXPECT_NE(check(o).error().detail.find("--probe-address-v4"), std::string::npos);
  o.probe_v4 = "169.254.7.127";
  o.health_listen = "15022";
  EXPECT_NE(check(o).error().detail.find("--health-listen"), std::string::npos);
}

}  // namespace
}  // namespace meltemi::agent
