#include "userspace/sandbox/dns.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "userspace/sandbox/layout.h"
#include "userspace/sandbox/services.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;

constexpr size_t kHeaderBytes = 12;
constexpr size_t kMaxNameBytes = 255;
constexpr size_t kMaxLabelBytes = 63;
constexpr size_t kMaxCnameChain = 8;

constexpr uint16_t kTypeA = 1, kTypeCname = 5, kTypeAaaa = 28, kTypeAny = 255;
constexpr uint16_t kClassIn = 1;
constexpr uint16_t kFlagResponse = 0x8000, kFlagAuthoritative = 0x0400, kFlagTruncated = 0x0200,
                   kFlagRecursionDesired = 0x0100, kFlagRecursionAvailable = 0x0080;
constexpr uint16_t kOpcodeMask = 0x7800;
enum Rcode : uint16_t { kNoError = 0, kFormatError = 1, kNameError = 3, kNotImplemented = 4 };

struct Question {
  std::string name;  // lower case, dotted, no trailing dot
  uint16_t type = 0;
  size_t end = 0;  // offset after the question
};

// The one question of a message; nullopt if malformed.
std::optional<Question> parse_question(ByteView query) {
  Question q;
  size_t at = kHeaderBytes;
  while (true) {
    if (at >= query.size()) return std::nullopt;
    const size_t length = query[at++];
    if (length == 0) break;
    if (length > kMaxLabelBytes || at + length > query.size()) return std::nullopt;
    if (!q.name.empty()) q.name += '.';
    for (size_t i = 0; i < length; ++i) {
      const char c = static_cast<char>(query[at + i]);
      if (c == '.' || c == '\0') return std::nullopt;  // would make another name of it
      q.name += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    }
    at += length;
    if (q.name.size() > kMaxNameBytes) return std::nullopt;
  }
  if (at + 4 > query.size()) return std::nullopt;
  q.type = load_be<uint16_t>(&query[at]);
  if (load_be<uint16_t>(&query[at + 2]) != kClassIn) return std::nullopt;
  q.end = at + 4;
  return q;
}

void put16(std::string* out, uint16_t v) {
  out->push_back(static_cast<char>(v >> 8));
  out->push_back(static_cast<char>(v));
}

void put_name(std::string* out, std::string_view name) {
  while (!name.empty()) {
    const size_t dot = std::min(name.find('.'), name.size());
    out->push_back(static_cast<char>(dot));
    out->append(name.substr(0, dot));
    name.remove_prefix(std::min(dot + 1, name.size()));
  }
  out->push_back('\0');
}

std::string record(std::string_view owner, uint16_t type, std::string_view data) {
  std::string out;
  put_name(&out, owner);
  put16(&out, type);
  put16(&out, kClassIn);
  put16(&out, 0);
  put16(&out, kDnsTtlSeconds);
  put16(&out, static_cast<uint16_t>(data.size()));
  out += data;
  return out;
}

struct Answer {
  bool exists = false;
  std::vector<std::string> records;
};

Answer look_up(const DnsZone& zone, const Question& q) {
  Answer answer;
  std::string_view name = q.name;
  for (size_t hop = 0; hop < kMaxCnameChain; ++hop) {
    const auto found = zone.names.find(name);
    if (found == zone.names.end()) return answer;
    answer.exists = true;
    const DnsZone::Name& entry = found->second;
    if (entry.cname.empty()) {
      for (const IpAddress& ip : entry.addresses) {
        const uint16_t type = ip.is_v4() ? kTypeA : kTypeAaaa;
        if (q.type == type || q.type == kTypeAny)
          answer.records.push_back(record(name, type, ip.wire()));
      }
      return answer;
    }
    std::string target;
    put_name(&target, entry.cname);
    answer.records.push_back(record(name, kTypeCname, target));
    if (q.type == kTypeCname) return answer;
    name = entry.cname;
  }
  return answer;
}

std::string header(ByteView query, uint16_t flags, uint16_t questions, uint16_t answers) {
  const uint16_t asked = load_be<uint16_t>(&query[2]);
  std::string out(reinterpret_cast<const char*>(query.data()), 2);
  put16(&out, kFlagResponse | kFlagAuthoritative | kFlagRecursionAvailable |
                  (asked & (kOpcodeMask | kFlagRecursionDesired)) | flags);
  put16(&out, questions);
  put16(&out, answers);
  put16(&out, 0);
  put16(&out, 0);
  return out;
}

std::string service_name(const Object& service) {
  return fmt::format("{}.{}.svc.{}", service.name(), service.ns(), kClusterDomain);
}

// "nginx-1.web.shop.svc.cluster.local" for a pod whose hostname and subdomain ask for it; else "".
std::string pod_name_in(const config::Object& service, const config::Object& pod) {
  const auto& spec = pod.as<config::kube::Pod>().spec();
  if (spec.hostname().empty() || spec.subdomain() != service.name()) return {};
  return spec.hostname() + "." + service_name(service);
}

}  // namespace

DnsZone build_zone(const config::ObjectStore& store,
                   const std::map<std::string, std::vector<IpAddress>>& fixed) {
  DnsZone zone;
  for (const auto& [name, addresses] : fixed) zone.names[name].addresses = addresses;
  for (const ObjectPtr& service : store.list(Kind::kService)) {
    DnsZone::Name& entry = zone.names[service_name(*service)];
    const auto& spec = service->as<config::kube::Service>().spec();
    if (spec.type() == "ExternalName") {
      entry.cname = spec.external_name();
    } else if (spec.cluster_ip() == "None") {
      for (const ObjectPtr& pod : endpoints_of(store, *service)) {
        const std::vector<IpAddress> ips = pod_ips(*pod);
        entry.addresses.insert(entry.addresses.end(), ips.begin(), ips.end());
        if (const std::string name = pod_name_in(*service, *pod); !name.empty()) {
          std::vector<IpAddress>& own = zone.names[name].addresses;
          own.insert(own.end(), ips.begin(), ips.end());
        }
      }
    } else {
      for (const IpAddress& ip : cluster_ips(*service)) entry.addresses.push_back(ip);
    }
  }
  return zone;
}

std::string answer_dns(ByteView query, const DnsZone& zone, size_t max_bytes) {
  if (query.size() < kHeaderBytes) return {};
  const uint16_t flags = load_be<uint16_t>(&query[2]);
  if (flags & kFlagResponse) return {};  // answering an answer would start a loop
  if (flags & kOpcodeMask) return header(query, kNotImplemented, 0, 0);
  if (load_be<uint16_t>(&query[4]) != 1) return header(query, kFormatError, 0, 0);
  const auto question = parse_question(query);
  if (!question) return header(query, kFormatError, 0, 0);

  const Answer answer = look_up(zone, *question);
  const std::string asked(as_text(query.subspan(kHeaderBytes, question->end - kHeaderBytes)));
  std::string records;
  uint16_t count = 0;
  for (const std::string& r : answer.records) {
    if (kHeaderBytes + asked.size() + records.size() + r.size() > max_bytes)
      return header(query, kFlagTruncated, 1, count) + asked + records;
    records += r;
    ++count;
  }
  return header(query, answer.exists ? kNoError : kNameError, 1, count) + asked + records;
}

}  // namespace meltemi::sandbox
