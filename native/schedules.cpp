// PipelinedModel schedules from Python: the search, and its parts for comparison with their twin.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <thread>
#include <tuple>

#include "bind.h"
#include "schedule_search.h"

namespace nb = nanobind;

namespace plait {
namespace {

using Numbers = std::vector<double>;
using Whole = std::vector<int>;
// Rank, count, after and closes of each series; its time, lag, and the bytes it takes and gives; caps of ranks.
using Flat = std::tuple<Whole, Whole, Whole, Whole, Numbers, Numbers, Numbers, Numbers, Numbers>;
using Improvement = std::tuple<double, double, double>;  // seconds, makespan, bytes

Tasks tasks_of(const Flat& flat) {
  const auto& [rank, count, after, closes, time, lag, takes, gives, caps] = flat;
  std::vector<Series> series;
  for (size_t c = 0; c < rank.size(); c++)
    series.push_back({rank[c], count[c], time[c], after[c], lag[c], takes[c], gives[c], closes[c]});
  return Tasks(static_cast<int>(caps.size()), std::move(series), caps);
}

// The best rows and the improvements that led to them.
std::pair<SeriesRows, std::vector<Improvement>> best_rows(const Flat& flat, const Hints& hints, const Annealing& how,
                                                    Goal goal, double seconds, int64_t moves, uint64_t seed,
                                                    int threads) {
  nb::gil_scoped_release release;
  const Tasks tasks = tasks_of(flat);
  Board board(goal, seconds, moves);
  std::vector<std::thread> crew;
  for (int i = 1; i < threads; i++)
    crew.emplace_back([&, i] { search(tasks, hints, how, board, seed + static_cast<uint64_t>(i)); });
  search(tasks, hints, how, board, seed);
  for (auto& each : crew) each.join();
  std::vector<Improvement> steps;
  for (const Found& found : board.found) steps.emplace_back(found.seconds, found.makespan, found.bytes);
  return {board.found.empty() ? SeriesRows{} : board.found.back().rows, steps};
}

}  // namespace

void bind_schedules(nb::module_& m) {
  m.def("schedule_listed", [](const Flat& flat, const Numbers& preference, const Whole& ahead) {
    return listed(tasks_of(flat), preference, ahead);
  });
  m.def("schedule_search",
        [](const Flat& flat, const Numbers& urgency, const Whole& ahead, const Numbers& how, int64_t length,
           std::pair<double, double> goal, std::pair<double, int64_t> limit, std::pair<uint64_t, int> seeds) {
          return best_rows(flat, {urgency, ahead}, {how[0], how[1], how[2], how[3], how[4], length},
                           {goal.first, goal.second}, limit.first, limit.second, seeds.first, seeds.second);
        });
}

}  // namespace plait
