// The search for pipeline schedules: starts by list scheduling, annealing of makespan and memory together.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

#include "schedule_arrangement.h"

namespace plait {

// How one thread anneals. Its twin and what each number means: plait/search/pipelines/anneal.py.
struct Annealing {
  double hot, cold, price;  // seconds, seconds, seconds per byte above the aim and place
  double crowds, patterns;  // shares of moves
  int64_t length;           // moves of the first run; further ones have twice as many, up to sixteen times
};

struct Goal {
  double makespan, bytes;  // less is not sought: both reached ends the search
};

struct Hints {
  std::vector<double> urgency;  // of each series: what it gets on top of chance when it starts
  std::vector<int> ahead;       // of each series that takes bytes: micro-batches that fill the pipeline
};

struct Found {
  double makespan = 0, bytes = 0, seconds = 0;
  SeriesRows rows;
};

// What threads share: the clock and the best so far.
class Board {
 public:
  Board(Goal goal, double seconds, int64_t moves);
  // Whether a thread that has made so many moves is to stop.
  bool over(int64_t moves) const;
  // Takes what is shorter than the best, or as short and smaller.
  void add(double bytes, const Arrangement& order);
  // The makespan, where it is not below the goal; what is shorter is no better.
  double counted(const Arrangement& order) const { return std::max(order.makespan(), goal.makespan); }
  double makespan() const { return makespan_; }
  double bytes() const { return bytes_; }
  const Goal goal;
  std::vector<Found> found;  // improvements in order; only the last one keeps its rows

 private:
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  const double seconds_;
  const int64_t moves_;
  std::mutex lock_;
  std::atomic<double> makespan_, bytes_;
};

// A schedule of tasks in the order in which they can start; ties go to the most preferred series. A series may
// be preferred differently in each third of its micro-batches.
SeriesRows listed(const Tasks& tasks, const std::vector<double>& preference, const std::vector<int>& ahead);

// One thread's share: run after run, until the board says that it is over.
void search(const Tasks& tasks, const Hints& hints, const Annealing& how, Board& board, uint64_t seed);

}  // namespace plait
