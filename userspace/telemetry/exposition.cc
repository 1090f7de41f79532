#include "userspace/telemetry/exposition.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

namespace meltemi::telemetry {
namespace {

std::string_view type_name(MetricType type) {
  switch (type) {
    case MetricType::kCounter: return "counter";
    case MetricType::kGauge: return "gauge";
    case MetricType::kHistogram: return "histogram";
  }
  return "untyped";
}

void append_label(std::string& out, std::string_view text) {
  for (char c : text) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '"') {
      out += "\\\"";
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
}

size_t open_fds() {
  DIR* dir = opendir("/proc/self/fd");
  if (!dir) return 0;
  size_t n = 0;
  while (const dirent* e = readdir(dir)) n += e->d_name[0] != '.';
  closedir(dir);
  return n > 0 ? n - 1 : 0;  // without the one that lists
}

uint64_t resident_bytes() {
  FILE* f = std::fopen("/proc/self/statm", "re");
  if (!f) return 0;
  unsigned long long size = 0, resident = 0;
  const int n = std::fscanf(f, "%llu %llu", &size, &resident);
  std::fclose(f);
  return n == 2 ? resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

}  // namespace

void Exposition::family(std::string_view name, MetricType type, std::string_view help) {
  fmt::format_to(std::back_inserter(out_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name,
                 type_name(type));
}

void Exposition::head(std::string_view name, std::span<const std::string_view> labels,
                      std::span<const std::string_view> values) {
  out_ += name;
  if (labels.empty()) return;
  for (size_t i = 0; i < labels.size(); ++i) {
    out_ += i == 0 ? '{' : ',';
    out_ += labels[i];
    out_ += "=\"";
    append_label(out_, values[i].empty() ? "unknown" : values[i]);
    out_ += '"';
  }
  out_ += '}';
}

void Exposition::sample(std::string_view name, std::span<const std::string_view> labels,
                        std::span<const std::string_view> values, double value) {
  head(name, labels, values);
  fmt::format_to(std::back_inserter(out_), " {}\n", value);
}

void Exposition::sample(std::string_view name, std::span<const std::string_view> labels,
                        std::span<const std::string_view> values, uint64_t value) {
  head(name, labels, values);
  fmt::format_to(std::back_inserter(out_), " {}\n", value);
}

void Registry::add(Collector collector) {
  add_pieces([collector = std::move(collector)]() -> Pieces {
    return [&collector](Exposition& out) {
      collector(out);
      return false;
    };
  });
}

void Registry::add_pieces(std::function<Pieces()> start) {
  std::lock_guard lock(mutex_);
  collectors_.push_back(std::move(start));
}

Registry::Pieces Registry::start(size_t i) const {
  std::lock_guard lock(mutex_);
  return i < collectors_.size() ? collectors_[i]() : nullptr;
}

bool Registry::Reading::more(std::string& out) {
  if (!current_) current_ = registry_->start(next_++);
  if (!current_) {
    out += "# EOF\n";
    return false;
  }
  Exposition piece;
  if (!current_(piece)) current_ = nullptr;
  out += piece.take();
  return true;
}

std::string Registry::text() const {
  std::string out;
  Reading reading = read();
  while (reading.more(out)) {
  }
  return out;
}

SimpleMetric::SimpleMetric(Registry& registry, std::string_view name, MetricType type,
                           std::string_view help, std::vector<std::string_view> labels)
    : name_(name), help_(help), type_(type), labels_(std::move(labels)) {
  registry.add([this](Exposition& out) {
    std::lock_guard lock(mutex_);
    if (series_.empty()) return;
    out.family(name_, type_, help_);
    for (const Series& s : series_) {
      const std::vector<std::string_view> values(s.values.begin(), s.values.end());
      out.sample(name_, labels_, values, s.value);
    }
  });
}

SimpleMetric::Series& SimpleMetric::at(std::vector<std::string> values) {
  values.resize(labels_.size());
  for (Series& s : series_) {
    if (s.values == values) return s;
  }
  return series_.emplace_back(Series{std::move(values)});
}

void SimpleMetric::add(double delta, std::vector<std::string> values) {
  std::lock_guard lock(mutex_);
  at(std::move(values)).value += delta;
}

void SimpleMetric::set(double value, std::vector<std::string> values) {
  std::lock_guard lock(mutex_);
  at(std::move(values)).value = value;
}

double SimpleMetric::value(const std::vector<std::string>& values) const {
  std::lock_guard lock(mutex_);
  for (const Series& s : series_) {
    if (s.values == values) return s.value;
  }
  return 0;
}

void add_process_metrics(Registry& registry, std::string component) {
  registry.add([component = std::move(component)](Exposition& out) {
    static constexpr std::string_view kLabels[] = {"component", "tag"};
    const std::string_view values[] = {component, MELTEMI_VERSION};
    out.family("istio_build", MetricType::kGauge, "Version of this component");
    out.sample("istio_build", kLabels, values, uint64_t{1});
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec / 1e6; };
    out.family("process_open_fds", MetricType::kGauge, "Open file descriptors");
    out.sample("process_open_fds", open_fds());
    out.family("process_max_fds", MetricType::kGauge, "Limit of open file descriptors");
    out.sample("process_max_fds", limit.rlim_cur);
    out.family("process_resident_memory_bytes", MetricType::kGauge, "Resident memory");
    out.sample("process_resident_memory_bytes", resident_bytes());
    out.family("process_cpu_seconds_total", MetricType::kCounter, "User and system CPU time");
    out.sample("process_cpu_seconds_total", {}, {}, seconds(usage.ru_utime) + seconds(usage.ru_stime));
  });
}

}  // namespace meltemi::telemetry
