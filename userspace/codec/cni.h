// The Container Network Interface (CNI spec 1.0.0, and the versions before it from 0.3.0 on),
// plugin side: environment and stdin in, result or error JSON out. Pure text; the plugin's main()
// reads the environment and talks to the agent. Must never print anything but what the spec wants
// on stdout.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"

namespace meltemi::codec::cni {

inline constexpr size_t kMaxConfigBytes = 1024 * 1024;  // stdin
inline constexpr int kMaxJsonDepth = 64;

// Spec, "Error": codes 1-99 are the spec's, 100 and up ours.
enum class Code : uint32_t {
  kIncompatibleVersion = 1,
  kUnsupportedField = 2,
  kUnknownContainer = 3,
  kInvalidEnvironment = 4,
  kIo = 5,
  kDecode = 6,
  kInvalidConfig = 7,
  kTryAgainLater = 11,
  kAgentUnavailable = 100,  // the agent does not answer
  kNotEnrolled = 101,       // CHECK: kernel state is missing; ADD: enrolment failed
  kInternal = 102,
};

struct Failure {
  Code code = Code::kInternal;
  std::string message;  // short
  std::string details;  // what to do
};
template <typename T>
using Outcome = std::expected<T, Failure>;

enum class Command : uint8_t { kAdd, kDel, kCheck, kVersion };

// The CNI_* environment.
struct Environment {
  Command command = Command::kVersion;
  std::string
      container_id;      // CNI_CONTAINERID: [A-Za-z0-9][A-Za-z0-9_.-]*; required but for VERSION
  std::string netns;     // CNI_NETNS: required for ADD and CHECK; DEL may lack it
  std::string ifname;    // CNI_IFNAME: required but for VERSION; 1..15 bytes, no '/', ':' or space
  std::string pod_name;  // of CNI_ARGS: K8S_POD_NAME
  std::string pod_namespace;  // K8S_POD_NAMESPACE
  std::string pod_uid;        // K8S_POD_UID; empty with old runtimes
};
// `get` returns the value of an environment variable, nullopt if unset. Failure kInvalidEnvironment
// names the variable. CNI_ARGS is "KEY=VALUE;KEY=VALUE"; unknown keys are ignored.
using GetEnv = std::function<std::optional<std::string>(std::string_view name)>;
Outcome<Environment> parse_environment(const GetEnv& get);

// The network configuration on stdin.
struct Config {
  std::string cni_version;  // one of supported_versions()
  std::string name;
  std::string type;
  std::string agent_socket;                // "agentSocket", absolute path
  std::string log_file;                    // "logFile", may be empty
  std::string log_level;                   // "logLevel", may be empty
  std::optional<std::string> prev_result;  // its JSON, as given
  std::vector<IpAddress> addresses;        // of prevResult: ips[].address
};
// kDecode: not JSON. kIncompatibleVersion: cniVersion. kInvalidConfig: a field, named. For VERSION
// only cniVersion is read. Fields of other plugins are ignored.
Outcome<Config> parse_config(std::string_view stdin_text, Command command);

const std::vector<std::string>& supported_versions();

// ADD's result: prevResult passed through, with cniVersion as the config has it; without a
// prevResult an empty result of that version.
std::string print_add_result(const Config& config);
// VERSION's: {"cniVersion":"1.0.0","supportedVersions":[..]}.
std::string print_version_result(std::string_view cni_version);
// {"cniVersion":..,"code":..,"msg":..,"details":..}. Bytes that are not UTF-8 are replaced.
std::string print_failure(const Failure& failure, std::string_view cni_version);

}  // namespace meltemi::codec::cni
