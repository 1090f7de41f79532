// CNI: the configuration on stdin and the environment. Whatever comes in, what goes out is JSON.
#include <nlohmann/json.hpp>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/cni.h"

using namespace meltemi;
using namespace meltemi::codec;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const uint8_t choice = in.byte();
  auto is_json = [](const std::string& text) {
    return !nlohmann::json::parse(text, nullptr, false).is_discarded();
  };
  if (choice & 1) {
    const std::string args(as_text(in.rest()));
    const auto env =
        cni::parse_environment([&](std::string_view name) -> std::optional<std::string> {
          if (name == "CNI_COMMAND") return choice & 2 ? "ADD" : "DEL";
          if (name == "CNI_ARGS" || (choice & 4 && name == "CNI_NETNS")) return args;
          if (name == "CNI_NETNS") return "/run/netns/x";
          return choice & 8 ? args : "eth0";
        });
    if (!env) fuzz::require(is_json(cni::print_failure(env.error(), args)));
    return 0;
  }
  const auto config =
      cni::parse_config(as_text(in.rest()), static_cast<cni::Command>(choice >> 1 & 3));
  if (config) {
    fuzz::require(is_json(cni::print_add_result(*config)));
    fuzz::require(is_json(cni::print_version_result(config->cni_version)));
  } else {
    fuzz::require(!config.error().message.empty());
    fuzz::require(is_json(cni::print_failure(config.error(), "1.0.0")));
  }
  return 0;
}
