#include "userspace/codec/cni.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "userspace/codec/percent.h"

namespace meltemi::codec::cni {
namespace {

using Json = nlohmann::ordered_json;

std::unexpected<Failure> failure(Code code, std::string message, std::string details = "") {
  return std::unexpected<Failure>(Failure{code, std::move(message), std::move(details)});
}

bool alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Spec, "Parameters": must start with an alphanumeric character.
bool valid_container_id(std::string_view id) {
  return !id.empty() && alphanumeric(id[0]) && std::all_of(id.begin(), id.end(), [](char c) {
    return alphanumeric(c) || c == '_' || c == '.' || c == '-';
  });
}

// As the kernel and libcni have it.
bool valid_ifname(std::string_view name) {
  return !name.empty() && name.size() <= 15 && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), [](char c) {
           return c == '/' || c == ':' || c == ' ' || static_cast<uint8_t>(c) < 0x20;
         });
}

void read_args(std::string_view args, Environment& out) {
  while (!args.empty()) {
    const std::string_view pair = args.substr(0, args.find(';'));
    args.remove_prefix(std::min(args.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view key = pair.substr(0, equals), value = pair.substr(equals + 1);
    if (key == "K8S_POD_NAME") out.pod_name = value;
    if (key == "K8S_POD_NAMESPACE") out.pod_namespace = value;
    if (key == "K8S_POD_UID") out.pod_uid = value;
  }
}

// nlohmann's parser recurses on the stack: stop before a hostile file ends it.
bool too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// The string at `key`; "" if absent. Failure if it is something else.
Outcome<std::string> text_at(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return std::string();
  if (!it->is_string())
    return failure(Code::kInvalidConfig, std::string(key) + " must be a string");
  return it->get<std::string>();
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// prevResult.ips[].address, "10.0.0.5/24".
Outcome<std::vector<IpAddress>> addresses_of(const Json& result) {
  std::vector<IpAddress> out;
  const auto ips = result.find("ips");
  if (ips == result.end() || ips->is_null()) return out;
  if (!ips->is_array()) return failure(Code::kInvalidConfig, "prevResult.ips must be a list");
  for (const Json& item : *ips) {
    const auto address = item.is_object() ? item.find("address") : item.end();
    if (!item.is_object() || address == item.end() || !address->is_string())
      return failure(Code::kInvalidConfig, "prevResult.ips[].address must be a string");
    const std::string text = address->get<std::string>();
    const auto ip = IpAddress::parse(text.substr(0, text.find('/')));
    if (!ip)
      return failure(Code::kInvalidConfig, "prevResult.ips[].address is no address: " + text);
    out.push_back(*ip);
  }
  return out;
}

#define CNI_TRY(...)                                                       \
  ({                                                                       \
    auto&& cni_r = (__VA_ARGS__);                                          \
    if (!cni_r) return std::unexpected<Failure>(std::move(cni_r).error()); \
    std::move(*cni_r);                                                     \
  })

}  // namespace

const std::vector<std::string>& supported_versions() {
  static const std::vector<std::string> versions = {"0.3.0", "0.3.1", "0.4.0", "1.0.0"};
  return versions;
}

Outcome<Environment> parse_environment(const GetEnv& get) {
  Environment out;
  const std::string command = get("CNI_COMMAND").value_or("");
  if (command == "VERSION") return out;
  if (command == "ADD") {
    out.command = Command::kAdd;
  } else if (command == "DEL") {
    out.command = Command::kDel;
  } else if (command == "CHECK") {
    out.command = Command::kCheck;
  } else {
    return failure(Code::kInvalidEnvironment,
                   command.empty() ? "CNI_COMMAND is not set" : "unknown CNI_COMMAND " + command,
                   "one of ADD, DEL, CHECK, VERSION");
  }
  out.container_id = get("CNI_CONTAINERID").value_or("");
  out.netns = get("CNI_NETNS").value_or("");
  out.ifname = get("CNI_IFNAME").value_or("");
  if (!valid_container_id(out.container_id))
    return failure(Code::kInvalidEnvironment, "CNI_CONTAINERID is missing or malformed");
  if (!valid_ifname(out.ifname))
    return failure(Code::kInvalidEnvironment, "CNI_IFNAME is missing or malformed");
  if (out.netns.empty() && out.command != Command::kDel)
    return failure(Code::kInvalidEnvironment, "CNI_NETNS is not set");
  if (!out.netns.empty() && (out.netns[0] != '/' || has_control(out.netns)))
    return failure(Code::kInvalidEnvironment, "CNI_NETNS must be an absolute path");
  read_args(get("CNI_ARGS").value_or(""), out);
  for (const std::string* s : {&out.pod_name, &out.pod_namespace, &out.pod_uid})
    if (s->size() > 253 || has_control(*s))
      return failure(Code::kInvalidEnvironment,
                     "CNI_ARGS has a malformed pod name, namespace or uid");
  return out;
}

Outcome<Config> parse_config(std::string_view text, Command command) {
  if (text.size() > kMaxConfigBytes || too_deep(text))
    return failure(Code::kDecode, "network configuration is too large or too deep");
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object())
    return failure(Code::kDecode, "network configuration is not a JSON object");
  Config out;
  out.cni_version = CNI_TRY(text_at(json, "cniVersion"));
  if (out.cni_version.empty()) out.cni_version = "0.1.0";  // as libcni reads a missing one
  if (command == Command::kVersion) return out;
  const auto& versions = supported_versions();
  if (std::find(versions.begin(), versions.end(), out.cni_version) == versions.end())
    return failure(Code::kIncompatibleVersion,
                   "cniVersion " + out.cni_version + " is not supported",
                   "0.3.0, 0.3.1, 0.4.0 and 1.0.0 are");
  out.name = CNI_TRY(text_at(json, "name"));
  out.type = CNI_TRY(text_at(json, "type"));
  out.agent_socket = CNI_TRY(text_at(json, "agentSocket"));
  out.log_file = CNI_TRY(text_at(json, "logFile"));
  out.log_level = CNI_TRY(text_at(json, "logLevel"));
  if (out.name.empty()) return failure(Code::kInvalidConfig, "name is missing");
  if (out.agent_socket.empty() || out.agent_socket[0] != '/')
    return failure(Code::kInvalidConfig, "agentSocket must be an absolute path",
                   "set agentSocket to <run-dir>/agent.sock in the CNI configuration");
  if (out.agent_socket.size() > 107)
    return failure(Code::kInvalidConfig, "agentSocket is longer than 107 bytes");
  const auto previous = json.find("prevResult");
  if (previous != json.end() && !previous->is_null()) {
    if (!previous->is_object())
      return failure(Code::kInvalidConfig, "prevResult must be an object");
    out.prev_result = dump(*previous);
    // DEL must go on whatever prevResult holds: the pod is on its way out.
    if (command != Command::kDel) out.addresses = CNI_TRY(addresses_of(*previous));
  } else if (command == Command::kCheck) {
    return failure(Code::kInvalidConfig, "CHECK needs prevResult");
  }
  return out;
}

std::string print_add_result(const Config& config) {
  Json json =
      config.prev_result ? Json::parse(*config.prev_result, nullptr, false) : Json::object();
  if (!json.is_object()) json = Json::object();
  json["cniVersion"] = config.cni_version;
  return dump(json);
}

std::string print_version_result(std::string_view cni_version) {
  const Json json = {{"cniVersion", cni_version}, {"supportedVersions", supported_versions()}};
  return dump(json);
}

std::string print_failure(const Failure& f, std::string_view cni_version) {
  Json json = {
      {"cniVersion", cni_version}, {"code", static_cast<uint32_t>(f.code)}, {"msg", f.message}};
  if (!f.details.empty()) json["details"] = f.details;
  return dump(json);
}

}  // namespace meltemi::codec::cni
