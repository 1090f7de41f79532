// Random but valid manifests of a small mesh: few names, so that they refer to each other, replace
// each other and miss each other. Deterministic by seed. Only for tests.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>

namespace meltemi::config {

class RandomManifests {
 public:
  explicit RandomManifests(uint32_t seed) : random_(seed) {}

  using File = std::pair<std::string, std::string>;  // path, YAML
  File object();

  uint32_t pick(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  const char* one_of(std::initializer_list<const char*> options) {
    return options.begin()[pick(static_cast<uint32_t>(options.size()))];
  }

 private:
  const char* ns() { return one_of({"shop", "other", "istio-system"}); }
  const char* app() { return one_of({"a", "b", "c"}); }
  File pod(const char* where);
  File service(const char* where);
  File gateway(const char* where);
  File virtual_service(const char* where);
  File destination_rule(const char* where);
  File policy(const char* where);
  File peer_authentication(const char* where);

  std::mt19937 random_;
  int next_ = 0;
};

}  // namespace meltemi::config
