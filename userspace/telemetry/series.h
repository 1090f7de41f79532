// Counters of the data path. Every worker owns one shard of every table and bumps its cells without
// a lock or an atomic read-modify-write; a scrape sums the shards. A label set is interned once per
// shard: what a flow keeps is one pointer.
//
// Label values follow from what peers send and from what is configured, so their number has limits:
// one for the table and one for each source, lest a single client fill the table for all. What is
// over a limit is counted under label sets that say `other`, and that it was is counted too. Sets
// that nobody counted for a while expire, lest those who are gone hold the places of those who
// come.
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
#include <utility>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/model/symbol.h"

namespace meltemi::telemetry {

// Written by one thread, read by any.
class Cell {
 public:
  void add(uint64_t n) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void subtract(uint64_t n) { add(~n + 1); }
  void clear() { value_.store(0, std::memory_order_relaxed); }
  uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

struct SeriesLimits {
  size_t total = 10'000;     // label sets of one shard
  size_t per_source = 1000;  // of them for one source: a tenth, so ten greedy ones still fit
  // A label set that no shard counted for this long expires; 0: never. An hour is many scrapes:
  // what comes back begins at 0, which a reader takes for a restart.
  Duration idle = std::chrono::hours(1);
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
    Cell holders;  // flows that will count here again; the owner's to write
    // Nobody counted here for long: left out of scrapes, and begun anew or taken out by the owner.
    std::atomic<bool> expired{false};
    bool folded = false;  // counts for those who were over a limit, and takes no place itself
    bool is_expired() const { return expired.load(std::memory_order_relaxed); }
  };
  using SeriesPtr = std::shared_ptr<Series>;
  using Sums = std::array<uint64_t, Cells>;

  SeriesTable(size_t shards, SeriesLimits limits, SourceLabels source = {})
      : limits_(limits), source_(source) {
    for (size_t i = 0; i < shards; ++i) shards_.push_back(std::make_unique<Shard>());
  }

  // Call on the shard's own thread. Who keeps it beyond the call is a holder until he lets go, or
  // looks again when is_expired().
  const SeriesPtr& series(size_t shard, const LabelSet& labels) {
    Shard& s = *shards_[shard];
    if (auto it = s.index.find(labels); it != s.index.end()) {
      if (it->second->is_expired()) [[unlikely]] begin_anew(s, *it->second);
      return it->second;
    }
    if (s.expired.load(std::memory_order_relaxed) > 0) take_out_expired(s);
    const size_t source = source_of(labels);
    if (s.index.size() >= limits_.total) {
      folded_total_.fetch_add(1, std::memory_order_relaxed);
      return intern(s, fold(labels, false), true);
    }
    size_t& held = s.held[source];
    if (held >= limits_.per_source) {
      folded_source_.fetch_add(1, std::memory_order_relaxed);
      return intern(s, fold(labels, true), true);
    }
    ++held;
    return intern(s, labels, false);
  }

  // Look-ups that were counted under `other`, because the source or the table was full.
  uint64_t folded_by_source() const { return folded_source_.load(std::memory_order_relaxed); }
  uint64_t folded_by_total() const { return folded_total_.load(std::memory_order_relaxed); }
  uint64_t expired() const { return expired_.load(std::memory_order_relaxed); }

  // Finds the label sets that have been idle in all shards for long enough: a set that is gone from
  // one shard only would make a sum shrink. At most once in an eighth of that time; by whoever
  // scrapes.
  void expire(MonoTime now) {
    if (limits_.idle <= Duration::zero()) return;
    std::lock_guard only(expiry_mutex_);
    if (now < next_expiry_) return;
    next_expiry_ = now + limits_.idle / 8;
    std::unordered_map<LabelSet, Activity, Hash> seen;
    for (const auto& shard : shards_) {
      std::lock_guard lock(shard->mutex);
      for (const SeriesPtr& series : shard->all) look_at(*shard, *series, seen[series->labels]);
    }
    for (auto& [labels, activity] : seen) {
      const auto before = activity_.find(labels);
      const bool still = before != activity_.end() && before->second.total == activity.total;
      activity.since = still && !activity.held ? before->second.since : now;
    }
    activity_ = std::move(seen);
    for (const auto& shard : shards_) {
      std::lock_guard lock(shard->mutex);
      for (const SeriesPtr& series : shard->all) {
        const auto activity = activity_.find(series->labels);
        if (activity == activity_.end() || series->is_expired()) continue;
        if (now - activity->second.since < limits_.idle) continue;
        series->expired.store(true, std::memory_order_relaxed);
        shard->expired.fetch_add(1, std::memory_order_relaxed);
        if (!std::exchange(activity->second.counted, true)) {
          expired_.fetch_add(1, std::memory_order_relaxed);
        }
      }
    }
  }

