// Records to and from JSON; see pod_record.h.
#include "userspace/agent/pod_record.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <nlohmann/json.hpp>

#include "userspace/base/crc32c.h"
#include "userspace/sys/own_file.h"

namespace meltemi::agent {
namespace {

using nlohmann::json;

constexpr size_t kMaxRecordBytes = 64 << 20;  // some KiB a pod

json addresses_to_json(const std::vector<IpAddress>& addresses) {
  json out = json::array();
  for (const IpAddress& ip : addresses) out.push_back(ip.to_string());
  return out;
}

std::unexpected<Error> malformed(std::string_view what) {
  return fail(Reason::kBadConfig, Fault::kInternal, fmt::format("saved state: {}", what));
}

Result<std::vector<IpAddress>> addresses_from_json(const json& list) {
  std::vector<IpAddress> out;
  for (const json& item : list) {
    const auto ip = IpAddress::parse(item.get<std::string>());
    if (!ip) return malformed(fmt::format("\"{}\" is no address", item.get<std::string>()));
    out.push_back(*ip);
  }
  return out;
}

std::string checksum_of(const json& pods) {
  return fmt::format("{:08x}", crc32c(pods.dump(-1, ' ', false, json::error_handler_t::replace)));
}

json record_to_json(const PodRecord& r) {
  json out = {{"uid", r.uid},
              {"name", r.name},
              {"namespace", r.namespace_name},
              {"netnsPath", r.netns_path},
              {"cniAddresses", addresses_to_json(r.cni_addresses)},
              {"netnsCookie", r.cookie},
              {"savedSysctls", r.saved_sysctls},
              {"probedAddresses", addresses_to_json(r.probed_addresses)},
              {"probedPorts", r.probed_ports}};
  if (r.decision) {
    std::string text;
    if (google::protobuf::util::MessageToJsonString(*r.decision, &text).ok())
      out["decision"] = json::parse(text);
  }
  return out;
}

Result<PodRecord> record_from_json(const json& in) {
  PodRecord r;
  r.uid = in.value("uid", "");
  r.name = in.value("name", "");
  r.namespace_name = in.value("namespace", "");
  r.netns_path = in.value("netnsPath", "");
  r.cookie = in.value("netnsCookie", uint64_t{0});
  r.saved_sysctls = in.value("savedSysctls", SavedSysctls());
  r.probed_ports = in.value("probedPorts", std::vector<uint16_t>());
  r.cni_addresses = MELTEMI_TRY(addresses_from_json(in.value("cniAddresses", json::array())));
  r.probed_addresses = MELTEMI_TRY(addresses_from_json(in.value("probedAddresses", json::array())));
  if (in.contains("decision")) {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    meltemi::node::v1::PodEnrolment decision;
    if (!google::protobuf::util::JsonStringToMessage(in["decision"].dump(), &decision, options)
             .ok())
      return malformed(fmt::format("the decision of pod {}", r.label()));
    r.decision = std::move(decision);
  }
  return r;
}

}  // namespace

Result<CaptureSpec> spec_of(const PodRecord& record) {
  CaptureSpec spec;
  spec.addresses = record.cni_addresses;
  if (!record.decision) return spec;
  const auto& d = *record.decision;
  const auto bad = [&](std::string_view field, std::string_view value) {
    return fail(
        Reason::kBadConfig, Fault::kConfig,
        fmt::format("PodEnrolment of {}: {} \"{}\" is malformed", record.label(), field, value));
  };
  for (const std::string& wire : d.addresses()) {
    const auto ip = IpAddress::from_bytes(as_bytes(wire));
    if (!ip) return bad("address", fmt::format("of {} bytes", wire.size()));
    // What CNI just assigned is the newer knowledge: status.podIPs may be of an earlier sandbox.
    if (record.cni_addresses.empty()) spec.addresses.push_back(*ip);
  }
  for (const uint32_t port : d.probe_ports()) {
    if (port == 0 || port > 65535) return bad("probe port", std::to_string(port));
    spec.probe_ports.push_back(static_cast<uint16_t>(port));
  }
  for (const uint32_t port : d.exclude_outbound_ports()) {
    if (port == 0 || port > 65535) return bad("excluded port", std::to_string(port));
    spec.exclude_ports.push_back(static_cast<uint16_t>(port));
  }
  for (const std::string& text : d.exclude_outbound_cidrs()) {
    const auto cidr = Cidr::parse(text);
    if (!cidr) return bad("excluded CIDR", text);
    spec.exclude_cidrs.push_back(*cidr);
  }
  spec.strict = d.inbound_mode() == meltemi::node::v1::STRICT;
  spec.guard = !d.unguarded();
  return spec;
}

std::string records_to_json(const std::vector<PodRecord>& records) {
  json pods = json::array();
  for (const PodRecord& r : records) pods.push_back(record_to_json(r));
  return json{{"version", 1}, {"checksum", checksum_of(pods)}, {"pods", pods}}.dump(
             2, ' ', false, json::error_handler_t::replace) +
         "\n";
}

Result<std::vector<PodRecord>> records_from_json(std::string_view text) {
  // The library throws on a wrong type; this file is the only place that sees it.
  try {
    const json document = json::parse(text);
    if (document.value("version", 0) != 1) return malformed("its version is not 1");
    const json pods = document.value("pods", json::array());
    // Agents before this one wrote none.
    if (document.contains("checksum") && document["checksum"] != checksum_of(pods))
      return malformed("its checksum does not fit");
    std::vector<PodRecord> out;
    for (const json& pod : pods) out.push_back(MELTEMI_TRY(record_from_json(pod)));
    return out;
  } catch (const json::exception& e) {
    return malformed(e.what());
  }
}

Result<KeptRecords> read_records(const std::string& path) {
  KeptRecords out;
  Result<sys::OwnFile> file = sys::read_own_file(path, kMaxRecordBytes);
  Result<std::vector<PodRecord>> records =
      file ? records_from_json(file->content) : fail(file.error());
  if (records) {
    out.records = std::move(*records);
    return out;
  }
  Error& why = records.error();
  if (why.reason == Reason::kNotFound) return out;
  why.detail = path + ": " + why.detail;
  if (why.reason != Reason::kBadConfig) return fail(std::move(why));
  const std::string aside = MELTEMI_TRY(sys::keep_aside(path));
  out.problem = fmt::format(
      "{}; it is not used, and lies at {}. Captured pods stay so; which sysctls they had before is not known",
      why.detail, aside);
  return out;
}

}  // namespace meltemi::agent
