#include "userspace/codec/baggage.h"

#include <algorithm>

#include "userspace/codec/percent.h"

namespace meltemi::codec {
namespace {

constexpr std::string_view kTypes[] = {"deployment", "cronjob", "pod", "job"};

bool known_type(std::string_view type) {
  return std::find(std::begin(kTypes), std::end(kTypes), type) != std::end(kTypes);
}

// What may stand in a value as it is. '+' and '/' and '~' are safe in every parser we know.
bool plain(uint8_t c) {
  return c > 0x20 && c < 0x7f && c != ',' && c != ';' && c != '=' && c != '%' && c != '"' &&
         c != '\\';
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

void assign(Baggage& out, std::string_view key, std::string value) {
  if (key == "k8s.cluster.name") return void(out.cluster = std::move(value));
  if (key == "k8s.namespace.name") return void(out.namespace_name = std::move(value));
  if (key == "service.name") return void(out.service = std::move(value));
  if (key == "service.version") return void(out.version = std::move(value));
  if (key == "cloud.region") return void(out.region = std::move(value));
  if (key == "cloud.availability_zone") return void(out.zone = std::move(value));
  constexpr std::string_view kPrefix = "k8s.", kSuffix = ".name";
  if (!key.starts_with(kPrefix) || !key.ends_with(kSuffix)) return;
  if (key.size() < kPrefix.size() + kSuffix.size()) return;
  key.remove_prefix(kPrefix.size());
  key.remove_suffix(kSuffix.size());
  if (!known_type(key)) return;
  out.workload_type = key;
  out.workload_name = std::move(value);
}

}  // namespace

std::string format_baggage(const Baggage& b) {
  std::string out;
  auto put = [&out](std::string_view key, std::string_view value) {
    if (value.empty()) return;
    if (!out.empty()) out += ',';
    out += key;
    out += '=';
    percent_encode(out, value, plain);
  };
  put("k8s.cluster.name", b.cluster);
  put("k8s.namespace.name", b.namespace_name);
  if (known_type(b.workload_type)) put("k8s." + b.workload_type + ".name", b.workload_name);
  put("service.name", b.service);
  put("service.version", b.version);
  put("cloud.region", b.region);
  put("cloud.availability_zone", b.zone);
  return out;
}

Baggage parse_baggage(std::string_view header) {
  if (header.size() > kMaxBaggageBytes) {
    header = header.substr(0, kMaxBaggageBytes);
    const size_t comma = header.rfind(',');
    header = header.substr(0, comma == std::string_view::npos ? 0 : comma);
  }
  Baggage out;
  while (!header.empty()) {
    std::string_view member = header.substr(0, header.find(','));
    header.remove_prefix(std::min(header.size(), member.size() + 1));
    member = member.substr(0, member.find(';'));  // properties
    const size_t equals = member.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view raw = trim(member.substr(equals + 1));
    std::string value = percent_decode(raw);
    if (value.empty() || value.size() > kMaxBaggageValue || has_control(value)) continue;
    assign(out, trim(member.substr(0, equals)), std::move(value));
  }
  return out;
}

}  // namespace meltemi::codec