  // One pass over all label sets with their sums over the shards. Label sets that are added
  // meanwhile may be left out. Any thread; the table must outlive it.
  class Walk {
   public:
    explicit Walk(const SeriesTable& table) : table_(&table) {
      for (const auto& shard : table.shards_) {
        std::lock_guard lock(shard->mutex);
        for (const SeriesPtr& series : shard->all) {
          if (!series->is_expired()) all_.emplace_back(shards_, series);
        }
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
    std::vector<std::pair<size_t, SeriesPtr>> all_;  // kept, though they may expire meanwhile
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
    std::unordered_map<LabelSet, SeriesPtr, Hash> index;
    std::vector<SeriesPtr> all;
    std::mutex mutex;
    std::unordered_map<size_t, size_t> held;  // label sets of each source; the owner's
    std::atomic<size_t> expired{0};           // of `all`
  };
  // What a label set did until somebody looked.
  struct Activity {
    uint64_t total = 0;  // of all cells of all shards
    MonoTime since{};    // when it was first seen so
    bool held = false, counted = false;
  };

  // Under the shard's lock. One that was taken for idle just when a flow began to use it comes
  // back.
  static void look_at(Shard& s, Series& series, Activity& activity) {
    for (const Cell& cell : series.cells) activity.total += cell.get();
    const bool held = series.holders.get() > 0;
    activity.held |= held;
    if (!held || !series.is_expired()) return;
    series.expired.store(false, std::memory_order_relaxed);
    s.expired.fetch_sub(1, std::memory_order_relaxed);
  }

  // By the owner: what was counted before was told long ago. (What was counted in the very moment
  // in which it expired is lost.)
  static void begin_anew(Shard& s, Series& series) {
    std::lock_guard lock(s.mutex);
    if (!series.is_expired()) return;
    if (series.holders.get() == 0) {
      for (Cell& cell : series.cells) cell.clear();
    }
    series.expired.store(false, std::memory_order_relaxed);
    s.expired.fetch_sub(1, std::memory_order_relaxed);
  }

  // By the owner, before a new label set: their places are free again.
  void take_out_expired(Shard& s) {
    std::lock_guard lock(s.mutex);
    std::erase_if(s.all, [&](const SeriesPtr& series) {
      if (!series->is_expired() || series->holders.get() > 0) return false;
      if (!series->folded) {
        const auto held = s.held.find(source_of(series->labels));
        if (--held->second == 0) s.held.erase(held);
      }
      s.index.erase(series->labels);
      s.expired.fetch_sub(1, std::memory_order_relaxed);
      return true;
    });
  }

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

  static const SeriesPtr& intern(Shard& s, const LabelSet& labels, bool folded) {
    if (auto it = s.index.find(labels); it != s.index.end()) {
      if (it->second->is_expired()) begin_anew(s, *it->second);
      return it->second;
    }
    std::lock_guard lock(s.mutex);
    s.all.push_back(std::make_shared<Series>());
    s.all.back()->labels = labels;
    s.all.back()->folded = folded;
    return s.index.emplace(labels, s.all.back()).first->second;
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
      if (it == shards_[i]->index.end() || it->second->is_expired()) continue;
      if (i < shard) return false;
      add(*it->second);
    }
    return true;
  }

  const SeriesLimits limits_;
  const SourceLabels source_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> folded_source_{0}, folded_total_{0}, expired_{0};
  std::mutex expiry_mutex_;
  MonoTime next_expiry_{};
  std::unordered_map<LabelSet, Activity, Hash> activity_;
};

}  // namespace meltemi::telemetry
