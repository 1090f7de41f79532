// Counters of the data path. Every worker owns one shard of every table and bumps its cells without a
// lock or an atomic read-modify-write; a scrape sums the shards. A label set is interned once per
// shard: what a flow keeps is one pointer.
//
// Label values follow from what peers send and from what is configured, so their number has limits:
// one for the table and one for each source, lest a single client fill the table for all. What is
// over a limit is counted under label sets that say `other`, and that it was is counted too.
//
// Must never block a worker for a scrape: the shard's lock is held only to add a label set and to
// look one up.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "userspace/model/symbol.h"

namespace meltemi::telemetry {

// Written by one thread, read by any.
class Cell {
 public:
  void add(uint64_t n) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

struct SeriesLimits {
  size_t total = 10'000;     // label sets of one shard
  size_t per_source = 1000;  // of them for one source: a tenth, so ten greedy ones still fit
};

// Where the labels of a table say who the source is.
struct SourceLabels {
  size_t reporter = 0;
  size_t workload = 1, ns = 4, principal = 5;
};

// `Labels` labels and `Cells` counters a series.
template <size_t Labels, size_t Cells>
class SeriesTable {
 public:
  using LabelSet = std::array<model::Symbol, Labels>;
  struct Series {
    LabelSet labels;
    std::array<Cell, Cells> cells;
  };
  using Sums = std::array<uint64_t, Cells>;

  SeriesTable(size_t shards, SeriesLimits limits, SourceLabels source = {})
      : limits_(limits), source_(source) {
    for (size_t i = 0; i < shards; ++i) shards_.push_back(std::make_unique<Shard>());
  }

  // Call on the shard's own thread. The pointer is good for ever.
  Series* series(size_t shard, const LabelSet& labels) {
    Shard& s = *shards_[shard];
    if (auto it = s.index.find(labels); it != s.index.end()) return it->second;
    const size_t source = source_of(labels);
    if (s.index.size() >= limits_.total) {
      folded_total_.fetch_add(1, std::memory_order_relaxed);
      return intern(s, fold(labels, false));
    }
    size_t& held = s.held[source];
    if (held >= limits_.per_source) {
      folded_source_.fetch_add(1, std::memory_order_relaxed);
      return intern(s, fold(labels, true));
    }
    ++held;
    return intern(s, labels);
  }

  // Look-ups that were counted under `other`, because the source or the table was full.
  uint64_t folded_by_source() const { return folded_source_.load(std::memory_order_relaxed); }
  uint64_t folded_by_total() const { return folded_total_.load(std::memory_order_relaxed); }

  // One pass over all label sets with their sums over the shards. Label sets that are added
  // meanwhile may be left out. Any thread; the table must outlive it.
  class Walk {
   public:
    explicit Walk(const SeriesTable& table) : table_(&table) {
      for (const auto& shard : table.shards_) {
        std::lock_guard lock(shard->mutex);
        for (const auto& series : shard->all) all_.emplace_back(shards_, series.get());
        ++shards_;
      }
    }
    bool empty() const { return all_.empty(); }
    void rewind() { at_ = 0; }
    // Calls visit(labels, sums) for the next `count` label sets; false: none is left.
    template <typename F>
    bool next(size_t count, F&& visit) {
      for (; count > 0 && at_ < all_.size(); ++at_) {
        const auto& [shard, series] = all_[at_];
        Sums sums{};
        if (!table_->sum(shard, *series, sums)) continue;  // came with an earlier shard
        visit(series->labels, sums);
        --count;
      }
      return at_ < all_.size();
    }

   private:
    const SeriesTable* table_;
    std::vector<std::pair<size_t, const Series*>> all_;
    size_t shards_ = 0, at_ = 0;
  };

 private:
  struct Hash {
    size_t operator()(const LabelSet& labels) const {
      size_t h = 0;
      for (const auto& l : labels) h = (h ^ l.hash()) * 0x9E3779B97F4A7C15ull;
      return h;
    }
  };
  struct Shard {
    // Changed by the owner under the lock, so that he may read without it.
    std::unordered_map<LabelSet, Series*, Hash> index;
    std::vector<std::unique_ptr<Series>> all;
    std::mutex mutex;
    std::unordered_map<size_t, size_t> held;  // label sets of each source; the owner's
  };

  // A proven identity is the source; names that it claims beside it are not.
  size_t source_of(const LabelSet& labels) const {
    const model::Symbol& principal = labels[source_.principal];
    if (!principal.empty()) return principal.hash();
    return labels[source_.workload].hash() * 31 + labels[source_.ns].hash();
  }

  // All labels but the reporter, and the source that was counted, become `other`.
  LabelSet fold(const LabelSet& labels, bool keep_source) const {
    static const model::Symbol other("other");
    LabelSet out;
    out.fill(other);
    out[source_.reporter] = labels[source_.reporter];
    if (!keep_source) return out;
    out[source_.principal] = labels[source_.principal];
    if (labels[source_.principal].empty()) {
      out[source_.workload] = labels[source_.workload];
      out[source_.ns] = labels[source_.ns];
    }
    return out;
  }

  static Series* intern(Shard& s, const LabelSet& labels) {
    if (auto it = s.index.find(labels); it != s.index.end()) return it->second;
    std::lock_guard lock(s.mutex);
    s.all.push_back(std::make_unique<Series>());
    s.all.back()->labels = labels;
    s.index.emplace(labels, s.all.back().get());
    return s.all.back().get();
  }

  // Adds up a series of `shard` with its twins in later shards; false if an earlier shard has one.
  bool sum(size_t shard, const Series& series, Sums& sums) const {
    const auto add = [&](const Series& one) {
      for (size_t i = 0; i < Cells; ++i) sums[i] += one.cells[i].get();
    };
    for (size_t i = 0; i < shards_.size(); ++i) {
      if (i == shard) {
        add(series);
        continue;
      }
      std::lock_guard lock(shards_[i]->mutex);
      const auto it = shards_[i]->index.find(series.labels);
      if (it == shards_[i]->index.end()) continue;
      if (i < shard) return false;
      add(*it->second);
    }
    return true;
  }

  const SeriesLimits limits_;
  const SourceLabels source_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> folded_source_{0}, folded_total_{0};
};

}  // namespace meltemi::telemetry
