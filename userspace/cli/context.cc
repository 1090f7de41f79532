#include "userspace/cli/context.h"

#include <unistd.h>

#include "userspace/base/text.h"

namespace meltemi::cli {

void write_text(FILE* to, std::string_view text) {
  const std::string shown = visible(text, Layout::kLines);
  std::fwrite(shown.data(), 1, shown.size(), to);
}

void write_data(std::string_view data) {
  if (::isatty(STDOUT_FILENO)) return write_text(stdout, data);
  std::fwrite(data.data(), 1, data.size(), stdout);
}

int report(const Error& error) {
  // Findings of manifests say themselves that they are errors.
  constexpr std::string_view kMark = "error: ";
  const std::string_view text = error.detail.empty() ? reason_name(error.reason) : error.detail;
  complain("{}{}\n", text.starts_with(kMark) ? "" : kMark, text);
  const bool too_large = error.reason == Reason::kLimitExceeded && error.fault == Fault::kConfig;
  return error.reason == Reason::kBadConfig || too_large ? kExitBadInput : kExitFailure;
}

void report(const config::Problems& problems) {
  for (const config::Problem& problem : problems)
    if (problem.severity != config::Severity::kInfo) complain("{}\n", problem.to_string());
}

int finish(const Status& status) {
  return status ? kExitOk : report(status.error());
}

std::string kubectl_name(const config::ObjectKey& key) {
  const config::KindInfo& info = config::kind_info(key.kind);
  return info.group.empty() ? fmt::format("{}/{}", info.singular, key.name)
                            : fmt::format("{}.{}/{}", info.singular, info.group, key.name);
}

std::unexpected<Error> no_such_object(const config::KindInfo& kind, std::string_view name) {
  const std::string resource =
      kind.group.empty() ? std::string(kind.plural) : fmt::format("{}.{}", kind.plural, kind.group);
  return fail(Reason::kNotFound, Fault::kConfig,
              fmt::format("{} \"{}\" not found", resource, name));
}

}  // namespace meltemi::cli
