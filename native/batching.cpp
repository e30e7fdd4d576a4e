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

struct Step {
  int cut = -1, width = 0;  // of the last batch: the cut that it begins at, its instances; 0: one stays idle
};

std::pair<double, std::vector<Batch>> batches(const Numbers& need_N, const Numbers& linear_N,
                                              const Numbers& square_N, const Numbers& weight_N,
                                              const Numbers& room_M, const std::vector<int>& cuts,
                                              const std::vector<int>& widths, const Numbers& alpha_W,
                                              const Numbers& beta_W, const Numbers& gamma_W) {
  const Numbers need = sums(need_N), linear = sums(linear_N), square = sums(square_N), weight = sums(weight_N),
                room = sums(room_M);
  const int instances = static_cast<int>(room_M.size()), row = instances + 1;
  const int last = static_cast<int>(cuts.size()) - 1, shapes = static_cast<int>(widths.size());
  constexpr double kNever = std::numeric_limits<double>::infinity();
  Numbers best((last + 1) * row, kNever), cost(shapes);
  std::vector<Step> steps((last + 1) * row);
  std::fill_n(best.begin(), row, 0.0);
  nb::gil_scoped_release release;
  for (int i = 1; i <= last; i++) {
    double* mine = &best[i * row];
    Step* chosen = &steps[i * row];
    int top = instances;  // beyond it the best plans cost less than any batch from here on would alone
    for (int j = i - 1; j >= 0; j--) {
      const int from = cuts[j], past = cuts[i];
      const double tokens = need[past] - need[from];
      if (tokens > room[instances]) break;
      const double urgency = weight[past] - weight[from];
      for (int w = 0; w < shapes; w++)
        cost[w] = urgency * (alpha_W[w] + beta_W[w] * (linear[past] - linear[from]) +
                             gamma_W[w] * (square[past] - square[from]));
      const double cheapest = *std::min_element(cost.begin(), cost.end());
      while (top > 0 && mine[top] <= cheapest) top--;
      if (top == 0) break;
      const double* before = &best[j * row];
      for (int w = 0; w < shapes; w++)
        for (int k = widths[w]; k <= top; k++) {
          const double value = before[k - widths[w]] + cost[w];
          if (value < mine[k] && tokens <= room[k] - room[k - widths[w]]) mine[k] = value, chosen[k] = {j, widths[w]};
        }
    }
    for (int k = 1; k <= instances; k++)
      if (mine[k - 1] < mine[k]) mine[k] = mine[k - 1], chosen[k] = {i, 0};
  }
  std::vector<Batch> plan;
  const double value = best[last * row + instances];
  if (value == kNever) return {value, plan};
  for (int i = last, k = instances; i > 0;) {
    const Step step = steps[i * row + k];
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
