// Verbs of the plugin; see plugin.h.
#include "userspace/cni/plugin.h"

#include <fmt/format.h>

#include "userspace/cni/agent_client.h"

namespace meltemi::cni {
namespace {

namespace cni = codec::cni;
namespace wire = meltemi::local::v1;

std::unexpected<cni::Failure> failed(cni::Code code, std::string message, std::string details) {
  return std::unexpected(cni::Failure{code, std::move(message), std::move(details)});
}

std::unexpected<cni::Failure> agent_failed(const Error& error) {
  return failed(cni::Code::kAgentUnavailable, "the node's meltemi-agent did not answer",
                error.detail + "; is the DaemonSet meltemi-agent running on this node?");
}

// A container that no pod stands behind is none of the mesh's business.
bool is_pod(const cni::Environment& env) {
  return !env.pod_name.empty() && !env.pod_namespace.empty();
}

cni::Outcome<std::string> add(const cni::Environment& env, const cni::Config& config) {
  if (!is_pod(env)) return cni::print_add_result(config);
  wire::Request request;
  wire::AddPod& pod = *request.mutable_add();
  pod.set_netns_path(env.netns);
  pod.set_name(env.pod_name);
  pod.set_namespace_(env.pod_namespace);
  pod.set_uid(env.pod_uid);
  for (const IpAddress& ip : config.addresses) pod.add_addresses(ip.wire());
  pod.set_deadline_ms(static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(kAddDeadline).count()));
  const auto response = call_agent(config.agent_socket, request, kAddDeadline + kAnswerMargin);
  if (!response) return agent_failed(response.error());
  if (!response->error().empty())
    return failed(cni::Code::kNotEnrolled,
                  fmt::format("pod {}/{} did not join the mesh", env.pod_namespace, env.pod_name),
                  response->error());
  return cni::print_add_result(config);
}

// The agent cleans up by itself when the namespace ends: without it the pod must still go.
cni::Outcome<std::string> del(const cni::Environment& env, const cni::Config& config,
                              std::string& log) {
  if (!is_pod(env)) return std::string();
  wire::Request request;
  wire::DelPod& pod = *request.mutable_del();
  pod.set_uid(env.pod_uid);
  pod.set_name(env.pod_name);
  pod.set_namespace_(env.pod_namespace);
  pod.set_netns_path(env.netns);
  const auto response = call_agent(config.agent_socket, request, kCallTimeout);
  if (!response) log = "agent not told: " + response.error().detail;
  return std::string();
}

cni::Outcome<std::string> check(const cni::Environment& env, const cni::Config& config) {
  if (!is_pod(env)) return std::string();
  wire::Request request;
  wire::CheckPod& pod = *request.mutable_check();
  pod.set_uid(env.pod_uid);
  pod.set_name(env.pod_name);
  pod.set_namespace_(env.pod_namespace);
  const auto response = call_agent(config.agent_socket, request, kCallTimeout);
  if (!response) return agent_failed(response.error());
  if (!response->error().empty())
    return failed(cni::Code::kNotEnrolled,
                  fmt::format("pod {}/{} is not as it should be", env.pod_namespace, env.pod_name),
                  response->error());
  return std::string();
}

cni::Outcome<std::string> dispatch(const cni::Environment& env, const cni::Config& config,
                                   std::string& log) {
  switch (env.command) {
    case cni::Command::kVersion:
      return cni::print_version_result(config.cni_version);
    case cni::Command::kAdd:
      return add(env, config);
    case cni::Command::kDel:
      return del(env, config, log);
    case cni::Command::kCheck:
      return check(env, config);
  }
  return failed(cni::Code::kInternal, "unknown command", "");
}

Outcome finish(const cni::Outcome<std::string>& result, const std::string& version) {
  if (result) return {.output = *result, .log = "ok"};
  const cni::Failure& f = result.error();
  return {
      .exit_code = 1,
      .output = cni::print_failure(f, version),
      .log = fmt::format("error {}: {}: {}", static_cast<uint32_t>(f.code), f.message, f.details)};
}

}  // namespace

Outcome run_plugin(const cni::GetEnv& environment, std::string_view stdin_text) {
  const cni::Outcome<cni::Environment> env = cni::parse_environment(environment);
  if (!env) return finish(std::unexpected(env.error()), cni::supported_versions().back());
  const cni::Outcome<cni::Config> config = cni::parse_config(stdin_text, env->command);
  if (!config) return finish(std::unexpected(config.error()), cni::supported_versions().back());
  std::string note;
  Outcome out = finish(dispatch(*env, *config, note), config->cni_version);
  static constexpr const char* kNames[] = {"ADD", "DEL", "CHECK", "VERSION"};
  out.log = fmt::format("{} {}/{} {} netns {}: {}", kNames[static_cast<size_t>(env->command)],
                        env->pod_namespace, env->pod_name, env->container_id, env->netns,
                        note.empty() ? out.log : note);
  out.log_file = config->log_file;
  return out;
}

}  // namespace meltemi::cni
