// Counters of the data path. Every worker owns one shard of every table and bumps its cells without a
// lock or an atomic read-modify-write; a scrape sums the shards. A label set is interned once per
// shard: what a flow keeps is one pointer.
//
// Must never block a worker for a scrape: the shard's lock is held only to add a label set and to
// list them.
#pragma once

#include <array>
#include <atomic>
#include <map>
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

// `Labels` labels and `Cells` counters a series.
template <size_t Labels, size_t Cells>
class SeriesTable {
 public:
  using LabelSet = std::array<model::Symbol, Labels>;
  struct Series {
    LabelSet labels;
    std::array<Cell, Cells> cells;
  };
  using Totals = std::map<LabelSet, std::array<uint64_t, Cells>>;

  // Label sets a shard may hold; beyond, flows are counted under a set of empty values.
  static constexpr size_t kMaxSeries = 20'000;

  explicit SeriesTable(size_t shards) {
    for (size_t i = 0; i < shards; ++i) shards_.push_back(std::make_unique<Shard>());
  }

  // Call on the shard's own thread. The pointer is good for ever.
  Series* series(size_t shard, const LabelSet& labels) {
    Shard& s = *shards_[shard];
    if (auto it = s.index.find(labels); it != s.index.end()) return it->second;
    std::lock_guard lock(s.mutex);
    const bool full = s.all.size() >= kMaxSeries;
    if (full) overflow_.fetch_add(1, std::memory_order_relaxed);
    const LabelSet key = full ? LabelSet{} : labels;
    if (auto it = s.index.find(key); it != s.index.end()) return it->second;
    s.all.push_back(std::make_unique<Series>());
    s.all.back()->labels = key;
    s.index.emplace(key, s.all.back().get());
    return s.all.back().get();
  }

  Totals totals() const {
    Totals out;
    for (const auto& shard : shards_) {
      std::lock_guard lock(shard->mutex);
      for (const auto& series : shard->all) {
        auto& sums = out[series->labels];
        for (size_t i = 0; i < Cells; ++i) sums[i] += series->cells[i].get();
      }
    }
    return out;
  }
  uint64_t overflow() const { return overflow_.load(std::memory_order_relaxed); }

 private:
  struct Hash {
    size_t operator()(const LabelSet& labels) const {
      size_t h = 0;
      for (const auto& l : labels) h = (h ^ l.hash()) * 0x9E3779B97F4A7C15ull;
      return h;
    }
  };
  struct Shard {
    // Only the owner reads `index` without the lock; `all` is shared with scrapes.
    std::unordered_map<LabelSet, Series*, Hash> index;
    std::mutex mutex;
    std::vector<std::unique_ptr<Series>> all;
  };
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> overflow_{0};
};

}  // namespace meltemi::telemetry
