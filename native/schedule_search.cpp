#include "schedule_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace plait {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kNear = 1e-9;           // makespans that differ by less are equal but for rounding
constexpr int kThirds = 3;
constexpr int64_t kLongest = 16;        // times the first run's length
constexpr int kCheck = 256;           // moves between two looks at the clock
constexpr double kLess = 1.0 / 64;    // of the memory reached is asked for as soon as it is reached

// What of a rank could start first.
struct Offer {
  int series = -1;
  double start = kNever, preference = -1;
};

class Lister {
 public:
  Lister(const Tasks& tasks, const std::vector<double>& preference, const std::vector<int>& ahead)
      : tasks_(tasks), preference_(preference), ahead_(ahead), done_(tasks.series.size(), 0),
        free_(tasks.ranks, 0.0), end_(tasks.count, -1.0), offers_(tasks.ranks) {}

  SeriesRows run() {
    SeriesRows rows(tasks_.ranks);
    for (int r = 0; r < tasks_.ranks; r++) offers_[r] = best(r);
    for (int left = tasks_.count; left > 0; left--) {
      int rank = 0;
      for (int r = 1; r < tasks_.ranks; r++)
        if (offers_[r].start < offers_[rank].start) rank = r;
      const int c = offers_[rank].series;
      if (c < 0) return {};
      const int task = tasks_.first[c] + done_[c]++;
      end_[task] = free_[rank] = offers_[rank].start + tasks_.series[c].time;
      rows[rank].push_back(c);
      offers_[rank] = best(rank);
      for (int next : {tasks_.followers[task].first, tasks_.followers[task].second})
        if (next >= 0) offers_[tasks_.series[tasks_.of[next]].rank] = best(tasks_.series[tasks_.of[next]].rank);
    }
    return rows;
  }

 private:
  Offer best(int rank) const {
    Offer found;
    for (int c : tasks_.here[rank]) {
      const Series& series = tasks_.series[c];
      const int k = done_[c];
      if (k == series.count || (series.closes >= 0 && k - done_[series.closes] >= ahead_[c])) continue;
      double start = free_[rank];
      if (series.after >= 0) {
        const double end = end_[tasks_.first[series.after] + k];
        if (end < 0) continue;
        start = std::max(start, end + series.lag);
      }
      const double preference = preference_[c * kThirds + k * kThirds / series.count];
      if (start < found.start || (start == found.start && preference > found.preference))
        found = {c, start, preference};
    }
    return found;
  }

  const Tasks& tasks_;
  const std::vector<double>& preference_;
  const std::vector<int>& ahead_;
  std::vector<int> done_;
  std::vector<double> free_, end_;
  std::vector<Offer> offers_;
};

// The first schedule is greedy; later ones differ by chance. Runs that aim at little memory begin with little.
SeriesRows start(const Tasks& tasks, const Hints& hints, Dice& dice, bool greedy, bool free) {
  std::vector<double> preference;
  std::vector<int> ahead;
  for (size_t c = 0; c < tasks.series.size(); c++) {
    for (int third = 0; third < kThirds; third++)
      preference.push_back(greedy ? hints.urgency[c] : hints.urgency[c] + dice.unit());
    ahead.push_back(free ? tasks.series[c].count : hints.ahead[c] + dice.below(3));
  }
  return listed(tasks, preference, ahead);
}

// One annealing. `aim` is what ranks should hold at most; without one the run is free.
class Cooling {
 public:
  Cooling(const Tasks& tasks, const Annealing& how, Board& board, Dice& dice, int64_t& moves, double aim)
      : tasks_(tasks), how_(how), board_(board), dice_(dice), moves_(moves), aim_(aim), reach_(board.makespan()),
        free_(aim >= kNever) {}

  // True: it came to a schedule as short as the best, with no more than the aim.
  bool anneal(const SeriesRows& rows, int64_t length) {
    Arrangement order(tasks_, aims(aim_));
    if (!order.load(rows)) return false;
    note(order);
    double heat = how_.hot, energy = cost(order);
    const double cooling = std::pow(how_.cold / how_.hot, static_cast<double>(kCheck) / static_cast<double>(length));
    for (int64_t move = 0; move < length; move++, moves_++) {
      if (move % kCheck == 0) {
        if (board_.over(moves_) || (free_ && reach_ <= board_.goal.makespan)) break;
        heat *= cooling;
      }
      order.begin();
      if (!change(order)) continue;
      order.settle();
      const double next = cost(order);
      if (next > energy && dice_.unit() >= std::exp((energy - next) / heat)) {
        order.undo();
        continue;
      }
      energy = next, stale_ = true;
      if (note(order)) energy = cost(order);
    }
    return held_;
  }

