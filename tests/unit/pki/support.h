// A directory of one's own and identities, for the tests of certificates.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "userspace/pki/authority.h"

namespace meltemi::pki {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = "/tmp/meltemi-pki-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name) << text;
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

inline model::Identity identity_of(std::string_view ns, std::string_view account) {
  return *model::Identity::make("cluster.local", ns, account);
}

inline WallTime now() { return std::chrono::system_clock::now(); }

// Standard output and error of a command, and its exit status.
struct CommandResult {
  int status;
  std::string output;
};
inline CommandResult run(const std::string& command) {
  CommandResult out{-1, {}};
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return out;
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) out.output.append(buffer, n);
  out.status = pclose(pipe);
  return out;
}

}  // namespace meltemi::pki
