// The labels and annotations of the mesh: which are read, on which kinds, with which values. One
// table, so that a key which nobody reads, stands on the wrong object or has a value that means
// nothing is named instead of being as if it were not there. Must never change an object.
#include "userspace/config/mesh_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "userspace/base/address.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

constexpr uint8_t kLabel = 1, kAnnotation = 2;

constexpr uint32_t on(std::initializer_list<Kind> kinds) {
  uint32_t out = 0;
  for (Kind kind : kinds) out |= 1u << static_cast<int>(kind);
  return out;
}
constexpr uint32_t kEverywhere = ~0u;

enum class Values : uint8_t {
  kAny,
  kListed,   // one of `values`; another is as if the key were not there
  kStrict,   // one of `values`; another would shut something off, so the object is refused
  kName,     // of an object, or "none"
  kPorts,    // a list, separated by commas
  kRanges,   // a list of prefixes
  kElsewhere,  // checked where the kind is
};

struct MeshKey {
  std::string_view key;
  uint8_t where;
  uint32_t kinds;
  Values rule;
  std::string_view values[3] = {};
};

// istio.io/rev is printed by `meltemi waypoint list`; service.istio.io/* and istio.io/config are
// what controllers and metrics write and read; sidecar.istio.io/status is what an injector leaves.
constexpr MeshKey kKeys[] = {
    {"istio.io/dataplane-mode", kLabel, on({Kind::kNamespace, Kind::kPod}), Values::kListed,
     {"ambient", "none"}},
    {"istio.io/dataplane-mode", kAnnotation, on({Kind::kPod}), Values::kListed,
     {"ambient", "none"}},
    {"sidecar.istio.io/inject", kLabel | kAnnotation, on({Kind::kPod}), Values::kListed,
     {"true", "false"}},
    {"istio-injection", kLabel, on({Kind::kNamespace}), Values::kListed, {"enabled", "disabled"}},
    {"sidecar.istio.io/status", kAnnotation, on({Kind::kPod}), Values::kAny},
    {"istio.io/use-waypoint", kLabel, on({Kind::kNamespace, Kind::kPod, Kind::kService}),
     Values::kName},
    {"istio.io/use-waypoint-namespace", kLabel,
     on({Kind::kNamespace, Kind::kPod, Kind::kService}), Values::kName},
    {"istio.io/waypoint-for", kLabel, on({Kind::kGateway}), Values::kElsewhere},
    {"istio.io/waypoint-for", kLabel, on({Kind::kGatewayClass}), Values::kStrict,
     {"service", "workload", "all"}},
    {"istio.io/for-service-account", kAnnotation, on({Kind::kGateway}), Values::kElsewhere},
    {"gateway.istio.io/service-account", kAnnotation, on({Kind::kGateway}), Values::kName},
    {"gateway.istio.io/managed", kLabel, kEverywhere, Values::kAny},
    {"networking.istio.io/tunnel", kLabel, on({Kind::kPod}), Values::kListed, {"http"}},
    {"networking.istio.io/traffic-distribution", kAnnotation,
     on({Kind::kNamespace, Kind::kService}), Values::kListed,
     {"PreferClose", "PreferSameZone", "PreferSameNode"}},
    {"traffic.sidecar.istio.io/excludeOutboundIPRanges", kAnnotation, on({Kind::kPod}),
     Values::kRanges},
    {"traffic.sidecar.istio.io/excludeOutboundPorts", kAnnotation, on({Kind::kPod}),
     Values::kPorts},
    {"meltemi.io/egress-guard", kAnnotation, on({Kind::kNamespace}), Values::kListed,
     {"disabled", "enabled"}},
    {"istio.io/dry-run", kAnnotation, on({Kind::kAuthorizationPolicy}), Values::kElsewhere},
    {"service.istio.io/canonical-name", kLabel, on({Kind::kPod}), Values::kAny},
    {"service.istio.io/canonical-revision", kLabel, on({Kind::kPod}), Values::kAny},
    {"istio.io/config", kLabel, kEverywhere, Values::kAny},
    {"istio.io/rev", kLabel, on({Kind::kGateway}), Values::kAny},
    {"topology.istio.io/subzone", kLabel, on({Kind::kNode}), Values::kAny},
};

// Whose keys the mesh answers for: others' are nobody's business here.
bool is_of_the_mesh(std::string_view key) {
  if (key == "istio-injection") return true;
  const std::string_view domain = key.substr(0, std::min(key.find('/'), key.size()));
  if (domain.size() == key.size() || domain == "sandbox.meltemi.io") return false;
  if (domain == "internal.istio.io") return false;  // refused where objects are checked
  for (std::string_view mine : {"istio.io", "meltemi.io"}) {
    if (domain == mine) return true;
    if (domain.ends_with(mine) && domain[domain.size() - mine.size() - 1] == '.') return true;
  }
  return false;
}

bool is_port(std::string_view text) {
  uint16_t port = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port != 0;
}

