// Which service accounts there are, and which there were: who was deleted has no identity any more, even
// while its pods run on. An account that nobody ever declared is there, as `default` is in every
// namespace. What was deleted is kept on disk until it is declared anew, so that neither a restart
// nor a deletion while nobody looked brings it back. Thread safe.
#pragma once

#include <deque>
#include <map>
#include <shared_mutex>
#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/config/store.h"

namespace meltemi::control {

// Deleted accounts that are remembered; beyond that the oldest is forgotten, and the log says so.
inline constexpr size_t kMaxGoneAccounts = 10'000;

class AccountIndex {
 public:
  // Reads `file` if it is there. Damaged: it is kept aside under another name, and counts as empty. One that
  // cannot be read now is not written over, and until read_late() nobody is believed to be there who is
  // not declared. problem() says either.
  explicit AccountIndex(std::string file);
  // Tries again what could not be read; true if that has become known, so that somebody may be gone.
  bool read_late();
  std::string problem() const;  // for people; "" if there is none

  // Takes the ServiceAccounts among the changes; true if one came, went or became another.
  bool apply(const std::vector<config::ObjectChange>& changes);
  // All of the configuration has been read: who is known from the file and was not among it is gone.
  // True if there was one. Later calls do nothing.
  bool complete();

  // Error kPermission: it was deleted, or the token was made for an earlier one of its name; kShutdown: it
  // is not known now whether it was. `uid`: as the token has it, "" if it says nothing.
  Status still_there(std::string_view ns, std::string_view name, std::string_view uid) const;
  size_t gone() const;

  // Writes the file if something changed. An error is logged here, once until it is over.
  Status save();
  bool dirty() const;

 private:
  void forget(const std::string& account);  // REQUIRES the lock
  void bury(const std::string& account);
  struct File {
    std::map<std::string, std::string> there;
    std::vector<std::string> gone;
  };
  static Result<File> parse(const std::string& bytes);
  bool load();

  const std::string file_;
  mutable std::shared_mutex mutex_;
  std::map<std::string, std::string, std::less<>> there_;  // "ns/name" -> uid, "" if it has none
  std::map<std::string, std::string> unseen_;              // of the file, until complete()
  std::deque<std::string> gone_;                           // oldest first
  bool complete_ = false, dirty_ = false;
  bool unread_ = false;  // what lies in the file is not known
  std::string problem_;  // with reading
  std::string trouble_;  // with writing, as logged
};

}  // namespace meltemi::control
