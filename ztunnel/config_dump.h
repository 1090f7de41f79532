// /config_dump: what this process knows and does, in the JSON shape of Istio's ztunnel, so that
// `istioctl ztunnel-config` reads it. Must never contain a private key.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "userspace/model/store.h"
#include "userspace/pki/certificate_manager.h"
#include "userspace/xds/delta_client.h"
#include "ztunnel/pod_manager.h"

namespace meltemi::ztunnel {

struct ConfigDumpInput {
  const model::Snapshot* mesh = nullptr;
  std::vector<pki::CertificateEntry> certificates;
  std::vector<PodManager::Row> pods;
  std::vector<FlowRow> flows;
  std::string config_json;  // object
  std::optional<xds::ClientStatus> control_plane;
};
std::string config_dump(const ConfigDumpInput& input);

}  // namespace meltemi::ztunnel
