// A parallel loop over a few threads that stay; which thread takes which part is left to chance, so
// the parts must not depend on each other.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace plait {

// A loop is open while threads may join it. Its caller closes it when no part is left and waits for
// those inside only: a thread that wakes too late never holds it up.
class Crew {
 public:
  using Body = std::function<void(int64_t first, int64_t past)>;

  ~Crew() {
    stop_ = true;
    wake();
    for (auto& thread : threads_) thread.join();
  }

  // Runs body over [0, items) in parts, on `threads` threads with the caller's; one loop at a time.
  // Where items cost alike (`even`) first parts are whole shares: the longest runs of memory.
  void run(int threads, int64_t items, const Body& body, bool even = false) {
    if (threads <= 1 || items <= 1) return body(0, items);
    std::lock_guard one(turn_);
    while (int(threads_.size()) < threads - 1) threads_.emplace_back([this] { live(); });
    body_ = &body;
    items_ = items;
    sharers_ = even ? threads : 2 * threads;
    next_ = 0;
    state_ = (round(state_) + 1) * kRound + uint64_t(threads - 1) * kPlace;
    if (sleepers_ > 0) wake();
    work();
    uint64_t state = state_;
    while (!state_.compare_exchange_weak(state, state - places(state) * kPlace)) {
    }
    for (int i = 1; state_ % kPlace; i++) relax(i);
  }

 private:
  // One word: the number of the loop, places left in it, threads inside it.
  static constexpr uint64_t kPlace = 1 << 8, kRound = 1 << 16;
  // Longer than the gaps between the kernels of a step, shorter than anybody notices.
  static constexpr std::chrono::microseconds kAwake{50};

  static uint64_t round(uint64_t state) { return state / kRound; }
  static uint64_t places(uint64_t state) { return state % kRound / kPlace; }

  // Lets the core rest; now and then lets another thread have it, which may be the one waited for.
  static void relax(int turn) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (turn % 64 == 0) std::this_thread::yield();
  }

  void live() {
    for (uint64_t seen = 0; !stop_;) {
      uint64_t state = await(seen);
      if (round(state) == seen || !places(state)) continue;
      if (!state_.compare_exchange_strong(state, state - kPlace + 1)) continue;
      seen = round(state);
      work();
      state_--;
    }
  }

  // The state once a loop other than `seen` is open: watches for a while, then sleeps.
  uint64_t await(uint64_t seen) {
    const auto open = [&](uint64_t state) { return round(state) != seen && places(state); };
    const auto patience = std::chrono::steady_clock::now() + kAwake;
    do {
      for (int i = 1; i <= 64; relax(i++))
        if (const uint64_t state = state_; open(state)) return state;
    } while (std::chrono::steady_clock::now() < patience);
    std::unique_lock lock(mutex_);
    sleepers_++;  // before the last look at the state: either we see the loop or its caller sees us
    start_.wait(lock, [&] { return stop_ || open(state_); });
    sleepers_--;
    return state_;
  }

  void wake() {
    { std::lock_guard lock(mutex_); }
    start_.notify_all();
  }

  // Takes parts until none is left: large ones first, for long runs of memory, then ever smaller
  // ones, so that all threads end together.
  void work() {
    int64_t first = next_;
    while (first < items_) {
      const int64_t part = (items_ - first + sharers_ - 1) / sharers_;
      if (!next_.compare_exchange_weak(first, first + part)) continue;
      (*body_)(first, first + part);
      first = next_;
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable start_;
  std::vector<std::thread> threads_;
  const Body* body_ = nullptr;
  int64_t items_ = 0, sharers_ = 1;
  std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
};

// The threads of this process.
inline Crew& crew() {
  static Crew the_crew;
  return the_crew;
}

}  // namespace plait
