#include "schedule_arrangement.h"

#include <algorithm>
#include <numeric>

namespace plait {

Tasks::Tasks(int ranks, std::vector<Series> given, std::vector<double> caps)
    : ranks(ranks), series(std::move(given)), caps(std::move(caps)), here(ranks) {
  for (size_t c = 0; c < series.size(); c++) {
    first.push_back(count);
    here[series[c].rank].push_back(static_cast<int>(c));
    count += series[c].count;
  }
  of.resize(count);
  after.assign(count, -1);
  followers.assign(count, {-1, -1});
  for (size_t c = 0; c < series.size(); c++)
    for (int k = 0; k < series[c].count; k++) {
      const int task = first[c] + k;
      of[task] = static_cast<int>(c);
      if (series[c].after < 0) continue;
      const int source = first[series[c].after] + k;
      after[task] = source;
      auto& [one, other] = followers[source];
      (one < 0 ? one : other) = task;
    }
}

uint64_t Dice::next() {
  uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

bool Arrangement::load(const SeriesRows& rows) {
  const int n = tasks_.count;
  for (auto* each : {&place_, &before_, &behind_, &line_, &at_}) each->assign(n, -1);
  start_.assign(n, 0), end_.assign(n, 0), reached_.assign(n, 0);
  row_.assign(tasks_.ranks, {}), held_.assign(tasks_.ranks, {});
  std::vector<int> seen(tasks_.series.size(), 0);
  for (int r = 0; r < tasks_.ranks; r++) {
    auto& row = row_[r];
    for (int c : rows[r]) row.push_back(tasks_.first[c] + seen[c]++);
    for (size_t i = 0; i < row.size(); i++) {
      place_[row[i]] = static_cast<int>(i);
      if (i > 0) before_[row[i]] = row[i - 1], behind_[row[i - 1]] = row[i];
    }
    measure(r);
  }
  aim(aims_);
  for (size_t c = 0; c < seen.size(); c++)
    if (seen[c] < tasks_.series[c].count) return false;
  return order_all();
}

SeriesRows Arrangement::rows() const {
  SeriesRows found(tasks_.ranks);
  for (int r = 0; r < tasks_.ranks; r++)
    for (int task : row_[r]) found[r].push_back(tasks_.of[task]);
  return found;
}

double Arrangement::ready(int task) const {
  double time = 0;
  if (const int source = tasks_.after[task]; source >= 0) time = end_[source] + tasks_.series[tasks_.of[task]].lag;
  if (const int left = before_[task]; left >= 0) time = std::max(time, end_[left]);
  return time;
}

bool Arrangement::order_all() {
  const int n = tasks_.count;
  std::vector<int> waits(n);
  int tail = 0;
  for (int task = 0; task < n; task++) {
    waits[task] = (tasks_.after[task] >= 0) + (before_[task] >= 0);
    if (!waits[task]) line_[tail++] = task;
  }
  for (int head = 0; head < tail; head++) {
    const int task = line_[head];
    start_[task] = ready(task);
    end_[task] = start_[task] + tasks_.series[tasks_.of[task]].time;
    for (int next : {tasks_.followers[task].first, tasks_.followers[task].second, behind_[task]})
      if (next >= 0 && !--waits[next]) line_[tail++] = next;
  }
  if (tail < n) return false;
  // By start: what is near in time is near in line, and a swap touches little of it.
  std::stable_sort(line_.begin(), line_.end(), [&](int a, int b) { return start_[a] < start_[b]; });
  for (int i = 0; i < n; i++) at_[line_[i]] = i;
  find_makespan();
  return true;
}

void Arrangement::find_makespan() {
  makespan_ = 0;
  for (const auto& row : row_)
    if (!row.empty()) makespan_ = std::max(makespan_, end_[row.back()]);
}

void Arrangement::measure(int rank) {
  double held = 0;
  held_[rank].clear();
  for (int task : row_[rank]) {
    const Series& series = tasks_.series[tasks_.of[task]];
    held_[rank].push_back(held += series.takes);
    held -= series.gives;
  }
}

double Arrangement::peak() const {
  double most = 0;
  for (const auto& row : held_)
    for (double held : row) most = std::max(most, held);
  return most;
}

void Arrangement::aim(const std::vector<double>& aims) {
  aims_ = aims;
  excess_ = 0;
  for (int r = 0; r < tasks_.ranks; r++)
    for (double held : held_[r]) excess_ += above(r, held);
}

void Arrangement::begin() {
  moved_.clear(), swaps_.clear(), pieces_.clear(), cut_.clear();
  old_makespan_ = makespan_, old_excess_ = excess_;
  lowest_ = tasks_.count;
}

void Arrangement::exchange(int rank, int place) {
  auto& row = row_[rank];
  auto& held = held_[rank];
  const int a = row[place], b = row[place + 1], left = before_[a], right = behind_[b];
  const Series &sa = tasks_.series[tasks_.of[a]], &sb = tasks_.series[tasks_.of[b]];
  row[place] = b, row[place + 1] = a;
  place_[b] = place, place_[a] = place + 1;
  before_[b] = left, behind_[b] = a, before_[a] = b, behind_[a] = right;
  if (left >= 0) behind_[left] = b;
  if (right >= 0) before_[right] = a;
  excess_ -= above(rank, held[place]) + above(rank, held[place + 1]);
  held[place] = held[place] - sa.takes + sb.takes;
  held[place + 1] = held[place] - sb.gives + sa.takes;
  excess_ += above(rank, held[place]) + above(rank, held[place + 1]);
}

bool Arrangement::swap(int rank, int place) {
  const int a = row_[rank][place], b = row_[rank][place + 1];
  if (tasks_.of[a] == tasks_.of[b] || tasks_.after[b] == a) return false;
  // Of the tasks in line from a to b, those that wait for a go behind b; if b is one of them there is a circle.
  const int low = at_[a], high = at_[b];
  going_.clear(), waiting_.assign(1, a);
  reached_[a] = 1;
  for (int i = low + 1; i <= high; i++) {
    const int task = line_[i], source = tasks_.after[task], left = before_[task];
    const bool waits = (source >= 0 && reached_[source]) || (task != b && left >= 0 && reached_[left]);
    reached_[task] = waits;
    (waits ? waiting_ : going_).push_back(task);
  }
  const bool circle = reached_[b];
  for (int task : waiting_) reached_[task] = 0;
  if (circle) return false;
  pieces_.emplace_back(low, high - low + 1);
  cut_.insert(cut_.end(), line_.begin() + low, line_.begin() + high + 1);
  int i = low;
  for (const auto* part : {&going_, &waiting_})
    for (int task : *part) line_[i] = task, at_[task] = i++;
  exchange(rank, place);
  swaps_.emplace_back(rank, place);
  lowest_ = std::min(lowest_, low);
  return true;
}

void Arrangement::mark_far(int task, int& far) const {
  if (task >= 0) far = std::max(far, at_[task]);
}

void Arrangement::settle() {
  int far = lowest_;
  for (auto [rank, place] : swaps_) {
    const int b = row_[rank][place], a = row_[rank][place + 1];
    for (int task : {a, b, behind_[a]}) mark_far(task, far);
  }
  for (int i = lowest_; i <= far && i < tasks_.count; i++) {
    const int task = line_[i];
    const double time = ready(task);
    if (time == start_[task]) continue;
    moved_.push_back({task, start_[task]});
    start_[task] = time;
    end_[task] = time + tasks_.series[tasks_.of[task]].time;
    for (int next : {tasks_.followers[task].first, tasks_.followers[task].second, behind_[task]}) mark_far(next, far);
  }
  find_makespan();
}

void Arrangement::undo() {
  for (size_t i = swaps_.size(); i-- > 0;) exchange(swaps_[i].first, swaps_[i].second);
  auto from = cut_.end();
  for (size_t i = pieces_.size(); i-- > 0;) {
    from -= pieces_[i].second;
    for (int k = 0; k < pieces_[i].second; k++) line_[pieces_[i].first + k] = from[k], at_[from[k]] = pieces_[i].first + k;
  }
  for (const Start& old : moved_) {
    start_[old.task] = old.time;
    end_[old.task] = old.time + tasks_.series[tasks_.of[old.task]].time;
  }
  makespan_ = old_makespan_, excess_ = old_excess_;
}

void Arrangement::critical(Dice& dice, std::vector<std::pair<int, int>>& found) const {
  found.clear();
  int task = -1, last = 0;
  for (const auto& row : row_)
    if (!row.empty() && end_[row.back()] == makespan_ && dice.below(++last) == 0) task = row.back();
  while (task >= 0) {
    const int left = before_[task], source = tasks_.after[task];
    const bool by_row = left >= 0 && end_[left] == start_[task];
    const bool by_data = source >= 0 && end_[source] + tasks_.series[tasks_.of[task]].lag == start_[task];
    if (by_row && tasks_.of[left] != tasks_.of[task] && left != source)
      found.emplace_back(tasks_.series[tasks_.of[task]].rank, place_[left]);
    task = by_row && by_data ? (dice.next() & 1 ? left : source) : by_row ? left : by_data ? source : -1;
  }
}

bool Arrangement::crowded(Dice& dice, std::pair<int, int>& found) const {
  const int rank = dice.below(tasks_.ranks);
  const auto& row = row_[rank];
  const int last = static_cast<int>(row.size()) - 1;
  if (last < 1) return false;
  const int from = dice.below(last);
  for (int i = 0; i < last; i++) {
    const int place = from + i < last ? from + i : from + i - last;
    if (held_[rank][place] <= aims_[rank]) continue;
    const int a = tasks_.of[row[place]], b = tasks_.of[row[place + 1]];
    const bool lowers = a != b && (tasks_.series[a].takes > 0 || tasks_.series[b].gives > 0);
    if (!lowers || tasks_.after[row[place + 1]] == row[place]) continue;
    found = {rank, place};
    return true;
  }
  return false;
}

bool Arrangement::stands(int rank, int place, int a, int b) const {
  const auto& row = row_[rank];
  return tasks_.of[row[place]] == a && tasks_.of[row[place + 1]] == b;
}

}  // namespace plait
