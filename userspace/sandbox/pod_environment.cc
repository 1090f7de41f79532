#include "userspace/sandbox/pod_environment.h"

#include <fmt/format.h>

#include <filesystem>

#include "userspace/sys/files.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::ObjectPtr;
namespace kube = config::kube;

constexpr std::string_view kDefaultPath =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
// The volume that Kubernetes' admission adds to every pod.
constexpr std::string_view kTokenVolume = "kube-api-access";

using Files = std::map<std::string, std::string>;

std::unexpected<Error> missing(std::string what, std::string fix) {
  return fail(Reason::kNotFound, Fault::kConfig, fmt::format("{} not found. {}", what, fix));
}

Files data_of(const kube::ConfigMap& map) {
  Files out(map.data().begin(), map.data().end());
  out.insert(map.binary_data().begin(), map.binary_data().end());
  return out;
}

Files data_of(const kube::Secret& secret) {
  Files out(secret.data().begin(), secret.data().end());
  for (const auto& [key, value] : secret.string_data()) out[key] = value;
  return out;
}

// nullopt-like: `found` false when the object is absent.
Result<Files> load_data(const PodContext& c, Kind kind, const std::string& name, bool optional) {
  const std::string& ns = c.pod->ns();
  if (const ObjectPtr object = c.store->find(kind, ns, name))
    return kind == Kind::kConfigMap ? data_of(object->as<kube::ConfigMap>())
                                    : data_of(object->as<kube::Secret>());
  if (kind == Kind::kConfigMap && name == kRootCertConfigMap) {
    Files out;
    out["root-cert.pem"] = MELTEMI_TRY(sys::read_file(c.layout->root_cert()));
    return out;
  }
  if (optional) return Files{};
  const std::string_view word = config::kind_info(kind).name;
  return missing(fmt::format("{} {}/{}", word, ns, name), fmt::format("Apply that {}", word));
}

Result<std::string> load_key(const PodContext& c, Kind kind, const kube::KeySelector& selector,
                             bool* absent) {
  const Files files = MELTEMI_TRY(load_data(c, kind, selector.name(), selector.optional()));
  const auto value = files.find(selector.key());
  *absent = value == files.end();
  if (!*absent) return value->second;
  if (selector.optional()) return std::string();
  return missing(fmt::format("key \"{}\" of {} {}/{}", selector.key(), config::kind_info(kind).name,
                             c.pod->ns(), selector.name()),
                 "Add the key, or set optional: true");
}

Result<std::string> value_from(const PodContext& c, const kube::EnvVarSource& source,
                               bool* absent) {
  if (source.has_field_ref()) return downward_field(c, source.field_ref().field_path());
  if (source.has_config_map_key_ref())
    return load_key(c, Kind::kConfigMap, source.config_map_key_ref(), absent);
  if (source.has_secret_key_ref())
    return load_key(c, Kind::kSecret, source.secret_key_ref(), absent);
  return std::string();
}

std::string join_ips(const std::vector<IpAddress>& ips) {
  std::string out;
  for (const IpAddress& ip : ips) out += (out.empty() ? "" : ",") + ip.to_string();
  return out;
}

// "metadata.labels['app']" -> "app"; empty if `path` is not of that form.
std::string_view subscript(std::string_view path, std::string_view map) {
  if (!path.starts_with(map)) return {};
  path.remove_prefix(map.size());
  if (!path.starts_with("['") || !path.ends_with("']")) return {};
  return path.substr(2, path.size() - 4);
}

std::string label_lines(const google::protobuf::Map<std::string, std::string>& labels) {
  const std::map<std::string, std::string> sorted(labels.begin(), labels.end());
  std::string out;
  for (const auto& [key, value] : sorted) out += fmt::format("{}=\"{}\"\n", key, value);
  return out;
}

// Only `items` if there are any, at their paths.
template <typename Items>
Result<Files> pick(const Files& all, const Items& items, bool optional, std::string_view what) {
  if (items.empty()) return all;
  Files out;
  for (const auto& item : items) {
    const auto value = all.find(item.key());
    if (value != all.end())
      out[item.path()] = value->second;
    else if (!optional)
      return missing(fmt::format("key \"{}\" of {}", item.key(), what), "Add the key");
  }
  return out;
}

Result<Files> config_map_files(const PodContext& c, const kube::ConfigMapVolumeSource& source) {
  const Files all = MELTEMI_TRY(load_data(c, Kind::kConfigMap, source.name(), source.optional()));
  return pick(all, source.items(), source.optional(), "ConfigMap " + source.name());
}

Result<Files> secret_files(const PodContext& c, const std::string& name,
                           const google::protobuf::RepeatedPtrField<kube::KeyToPath>& items,
                           bool optional) {
  const Files all = MELTEMI_TRY(load_data(c, Kind::kSecret, name, optional));
  return pick(all, items, optional, "Secret " + name);
}

Result<Files> downward_files(const PodContext& c, const kube::DownwardApiVolumeSource& source) {
  Files out;
  for (const auto& item : source.items())
    out[item.path()] = MELTEMI_TRY(downward_field(c, item.field_ref().field_path()));
  return out;
}

