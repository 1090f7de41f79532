// The manifests that meltemid itself writes, one object a file, replaced atomically and only when their
// content changes. It must never touch a file that it has not written, except below its own directory.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/config/object.h"

namespace meltemi::control {

// "deployment.shop.waypoint.yaml"
std::string file_name_of(const config::ObjectKey& key);

class GeneratedFiles {
 public:
  // Creates the directory if need be and remembers which manifests a former process left there.
  static Result<GeneratedFiles> open(std::string directory);

  // True if the content is new (also when it could not be written: that is logged and tried again by
  // retry()).
  bool put(const std::string& file, std::string content);
  bool erase(const std::string& file);
  // What a former process left and this one has not put again. Call once everything was put.
  void sweep();
  // Writes and removes what could not be before. True if nothing is left.
  bool retry();
  bool owes() const { return !failed_.empty() || !undeleted_.empty(); }
  const std::string& directory() const { return directory_; }
  // Content as it should be; null if there is no such file.
  const std::string* find(const std::string& file) const;
  // As a former process left it, while it has not been put or swept; "" otherwise.
  std::string left_over(const std::string& file) const;

 private:
  explicit GeneratedFiles(std::string directory) : directory_(std::move(directory)) {}
  void write(const std::string& file, const std::string& content);
  void unlink(const std::string& file);

  std::string directory_;
  std::map<std::string, std::string> wanted_;
  std::map<std::string, std::string> left_over_;
  std::set<std::string> failed_, undeleted_;
};

}  // namespace meltemi::control
