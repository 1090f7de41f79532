// See worker.h.
#include "userspace/rt/worker.h"

#include <pthread.h>

#include <algorithm>

#include <future>
#include <latch>

namespace meltemi::rt {
namespace {
thread_local Worker* this_worker = nullptr;
}  // namespace

Worker::~Worker() = default;

Result<std::unique_ptr<WorkerPool>> WorkerPool::start(uint32_t count, const std::string& name,
                                                      const LoopOptions& options) {
  auto pool = std::make_unique<WorkerPool>();
  for (uint32_t i = 0; i < std::max(count, 1u); ++i) {
    auto worker = std::make_unique<Worker>();
    worker->index_ = i;
    std::promise<Status> ready;
    auto started = ready.get_future();
    worker->thread_ = std::thread([w = worker.get(), &options, &name, &ready] {
      pthread_setname_np(pthread_self(), (name + "-" + std::to_string(w->index_)).substr(0, 15).c_str());
      // The ring must be made on the thread that uses it (SINGLE_ISSUER).
      auto loop = Loop::create(options);
      if (!loop) {
        ready.set_value(fail(std::move(loop).error()));
        return;
      }
      w->loop_ = std::move(*loop);
      this_worker = w;
      ready.set_value({});
      w->loop_->run();
      this_worker = nullptr;
    });
    auto status = started.get();
    if (!status) {
      worker->thread_.join();
      pool->stop();
      return fail(std::move(status).error());
    }
    pool->workers_.push_back(std::move(worker));
  }
  return pool;
}

WorkerPool::~WorkerPool() { stop(); }

Worker* WorkerPool::current() { return this_worker; }

Worker& WorkerPool::least_loaded() {
  Worker* best = workers_[0].get();
  for (auto& w : workers_)
    if (w->load() < best->load()) best = w.get();
  return *best;
}

void WorkerPool::run_on_all(const std::function<void(Worker&)>& fn) {
  std::latch done(static_cast<ptrdiff_t>(workers_.size()));
  for (auto& w : workers_) {
    w->post([&fn, &done, worker = w.get()] {
      fn(*worker);
      done.count_down();
    });
  }
  done.wait();
}

void WorkerPool::stop() {
  for (auto& w : workers_) {
    if (w->thread_.joinable()) w->loop_->stop();
  }
  for (auto& w : workers_)
    if (w->thread_.joinable()) w->thread_.join();
}

}  // namespace meltemi::rt