 private:
  double cost(const Arrangement& order) const { return board_.counted(order) + how_.price * order.excess(); }

  std::vector<double> aims(double aim) const {
    std::vector<double> found;
    for (double cap : tasks_.caps) found.push_back(std::floor(std::min(cap, aim)));  // whole: sums are exact
    return found;
  }

  bool change(Arrangement& order) {
    std::pair<int, int> at;
    if (order.excess() > 0 && dice_.unit() < how_.crowds)
      return order.crowded(dice_, at) && order.swap(at.first, at.second);
    if (stale_) order.critical(dice_, candidates_);
    stale_ = false;
    if (candidates_.empty()) return false;
    at = candidates_[dice_.below(static_cast<int>(candidates_.size()))];
    const int a = order.series_at(at.first, at.second), b = order.series_at(at.first, at.second + 1);
    if (!order.swap(at.first, at.second)) return false;
    if (dice_.unit() < how_.patterns) {
      // The same swap in the periods that follow: steady states repeat.
      int more = 1 + dice_.below(tasks_.series[a].count);
      for (int place = at.second + 2; more > 0 && order.has(at.first, place + 1); place++)
        if (order.stands(at.first, place, a, b)) order.swap(at.first, place++), more--;
    }
    return true;
  }

  // Tells the board of what is as short as was asked and holds no more. Then less is asked: of a free run time,
  // until there is no less; of others memory. True: the energy has changed.
  bool note(Arrangement& order) {
    const double makespan = board_.counted(order);
    if (makespan > reach_ * (1 + kNear) || order.excess() > 0) return false;
    if (free_ && makespan >= reach_ * (1 - kNear)) return false;
    const double bytes = order.peak();
    board_.add(bytes, order);
    reach_ = board_.makespan();
    held_ = true;
    if (free_) return false;
    order.aim(aims(bytes * (1 - kLess)));
    return true;
  }

  const Tasks& tasks_;
  const Annealing& how_;
  Board& board_;
  Dice& dice_;
  int64_t& moves_;
  std::vector<std::pair<int, int>> candidates_;
  const double aim_;
  double reach_;
  const bool free_;
  bool stale_ = true, held_ = false;
};

}  // namespace

Board::Board(Goal goal, double seconds, int64_t moves)
    : goal(goal), seconds_(seconds), moves_(moves), makespan_(kNever), bytes_(kNever) {}

bool Board::over(int64_t moves) const {
  if (makespan_ <= goal.makespan && bytes_ <= goal.bytes) return true;
  if (moves_ > 0 && moves >= moves_) return true;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count() >= seconds_;
}

void Board::add(double bytes, const Arrangement& order) {
  const double makespan = counted(order);
  const std::lock_guard guard(lock_);
  if (makespan > makespan_ * (1 + kNear) || (makespan >= makespan_ * (1 - kNear) && bytes >= bytes_)) return;
  makespan_ = std::min<double>(makespan, makespan_), bytes_ = bytes;
  if (!found.empty()) found.back().rows.clear();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begun_;
  found.push_back({order.makespan(), bytes, spent.count(), order.rows()});
}

SeriesRows listed(const Tasks& tasks, const std::vector<double>& preference, const std::vector<int>& ahead) {
  return Lister(tasks, preference, ahead).run();
}

void search(const Tasks& tasks, const Hints& hints, const Annealing& how, Board& board, uint64_t seed) {
  Dice dice(seed);
  int64_t moves = 0, length = how.length;
  double floor = board.goal.bytes;  // memory is sought between it and the best so far
  for (int turn = 0; !board.over(moves); turn++, length = std::min(2 * length, kLongest * how.length)) {
    const bool free = turn == 0 || (turn % 2 == 0 && board.makespan() > board.goal.makespan);
    const SeriesRows rows = start(tasks, hints, dice, turn == 0, free);
    const double aim = free ? kNever : std::sqrt(floor * board.bytes());
    const bool held = Cooling(tasks, how, board, dice, moves, aim).anneal(rows, length);
    if (!free && !held) floor = std::sqrt(floor * aim);
  }
}

}  // namespace plait
