// What a container sees of Kubernetes: environment variables, volumes, service account token, DNS
// configuration. Reads ConfigMaps and Secrets; writes the volumes' files below one directory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/sandbox/container.h"
#include "userspace/sandbox/layout.h"
#include "userspace/sandbox/tokens.h"

namespace meltemi::sandbox {

// Where Kubernetes mounts the token of a pod's service account.
inline constexpr std::string_view kServiceAccountPath =
    "/var/run/secrets/kubernetes.io/serviceaccount";
// The ConfigMap that istiod writes into every namespace: root-cert.pem. The sandbox provides it
// itself.
inline constexpr std::string_view kRootCertConfigMap = "istio-ca-root-cert";

struct PodContext {
  const config::Object* pod = nullptr;         // desired, with uid and node
  const config::ObjectStore* store = nullptr;  // for ConfigMaps and Secrets
  const Layout* layout = nullptr;
  const TokenIssuer* tokens = nullptr;
  std::string bin_dir;  // first in PATH: a pod may run the mesh's own binaries
  std::vector<IpAddress> pod_ips, host_ips;
  std::string volume_dir;
};

// "NAME=value", in order; $(NAME) expanded. Error: a reference to what is not there.
Result<std::vector<std::string>> container_environment(const PodContext& context,
                                                       const config::kube::Container& container);
// `text` with $(NAME) replaced by values of `environment`; $$( is a literal $(.
std::string expand(std::string_view text, const std::map<std::string, std::string>& environment);

// Writes the files of all volumes of the pod. Called again, it renews tokens and changed
// ConfigMaps.
Status write_volumes(const PodContext& context);
// Where the container's mounts come from; includes the service account's, unless it is switched
// off.
Result<std::vector<ContainerRoot::Mount>> container_mounts(
    const PodContext& context, const config::kube::Container& container);

std::string resolv_conf(std::string_view ns);
std::string hosts_file(const config::Object& pod, const std::vector<IpAddress>& ips);
// metadata.name, status.podIP and the like; error names the path that is not known.
Result<std::string> downward_field(const PodContext& context, const std::string& path);

}  // namespace meltemi::sandbox