TokenIssuer::Subject subject_of(const PodContext& c) {
  const auto& spec = c.pod->as<kube::Pod>().spec();
  const ObjectPtr account =
      c.store->find(Kind::kServiceAccount, c.pod->ns(), spec.service_account_name());
  return {c.pod->ns(), spec.service_account_name(), c.pod->name(), c.pod->meta().uid(),
          spec.node_name(), account ? account->meta().uid() : std::string()};
}

Result<Files> projected_files(const PodContext& c, const kube::ProjectedVolumeSource& source) {
  Files out;
  for (const kube::VolumeProjection& projection : source.sources()) {
    Files part;
    if (projection.has_service_account_token()) {
      const auto& token = projection.service_account_token();
      part[token.path()] = MELTEMI_TRY(c.tokens->sign(subject_of(c), token.audience()));
    } else if (projection.has_config_map()) {
      part = MELTEMI_TRY(config_map_files(c, projection.config_map()));
    } else if (projection.has_secret()) {
      const auto& secret = projection.secret();
      part = MELTEMI_TRY(secret_files(c, secret.name(), secret.items(), secret.optional()));
    } else if (projection.has_downward_api()) {
      part = MELTEMI_TRY(downward_files(c, projection.downward_api()));
    }
    out.merge(part);
  }
  return out;
}

Result<Files> volume_files(const PodContext& c, const kube::Volume& volume) {
  if (volume.has_config_map()) return config_map_files(c, volume.config_map());
  if (volume.has_secret()) {
    const auto& secret = volume.secret();
    return secret_files(c, secret.secret_name(), secret.items(), secret.optional());
  }
  if (volume.has_projected()) return projected_files(c, volume.projected());
  if (volume.has_downward_api()) return downward_files(c, volume.downward_api());
  return Files{};  // emptyDir
}

// What is secret is for root only, unless the volume says otherwise: a program that gives up root names
// the mode that it needs.
constexpr mode_t kOpenFile = 0644, kSecretFile = 0600;

mode_t mode_of(const kube::Volume& volume) {
  if (volume.has_secret())
    return volume.secret().default_mode() != 0 ? volume.secret().default_mode() : kSecretFile;
  if (volume.has_projected()) {
    const auto& projected = volume.projected();
    if (projected.default_mode() != 0) return projected.default_mode();
    for (const kube::VolumeProjection& source : projected.sources())
      if (source.has_service_account_token() || source.has_secret()) return kSecretFile;
  }
  if (volume.has_config_map() && volume.config_map().default_mode() != 0)
    return volume.config_map().default_mode();
  if (volume.downward_api().default_mode() != 0) return volume.downward_api().default_mode();
  return kOpenFile;
}

Status write_files(const std::string& directory, const Files& files, mode_t mode) {
  MELTEMI_TRY(sys::make_directories(directory, 0755));
  for (const auto& [name, content] : files) {
    const std::filesystem::path relative(name);
    if (relative.is_absolute() || name.find("..") != std::string::npos)
      return fail(
          Reason::kBadConfig, Fault::kConfig,
          fmt::format("volume path \"{}\" leaves its volume. Use a relative path without ..",
                      name));
    const std::string path = directory + "/" + name;
    MELTEMI_TRY(sys::make_directories(std::filesystem::path(path).parent_path(), 0755));
    MELTEMI_TRY(sys::write_file_atomically(path, content, mode));
  }
  return {};
}

bool wants_token(const PodContext& c) {
  const auto& spec = c.pod->as<kube::Pod>().spec();
  if (spec.has_automount_service_account_token()) return spec.automount_service_account_token();
  const ObjectPtr account =
      c.store->find(Kind::kServiceAccount, c.pod->ns(), spec.service_account_name());
  if (!account) return true;
  const auto& body = account->as<kube::ServiceAccount>();
  return !body.has_automount_service_account_token() || body.automount_service_account_token();
}

Status write_token_volume(const PodContext& c) {
  Files files;
  files["token"] =
      MELTEMI_TRY(c.tokens->sign(subject_of(c), "https://kubernetes.default.svc"));
  files["namespace"] = c.pod->ns();
  if (const auto root = sys::read_file(c.layout->root_cert())) files["ca.crt"] = *root;
  return write_files(fmt::format("{}/{}", c.volume_dir, kTokenVolume), files, kSecretFile);
}

}  // namespace

