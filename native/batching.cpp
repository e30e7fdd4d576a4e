// Which requests are computed together on how many instances: the exact programme over contiguous plans.
// Its twin in Python is plait/search/batching.py, which says what it means.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "bind.h"

namespace nb = nanobind;

namespace plait {
namespace {

using Numbers = std::vector<double>;
using Batch = std::tuple<int, int, int>;  // past request, past instance, instances

Numbers sums(const Numbers& values) {
  Numbers total(values.size() + 1, 0.0);
  for (size_t i = 0; i < values.size(); i++) total[i + 1] = total[i] + values[i];
  return total;
}

// The same, at some places only.
Numbers at(const std::vector<int>& cuts, const Numbers& values) {
  const Numbers total = sums(values);
  Numbers kept;
  for (const int cut : cuts) kept.push_back(total[cut]);
  return kept;
}

constexpr double kNever = std::numeric_limits<double>::infinity();

struct Step {
  int cut = -1, width = 0;  // of the last batch: the cut that it begins at, its instances; 0: one stays idle
};

// Sums over the jobs before each cut.
struct Work {
  Numbers need, linear, square, urgency;
};

// Cuts, the first and the last.
using Range = std::pair<int, int>;

// What ends at each cut on one interval of instances: least[i] = min over j of before[j] + cost(j..i).
//
// Urgency, linear and square never fall, so cost(j..i) obeys the quadrangle inequality; what the memory forbids
// (j below a bound that grows with i) and what is infeasible before keep it. The best j therefore never falls as
// i grows, and halving finds all of them in n log n steps.
class Interval {
 public:
  Interval(const Work& work, const double* before, Range columns, double alpha, double beta,
           double gamma)
      : work_(work), before_(before), columns_(columns), alpha_(alpha), beta_(beta), gamma_(gamma) {}

  // Improves `least` and `chosen` at cuts `rows` where a batch of `width` instances with `room` slots is better.
  void improve(double room, int width, Range rows, double* least, Step* chosen) {
    rows_.clear(), lowest_.clear();
    int low = columns_.first;
    for (int i = std::max(1, rows.first); i <= rows.second; i++) {
      while (low < i && work_.need[i] - work_.need[low] > room) low++;
      if (low < i && low <= columns_.second) rows_.push_back(i), lowest_.push_back(low);
    }
    least_ = least, chosen_ = chosen, width_ = width;
    halve(0, static_cast<int>(rows_.size()), columns_.first, columns_.second);
  }

 private:
  void halve(int begin, int end, int left, int right) {
    if (begin >= end) return;
    const int middle = (begin + end) / 2, i = rows_[middle];
    const int from = std::max(left, lowest_[middle]), to = std::min(right, i - 1);
    const double urgency = work_.urgency[i], linear = work_.linear[i], square = work_.square[i];
    double value = kNever;
    int best = -1;
    for (int j = from; j <= to; j++) {
      const double cost = (urgency - work_.urgency[j]) * (alpha_ + beta_ * (linear - work_.linear[j]) +
                                                          gamma_ * (square - work_.square[j]));
      if (before_[j] + cost < value) value = before_[j] + cost, best = j;
    }
    if (value < least_[i]) least_[i] = value, chosen_[i] = {best, width_};
    halve(begin, middle, left, best < 0 ? right : best);
    halve(middle + 1, end, best < 0 ? left : best, right);
  }

  const Work& work_;
  const double* before_;
  const Range columns_;
  const double alpha_, beta_, gamma_;
  std::vector<int> rows_, lowest_;  // cuts at which a batch can end, and the first at which it may begin
  double* least_ = nullptr;
  Step* chosen_ = nullptr;
  int width_ = 0;
};

// Where plans may end that use the instances before `k`: what comes before fits there, what follows elsewhere.
Range ends(const Numbers& need, const Numbers& room, int k) {
  const auto later = std::lower_bound(need.begin(), need.end(), need.back() - (room.back() - room[k]));
  const auto past = std::upper_bound(need.begin(), need.end(), room[k]);
  return {static_cast<int>(later - need.begin()), static_cast<int>(past - need.begin()) - 1};
}

std::pair<double, std::vector<Batch>> batches(const Numbers& need_N, const Numbers& linear_N,
                                              const Numbers& square_N, const Numbers& weight_N,
                                              const Numbers& room_M, const std::vector<int>& cuts,
                                              const std::vector<int>& widths, const Numbers& alpha_W,
                                              const Numbers& beta_W, const Numbers& gamma_W) {
  const Work work{at(cuts, need_N), at(cuts, linear_N), at(cuts, square_N), at(cuts, weight_N)};
  const Numbers room = sums(room_M);
  const int instances = static_cast<int>(room_M.size()), row = static_cast<int>(cuts.size());
  nb::gil_scoped_release release;
  Numbers best((instances + 1) * row, kNever);  // [instances][cuts]
  std::vector<Step> steps((instances + 1) * row);
  std::vector<Range> finite(instances + 1, {0, 0});  // between which some plan fits
  best[0] = 0.0;
  for (int k = 1; k <= instances; k++) {
    double* mine = &best[k * row];
    auto [first, last] = ends(work.need, room, k);
    if (first <= last) std::copy(mine - row + first, mine - row + last + 1, mine + first);
    for (size_t w = 0; w < widths.size(); w++) {
      const int left = k - widths[w];
      if (left < 0) continue;
      Interval interval(work, &best[left * row], finite[left], alpha_W[w], beta_W[w], gamma_W[w]);
      interval.improve(room[k] - room[left], widths[w], {first, last}, mine, &steps[k * row]);
    }
    while (first <= last && mine[first] == kNever) first++;
    while (first <= last && mine[last] == kNever) last--;
    finite[k] = {first, last};
  }
  std::vector<Batch> plan;
  const double value = best[instances * row + row - 1];
  for (int i = value == kNever ? 0 : row - 1, k = instances; i > 0;) {
    const Step step = steps[k * row + i];
    if (step.width == 0) {
      k--;
      continue;
    }
    plan.emplace_back(cuts[i], k, step.width);
    i = step.cut, k -= step.width;
  }
  std::reverse(plan.begin(), plan.end());
  return {value, plan};
}

}  // namespace

void bind_batching(nb::module_& m) { m.def("batches", &batches); }

}  // namespace plait
