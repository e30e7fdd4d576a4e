// A pipeline schedule under change: rows of tasks, their times, and swaps of neighbours that can be taken back.
// plait/search/pipelines says what the words mean; its twin.py is the oracle of everything here.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace plait {

// All micro-batches of one kind at one stage; they run on one rank, in order.
struct Series {
  int rank, count;
  double time;
  int after;  // series whose same micro-batch must end first, or -1
  double lag, takes, gives;
  int closes;  // the series that gives back what this one takes, or -1
};

using SeriesRows = std::vector<std::vector<int>>;  // for each rank series, in order

struct Tasks {
  Tasks(int ranks, std::vector<Series> series, std::vector<double> caps);
  int ranks, count = 0;
  std::vector<Series> series;
  std::vector<double> caps;
  std::vector<int> first;              // task of each series
  std::vector<std::vector<int>> here;  // series of each rank
  // Of each task; -1: none.
  std::vector<int> of, after;
  std::vector<std::pair<int, int>> followers;
};

// splitmix64; the same numbers as in Python.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t next();
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  int below(int bound) { return static_cast<int>((next() >> 32) * static_cast<uint64_t>(bound) >> 32); }

 private:
  uint64_t state_;
};

class Arrangement {
 public:
  Arrangement(const Tasks& tasks, const std::vector<double>& aims) : tasks_(tasks), aims_(aims) {}
  bool load(const SeriesRows& rows);  // false: tasks are missing or wait for each other
  SeriesRows rows() const;

  // One change: begin, some swaps, then settle; undo takes it back. A swap that is refused (same series, or a
  // circle) changes nothing.
  void begin();
  bool swap(int rank, int place);
  void settle();
  void undo();

  double makespan() const { return makespan_; }
  double excess() const { return excess_; }  // bytes above the aims, summed over the places of all rows
  double peak() const;
  void aim(const std::vector<double>& aims);
  // Swaps on one critical path, chosen at random.
  void critical(Dice& dice, std::vector<std::pair<int, int>>& found) const;
  // A place above its aim from which a task that takes bytes can go, or to which one that gives can come.
  bool crowded(Dice& dice, std::pair<int, int>& found) const;
  bool has(int rank, int place) const { return place < static_cast<int>(row_[rank].size()); }
  // Whether tasks of series a and b stand at that place and the next.
  bool stands(int rank, int place, int a, int b) const;
  int series_at(int rank, int place) const { return tasks_.of[row_[rank][place]]; }

 private:
  struct Start {
    int task;
    double time;
  };
  double ready(int task) const;
  bool order_all();
  void measure(int rank);
  void exchange(int rank, int place);
  double above(int rank, double held) const { return held > aims_[rank] ? held - aims_[rank] : 0.0; }
  void find_makespan();
  void mark_far(int task, int& far) const;

  const Tasks& tasks_;
  std::vector<double> aims_;
  SeriesRows row_;
  std::vector<int> place_, before_, behind_;  // of each task: place in its row, neighbours there
  std::vector<int> line_, at_;                // all tasks such that each comes after what it waits for
  std::vector<double> start_, end_;
  std::vector<std::vector<double>> held_;  // bytes from the start of each place of a row
  double makespan_ = 0, excess_ = 0;
  // What undo needs.
  std::vector<Start> moved_;
  std::vector<std::pair<int, int>> swaps_, pieces_;
  std::vector<int> cut_, waiting_, going_;
  std::vector<char> reached_;
  double old_makespan_ = 0, old_excess_ = 0;
  int lowest_ = 0;
};

}  // namespace plait
