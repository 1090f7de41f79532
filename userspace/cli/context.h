// What every command needs: which sandbox, which namespace, and how it speaks. Data goes to stdout,
// everything else to stderr; exit codes follow istioctl's. Must never print colours or progress
// bars where nobody looks at a terminal.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/config/problem.h"
#include "userspace/sandbox/directory.h"
#include "userspace/sandbox/layout.h"

namespace meltemi::cli {

// sysexits(3), as istioctl.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,
  kExitUsage = 64,     // the command line is wrong
  kExitBadInput = 65,  // a manifest or a value is wrong; nothing was changed
  kExitFindings = 79,  // analyze found something
};

class Context {
 public:
  Context(std::string_view sandbox, std::string ns) : layout_(sandbox), ns_(std::move(ns)) {}

  const sandbox::Layout& layout() const { return layout_; }
  const std::string& ns() const { return ns_; }

  sandbox::Directory open(sandbox::View view) const {
    sandbox::Directory directory(layout_.config_dir(), view);
    directory.refresh();
    return directory;
  }

 private:
  sandbox::Layout layout_;
  std::string ns_;
};

// Text for people. What objects and peers put into it cannot steer the terminal (base/text.h).
void write_text(FILE* to, std::string_view text);
// Data for programs, byte for byte; made visible only where stdout is a terminal.
void write_data(std::string_view data);

template <typename... A>
void print(fmt::format_string<A...> f, A&&... a) {
  write_text(stdout, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void complain(fmt::format_string<A...> f, A&&... a) {
  write_text(stderr, fmt::format(f, std::forward<A>(a)...));
}

// "error: ..." on stderr, each line of the detail by itself; the exit code that its reason means.
int report(const Error& error);
// Errors and warnings, one line each on stderr. Fields that are accepted without effect (a
// container's image, say) are not worth a line at every apply: `meltemi pod-fields` has the table.
void report(const config::Problems& problems);
// report() of an error, kExitOk otherwise.
int finish(const Status& status);

// "service/catalog", "virtualservice.networking.istio.io/catalog": how kubectl names an object.
std::string kubectl_name(const config::ObjectKey& key);
// A usage error in kubectl's words.
std::unexpected<Error> no_such_object(const config::KindInfo& kind, std::string_view name);

}  // namespace meltemi::cli
