// A parallel loop over a few threads that stay; which thread takes which part is left to chance, so
// the parts must not depend on each other.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace plait {

class Crew {
 public:
  using Body = std::function<void(int64_t first, int64_t past)>;

  ~Crew() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    start_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // Runs body over [0, items) in parts, on `threads` threads with the caller's; one loop at a time.
  void run(int threads, int64_t items, const Body& body) {
    if (threads <= 1 || items <= 1) return body(0, items);
    std::lock_guard one(turn_);
    {
      std::lock_guard lock(mutex_);
      while (int(threads_.size()) < threads - 1) {
        const int id = int(threads_.size());
        threads_.emplace_back([this, id, round = round_] { live(id, round); });
      }
      body_ = &body;
      items_ = items;
      part_ = (items + threads * 4 - 1) / (threads * 4);
      next_ = 0;
      wanted_ = threads - 1;
      left_ = wanted_;
      round_++;
    }
    start_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  void live(int id, uint64_t seen) {
    std::unique_lock lock(mutex_);
    while (true) {
      start_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      if (id >= wanted_) continue;
      lock.unlock();
      work();
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  void work() {
    for (int64_t first; (first = next_.fetch_add(part_)) < items_;)
      (*body_)(first, first + part_ < items_ ? first + part_ : items_);
  }

  std::mutex turn_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> threads_;
  const Body* body_ = nullptr;
  int64_t items_ = 0, part_ = 1;
  std::atomic<int64_t> next_{0};
  int wanted_ = 0, left_ = 0;
  uint64_t round_ = 0;
  bool stop_ = false;
};

}  // namespace plait