Result<std::string> downward_field(const PodContext& c, const std::string& path) {
  const config::Object& pod = *c.pod;
  const auto& spec = pod.as<kube::Pod>().spec();
  if (path == "metadata.name") return pod.name();
  if (path == "metadata.namespace") return pod.ns();
  if (path == "metadata.uid") return pod.meta().uid();
  if (path == "metadata.labels") return label_lines(pod.meta().labels());
  if (path == "metadata.annotations") return label_lines(pod.meta().annotations());
  if (path == "spec.nodeName") return spec.node_name();
  if (path == "spec.serviceAccountName") return spec.service_account_name();
  if (path == "status.podIP") return c.pod_ips.empty() ? std::string() : c.pod_ips[0].to_string();
  if (path == "status.podIPs") return join_ips(c.pod_ips);
  if (path == "status.hostIP")
    return c.host_ips.empty() ? std::string() : c.host_ips[0].to_string();
  if (path == "status.hostIPs") return join_ips(c.host_ips);
  if (const auto key = subscript(path, "metadata.labels"); !key.empty())
    return std::string(pod.label(key));
  if (const auto key = subscript(path, "metadata.annotations"); !key.empty())
    return std::string(pod.annotation(key));
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("fieldPath \"{}\" is not one that a pod has. Use metadata.name, "
                          "metadata.namespace, metadata.uid, metadata.labels['x'], spec.nodeName, "
                          "spec.serviceAccountName, status.podIP or status.hostIP",
                          path));
}

std::string expand(std::string_view text, const std::map<std::string, std::string>& environment) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '$' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    if (text[i + 1] == '$') {
      out += text[i++];
      continue;
    }
    const size_t end = text[i + 1] == '(' ? text.find(')', i) : std::string_view::npos;
    const auto value = end == std::string_view::npos
                           ? environment.end()
                           : environment.find(std::string(text.substr(i + 2, end - i - 2)));
    if (value == environment.end()) {  // as Kubernetes: what is not known stays as it is
      out += text[i];
      continue;
    }
    out += value->second;
    i = end;
  }
  return out;
}

Result<std::vector<std::string>> container_environment(const PodContext& c,
                                                       const kube::Container& container) {
  std::map<std::string, std::string> values;
  values["PATH"] = fmt::format("{}:{}", c.bin_dir, kDefaultPath);
  values["HOSTNAME"] = c.pod->name();
  values["HOME"] = "/root";
  for (const kube::EnvFromSource& source : container.env_from()) {
    const bool secret = source.has_secret_ref();
    const auto& ref = secret ? source.secret_ref() : source.config_map_ref();
    const Files files = MELTEMI_TRY(
        load_data(c, secret ? Kind::kSecret : Kind::kConfigMap, ref.name(), ref.optional()));
    for (const auto& [key, value] : files) values[source.prefix() + key] = value;
  }
  for (const kube::EnvVar& variable : container.env()) {
    bool absent = false;
    std::string value = variable.has_value_from()
                            ? MELTEMI_TRY(value_from(c, variable.value_from(), &absent))
                            : expand(variable.value(), values);
    if (!absent) values[variable.name()] = std::move(value);
  }
  std::vector<std::string> out;
  for (const auto& [key, value] : values) out.push_back(key + "=" + value);
  return out;
}

Status write_volumes(const PodContext& c) {
  for (const kube::Volume& volume : c.pod->as<kube::Pod>().spec().volumes()) {
    const Files files = MELTEMI_TRY(volume_files(c, volume));
    MELTEMI_TRY(write_files(c.volume_dir + "/" + volume.name(), files, mode_of(volume)));
  }
  if (wants_token(c)) MELTEMI_TRY(write_token_volume(c));
  return {};
}

Result<std::vector<ContainerRoot::Mount>> container_mounts(const PodContext& c,
                                                           const kube::Container& container) {
  std::vector<ContainerRoot::Mount> out;
  bool token_mounted = false;
  for (const kube::VolumeMount& mount : container.volume_mounts()) {
    std::string source = c.volume_dir + "/" + mount.name();
    if (!mount.sub_path().empty()) {
      source += "/" + mount.sub_path();
      std::error_code error;
      if (!std::filesystem::exists(source, error)) MELTEMI_TRY(sys::make_directories(source, 0755));
    }
    token_mounted = token_mounted || mount.mount_path() == kServiceAccountPath;
    out.push_back({std::move(source), mount.mount_path(), mount.read_only()});
  }
  if (!token_mounted && wants_token(c))
    out.push_back(
        {fmt::format("{}/{}", c.volume_dir, kTokenVolume), std::string(kServiceAccountPath), true});
  // The mesh's programs, which may lie where a container sees nothing of the machine.
  out.push_back({c.bin_dir, c.bin_dir, true});
  return out;
}

std::string resolv_conf(std::string_view ns) {
  return fmt::format(
      "search {0}.svc.{1} svc.{1} {1}\nnameserver {2}\noptions ndots:5 timeout:2 attempts:2\n", ns,
      kClusterDomain, dns_address().v4.to_string());
}

std::string hosts_file(const config::Object& pod, const std::vector<IpAddress>& ips) {
  std::string out = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
  const auto& spec = pod.as<kube::Pod>().spec();
  const std::string host = spec.hostname().empty() ? pod.name() : spec.hostname();
  const std::string full =
      spec.subdomain().empty()
          ? ""
          : fmt::format("{}.{}.{}.svc.{}\t", host, spec.subdomain(), pod.ns(), kClusterDomain);
  for (const IpAddress& ip : ips) out += fmt::format("{}\t{}{}\n", ip.to_string(), full, host);
  return out;
}

}  // namespace meltemi::sandbox
