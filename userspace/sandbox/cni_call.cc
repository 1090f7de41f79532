#include "userspace/sandbox/cni_call.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include "userspace/config/value.h"
#include "userspace/sandbox/memory_file.h"
#include "userspace/sys/process.h"

namespace meltemi::sandbox {
namespace {

using config::Value;

constexpr char kInterface[] = "eth0";

Value text(std::string_view s) {
  return Value::of_string(s);
}

Value ip_entry(const IpAddress& ip, const IpAddress& gateway) {
  Value entry = Value::map();
  entry.set("address", text(fmt::format("{}/{}", ip.to_string(), ip.is_v4() ? 32 : 128)));
  entry.set("gateway", text(gateway.to_string()));
  entry.set("interface", Value::of_number("1"));
  return entry;
}

Value interface_entry(std::string_view name, std::string_view sandbox) {
  Value entry = Value::map();
  entry.set("name", text(name));
  if (!sandbox.empty()) entry.set("sandbox", text(sandbox));
  return entry;
}

// "msg: details" of the CNI error object, or the raw text.
std::string error_message(const std::string& answer) {
  const auto parsed = config::parse_documents(answer, "cni");
  if (parsed.documents.empty()) return answer;
  const Value& object = parsed.documents.front();
  std::string out;
  for (const char* key : {"msg", "details"})
    if (const Value* part = object.find(key); part != nullptr && !part->text.empty())
      out += (out.empty() ? "" : ": ") + part->text;
  return out.empty() ? answer : out;
}

}  // namespace

CniPlugin::CniPlugin(std::string binary, std::string agent_socket, std::string log_file)
    : binary_(std::move(binary)),
      agent_socket_(std::move(agent_socket)),
      log_file_(std::move(log_file)) {}

std::string CniPlugin::configuration(const CniPod& pod) const {
  Value result = Value::map();
  result.set("cniVersion", text("1.0.0"));
  Value interfaces = Value::list();
  interfaces.items.push_back(interface_entry(pod.network.host_interface, ""));
  interfaces.items.push_back(interface_entry(kInterface, pod.netns_path));
  result.set("interfaces", std::move(interfaces));
  Value ips = Value::list();
  ips.items.push_back(ip_entry(pod.network.addresses.v4, pod_gateway().v4));
  ips.items.push_back(ip_entry(pod.network.addresses.v6, pod_gateway().v6));
  result.set("ips", std::move(ips));

  Value conf = Value::map();
  conf.set("cniVersion", text("1.0.0"));
  conf.set("name", text("meltemi-sandbox"));
  conf.set("type", text("meltemi-cni"));
  conf.set("agentSocket", text(agent_socket_));
  conf.set("logFile", text(log_file_));
  conf.set("prevResult", std::move(result));
  return config::to_json(conf);
}

Status CniPlugin::add(const CniPod& pod, Duration deadline) const {
  return call("ADD", pod, deadline);
}
Status CniPlugin::del(const CniPod& pod, Duration deadline) const {
  return call("DEL", pod, deadline);
}

Status CniPlugin::call(std::string_view command, const CniPod& pod, Duration deadline) const {
  const UniqueFd input = MELTEMI_TRY(memory_file(configuration(pod)));
  const UniqueFd output = MELTEMI_TRY(memory_file({}));
  sys::SpawnOptions spawn;
  spawn.argv = {binary_};
  spawn.replace_environment = true;
  spawn.environment = {
      fmt::format("CNI_COMMAND={}", command),
      fmt::format("CNI_CONTAINERID={}", pod.uid),
      fmt::format("CNI_NETNS={}", pod.netns_path),
      fmt::format("CNI_IFNAME={}", kInterface),
      fmt::format("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={};"
                  "K8S_POD_INFRA_CONTAINER_ID={}",
                  pod.ns, pod.name, pod.uid, pod.uid),
      fmt::format("CNI_PATH={}", binary_.substr(0, binary_.rfind('/')))};
  spawn.stdin_fd = input.get();
  spawn.stdout_fd = output.get();
  sys::Process process = MELTEMI_TRY(sys::Process::spawn(spawn));
  const Result<int> ended = process.wait(deadline);
  if (!ended) {
    (void)process.stop(std::chrono::milliseconds(200));
    return fail(Reason::kRequestTimeout, Fault::kUpstream,
                fmt::format("meltemi-cni {} gave no answer in {} s", command,
                            std::chrono::duration_cast<std::chrono::seconds>(deadline).count()));
  }
  if (WIFEXITED(*ended) && WEXITSTATUS(*ended) == 0) return {};
  return fail(Reason::kUnsupported, Fault::kUpstream,
              fmt::format("meltemi-cni {}: {}", command,
                          error_message(MELTEMI_TRY(memory_file_content(output)))));
}

}  // namespace meltemi::sandbox
