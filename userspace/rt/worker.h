// Threads of the data path: each worker is one thread with one loop. A flow is accepted on a home
// worker, handed to the least loaded one, and never moves after that. Nothing is shared between
// workers but what is passed by post().
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "userspace/rt/loop.h"

namespace meltemi::rt {

class Worker {
 public:
  ~Worker();
  uint32_t index() const { return index_; }
  // The loop; only its own thread may use more than post().
  Loop& loop() { return *loop_; }
  void post(std::move_only_function<void()> fn) { loop_->post(std::move(fn)); }
  // Load in flows; any thread. Whoever hands a flow over adds, its end subtracts.
  void add_load(int32_t flows) { load_.fetch_add(flows, std::memory_order_relaxed); }
  int32_t load() const { return load_.load(std::memory_order_relaxed); }

 private:
  friend class WorkerPool;
  uint32_t index_ = 0;
  std::atomic<int32_t> load_{0};
  // Made by its thread; outlives it, so that others may still post (and be ignored) at shutdown.
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

class WorkerPool {
 public:
  // Starts `count` >= 1 threads named "<name>-<i>" and waits until their loops run.
  static Result<std::unique_ptr<WorkerPool>> start(uint32_t count, const std::string& name,
                                                   const LoopOptions& options);
  // stop() and join.
  ~WorkerPool();

  size_t size() const { return workers_.size(); }
  Worker& worker(size_t i) { return *workers_[i]; }
  // The worker of the calling thread; nullptr elsewhere.
  static Worker* current();
  // Home of a key, e.g. the hash of a pod's uid.
  Worker& home(size_t hash) { return *workers_[hash % workers_.size()]; }
  Worker& least_loaded();
  // Runs `fn(worker)` on each worker's thread and waits for all. Not from a worker.
  void run_on_all(const std::function<void(Worker&)>& fn);
  // Ends all loops (what they own must have been taken down before) and joins. Idempotent. What is
  // posted from now on is destroyed, unrun, with the pool.
  void stop();

 private:
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace meltemi::rt
