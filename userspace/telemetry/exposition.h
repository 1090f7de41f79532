// Prometheus text exposition (version 0.0.4; OpenMetrics content type on request, same body with
// `# EOF`). Collectors write families into it; nothing here takes a data-path lock. Must never
// emit an unescaped label value.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace meltemi::telemetry {

enum class MetricType : uint8_t { kCounter, kGauge, kHistogram };

class Exposition {
 public:
  // Starts a family; samples of it follow. `name` of a counter ends in _total.
  void family(std::string_view name, MetricType type, std::string_view help);
  // `labels` and `values` pair up; an empty value is written as "unknown".
  void sample(std::string_view name, std::span<const std::string_view> labels,
              std::span<const std::string_view> values, double value);
  void sample(std::string_view name, std::span<const std::string_view> labels,
              std::span<const std::string_view> values, uint64_t value);
  void sample(std::string_view name, uint64_t value) { sample(name, {}, {}, value); }
  std::string take() { return std::move(out_); }

 private:
  void head(std::string_view name, std::span<const std::string_view> labels,
            std::span<const std::string_view> values);
  std::string out_;
};

// The collectors of one process. Thread safe; collectors run on the scraping thread.
class Registry {
 public:
  using Collector = std::function<void(Exposition&)>;
  // Writes the next piece (some tens of KB) at each call; false: that was the last.
  using Pieces = std::function<bool(Exposition&)>;

  void add(Collector collector);
  // For families that may have many series: `start` begins one pass over them.
  void add_pieces(std::function<Pieces()> start);

  // One scrape, made piece by piece as the client reads: what it holds does not grow with the number
  // of series. The registry must outlive it.
  class Reading {
   public:
    // Appends the next piece to `out`; false: that was the last, `# EOF` included.
    bool more(std::string& out);

   private:
    friend class Registry;
    explicit Reading(const Registry& registry) : registry_(&registry) {}
    const Registry* registry_;
    size_t next_ = 0;
    Pieces current_;
  };
  Reading read() const { return Reading(*this); }
  std::string text() const;  // all pieces at once; for tests

 private:
  Pieces start(size_t i) const;  // null after the last collector
  mutable std::mutex mutex_;
  std::vector<std::function<Pieces()>> collectors_;
};

// A counter or gauge family with few label sets that change off the data path (xDS, certificates,
// workload manager). Takes a lock per call.
class SimpleMetric {
 public:
  // `labels` must be static storage.
  SimpleMetric(Registry& registry, std::string_view name, MetricType type, std::string_view help,
               std::vector<std::string_view> labels = {});
  void add(double delta, std::vector<std::string> values = {});
  void set(double value, std::vector<std::string> values = {});
  double value(const std::vector<std::string>& values = {}) const;

 private:
  struct Series {
    std::vector<std::string> values;
    double value = 0;
  };
  Series& at(std::vector<std::string> values);  // REQUIRES: lock held
  std::string name_, help_;
  MetricType type_;
  std::vector<std::string_view> labels_;
  mutable std::mutex mutex_;
  std::vector<Series> series_;
};

// process_open_fds, process_max_fds, process_resident_memory_bytes, process_cpu_seconds_total and
// istio_build{component,tag}.
void add_process_metrics(Registry& registry, std::string component);

}  // namespace meltemi::telemetry