bool is_range(std::string_view text) { return Cidr::parse(text).has_value(); }

// The first item of a list that is none, "" if all are.
template <typename Fits>
std::string_view misfit(std::string_view list, Fits&& fits) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    std::string_view item = list.substr(0, comma);
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    if (!item.empty() && !fits(item)) return item;
  }
  return {};
}

class KeyCheck {
 public:
  KeyCheck(Check& check, Kind kind, const std::string& metadata, uint8_t where)
      : check_(check), kind_(kind), where_(where),
        map_(metadata + (where == kLabel ? ".labels" : ".annotations")) {}

  void key(const std::string& key, const std::string& value) {
    if (!is_of_the_mesh(key)) return;
    const std::string field = fmt::format("{}[{}]", map_, key);
    const MeshKey* other = nullptr;
    for (const MeshKey& row : kKeys) {
      if (row.key != key) continue;
      other = &row;
      if ((row.where & where_) && (row.kinds >> static_cast<int>(kind_) & 1)) {
        this->value(field, row, value);
        return;
      }
    }
    other == nullptr ? unknown(field, key) : misplaced(field, *other);
  }

 private:
  void unknown(const std::string& field, std::string_view key) {
    std::vector<std::string_view> known;
    for (const MeshKey& row : kKeys) known.push_back(row.key);
    const std::string_view near = did_you_mean(key, known);
    check_.warn(field, fmt::format("has no effect: nothing here reads {}", key),
                near.empty() ? "Remove it, or do not rely on it"
                             : fmt::format("Did you mean `{}`?", near),
                kCodeIgnoredField);
  }

  void misplaced(const std::string& field, const MeshKey& row) {
    std::string kinds;
    bool pods = false;
    for (const MeshKey& other : kKeys) {
      if (other.key != row.key) continue;
      for (const KindInfo& info : all_kinds()) {
        if (!(other.kinds >> static_cast<int>(info.kind) & 1)) continue;
        kinds += fmt::format("{}{} of a {}", kinds.empty() ? "" : ", ",
                             other.where == kLabel        ? "label"
                             : other.where == kAnnotation ? "annotation"
                                                          : "label or annotation",
                             info.name);
        pods |= info.kind == Kind::kPod;
      }
    }
    const bool makes_pods =
        kind_ == Kind::kDeployment || kind_ == Kind::kReplicaSet || kind_ == Kind::kJob;
    check_.warn(field, fmt::format("has no effect here: it is read as {}", kinds),
                pods && makes_pods ? "Move it to spec.template.metadata" : "Move it there",
                kCodeIgnoredField);
  }

  void value(const std::string& field, const MeshKey& row, const std::string& value) {
    std::vector<std::string_view> values;
    for (std::string_view one : row.values) {
      if (!one.empty()) values.push_back(one);
    }
    const bool listed = std::find(values.begin(), values.end(), value) != values.end();
    switch (row.rule) {
      case Values::kAny:
      case Values::kElsewhere:
        return;
      case Values::kListed:
      case Values::kStrict: {
        if (listed) return;
        const std::string_view near = did_you_mean(value, values);
        const std::string fix = near.empty() ? fmt::format("Write {}", fmt::join(values, " or "))
                                             : fmt::format("Did you mean `{}`?", near);
        if (row.rule == Values::kStrict) {
          check_.error(field, fmt::format("unknown value \"{}\"", value), fix);
        } else {
          check_.warn(field,
                      fmt::format("\"{}\" means nothing here, as if the {} were not there", value,
                                  where_ == kLabel ? "label" : "annotation"),
                      fix, kCodeIgnoredField);
        }
        return;
      }
      case Values::kName:
        if (is_dns_subdomain(value)) return;
        check_.error(field, fmt::format("\"{}\" is not a legal name", value),
                     "Name an object, or write none");
        return;
      case Values::kPorts:
        list(field, misfit(value, is_port), "a port", "Write numbers from 1 to 65535");
        return;
      case Values::kRanges:
        list(field, misfit(value, is_range), "an address or prefix", "Write it like 10.0.0.0/8");
        return;
    }
  }

  void list(const std::string& field, std::string_view bad, std::string_view what,
            std::string fix) {
    if (bad.empty()) return;
    check_.warn(field, fmt::format("\"{}\" is not {}, and is left out of the list", bad, what),
                std::move(fix), kCodeIgnoredField);
  }

  Check& check_;
  Kind kind_;
  uint8_t where_;
  std::string map_;
};

}  // namespace

void check_mesh_keys(Check& check, Kind kind, const std::string& metadata,
                     const kube::ObjectMeta& meta) {
  KeyCheck labels(check, kind, metadata, kLabel);
  for (const auto& [key, value] : meta.labels()) labels.key(key, value);
  KeyCheck annotations(check, kind, metadata, kAnnotation);
  for (const auto& [key, value] : meta.annotations()) annotations.key(key, value);
}

}  // namespace meltemi::config
