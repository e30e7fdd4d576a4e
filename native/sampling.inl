// Bodies of sampling.h; compiled once per instruction set, each product and sum rounded by itself: no fused
// ones, so that numpy's bits are ours.
#if defined(PLAIT_X86)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "sampling.h"

namespace plait {
namespace {

#include "vectors.inl"

typedef double D8 __attribute__((vector_size(64)));
typedef int64_t L8 __attribute__((vector_size(64)));

constexpr int64_t kBlock = 256;  // tokens that are summed, and skipped, together
constexpr int64_t kUnit = 40;    // the largest token weighs 2^40
constexpr float kFar = -28.f;    // below it a weight is rounded to nothing
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr I16 kLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// What is left over of a row: tokens above a logit, and of those that equal it the ones up to id `last`.
struct Cut {
  float logit = kNone;
  int64_t last = std::numeric_limits<int32_t>::max();
};

struct Scale {
  float largest, sharpness, floor;
};

// What a row is made of, and room to work in.
struct Row {
  const float* logits;
  int64_t vocab, blocks;
  float largest;
  std::vector<V16> lanes;     // the largest of every 16th token of a block
  std::vector<float> peaks;   // the largest of each block
  std::vector<int64_t> sums;  // weights of each block
  std::vector<float> some;    // logits of candidates
};

inline V16 load(const float* x, int64_t i, int64_t n) {  // nothing stands behind the last
  if (i + 16 <= n) return read16(x + i);
  float part[16];
  for (int64_t j = 0; j < 16; j++) part[j] = i + j < n ? x[i + j] : kNone;
  return read16(part);
}

// Puts the chosen lanes at `to`, which has room for all; returns how many they are.
inline int64_t squeeze(float* to, V16 x, I16 chosen) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)chosen, (__m512i)chosen);
  write(to, (V16)_mm512_maskz_compress_ps(mask, (__m512)x));
  return __builtin_popcount(mask);
#else
  int64_t n = 0;
  for (int j = 0; j < 16; j++) {
    to[n] = x[j];
    n += chosen[j] != 0;
  }
  return n;
#endif
}

// e^((x - largest) * sharpness) * 2^kUnit of what is left over, not yet rounded to an integer.
inline V16 weigh(V16 x, int64_t i, const Scale& scale, const Cut& cut) {
  const V16 least = splat(scale.floor), scaled = (x - scale.largest) * scale.sharpness;
  const V16 y = scaled >= least ? scaled : least;
  const V16 n = (y * 1.44269504f + 12582912.f) - 12582912.f;
  V16 f = y - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  V16 p = f * float(1.0 / 5040) + float(1.0 / 720);
  p = p * f + float(1.0 / 120);
  p = p * f + float(1.0 / 24);
  p = p * f + float(1.0 / 6);
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = p * f + 1.f;
  p = p * cast<V16>((__builtin_convertvector(n, I16) + int32_t(127 + kUnit)) << 23);
  p = scaled >= least ? p : V16{};
  if (cut.logit == kNone) return p;
  const int64_t last = cut.last - i;
  const int32_t near = int32_t(last < -1 ? -1 : (last > 16 ? 16 : last));
  return (x > cut.logit) | ((x == cut.logit) & (kLanes <= near)) ? p : V16{};
}

// To the nearest integers, even ones on ties: the last bits of a double that is so large.
constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
inline L8 integers(V8 x) {
  return cast<L8>(__builtin_convertvector(x, D8) + kShift) - cast<int64_t>(kShift);
}

int64_t weight_of(const float* x, int64_t n, int64_t first, int64_t past, const Scale& scale, const Cut& cut) {
  L8 sum{};
  for (int64_t i = first; i < past; i += 16) {
    const V16 w = weigh(load(x, i, n), i, scale, cut);
    sum += integers(low(w)) + integers(high(w));
  }
  int64_t all = 0;
  for (int j = 0; j < 8; j++) all += sum[j];
  return all;
}

// The row's maxima; false where the largest is not finite.
bool look(Row& row, const float* logits, int64_t vocab) {
  row.logits = logits;
  row.vocab = vocab;
  row.blocks = (vocab + kBlock - 1) / kBlock;
  row.lanes.resize(size_t(row.blocks));
  row.peaks.resize(size_t(row.blocks));
  row.largest = kNone;
  I16 odd{};
  for (int64_t b = 0; b < row.blocks; b++) {
    V16 most = splat(kNone);
    for (int64_t i = b * kBlock; i < std::min(vocab, (b + 1) * kBlock); i += 16) {
      const V16 x = load(logits, i, vocab);
      odd |= x != x;
      most = x > most ? x : most;
    }
    row.lanes[size_t(b)] = most;
    row.peaks[size_t(b)] = greatest(most);
    row.largest = std::max(row.largest, row.peaks[size_t(b)]);
  }
  bool any = false;
  for (int j = 0; j < 16; j++) any |= odd[j] != 0;
  return !any && std::isfinite(row.largest);
}

int64_t first_largest(const Row& row) {
  const auto block = std::find(row.peaks.begin(), row.peaks.end(), row.largest) - row.peaks.begin();
  return std::find(row.logits + block * kBlock, row.logits + row.vocab, row.largest) - row.logits;
}

// Not above the k-th largest logit, and near it: of the k-th largest maximum of parts of the row.
float below_kth(const Row& row, int64_t k) {
  std::vector<float> tops;
  if (k <= row.blocks) {
    tops = row.peaks;
  } else {
    tops.resize(size_t(row.blocks * 16));
    std::memcpy(tops.data(), row.lanes.data(), tops.size() * sizeof(float));
  }
  if (k > int64_t(tops.size())) return kNone;
  std::nth_element(tops.begin(), tops.begin() + k - 1, tops.end(), std::greater<>());
  return tops[size_t(k - 1)];
}

// Gathers the logits from `least` on, but none of -infinity; returns how many they are.
int64_t gather(Row& row, float least) {
  row.some.resize(size_t(row.vocab + 16));
  int64_t n = 0;
  for (int64_t b = 0; b < row.blocks; b++) {
    if (row.peaks[size_t(b)] < least) continue;
    for (int64_t i = b * kBlock; i < std::min(row.vocab, (b + 1) * kBlock); i += 16) {
      const V16 x = load(row.logits, i, row.vocab);
      n += squeeze(row.some.data() + n, x, (x >= least) & (x > kNone));
    }
  }
  return n;
}

float kth_largest(Row& row, int64_t k) {
  const int64_t n = gather(row, below_kth(row, k));
  if (n < k) return kNone;
  std::nth_element(row.some.begin(), row.some.begin() + k - 1, row.some.begin() + n, std::greater<>());
  return row.some[size_t(k - 1)];
}

int64_t sum_blocks(Row& row, const Scale& scale, const Cut& cut) {
  row.sums.resize(size_t(row.blocks));
  int64_t total = 0;
  for (int64_t b = 0; b < row.blocks; b++) {
    const float peak = row.peaks[size_t(b)];
    const bool skipped = peak < cut.logit || (peak - scale.largest) * scale.sharpness < scale.floor;
    const int64_t past = std::min(row.vocab, (b + 1) * kBlock);
    row.sums[size_t(b)] = skipped ? 0 : weight_of(row.logits, row.vocab, b * kBlock, past, scale, cut);
    total += row.sums[size_t(b)];
  }
  return total;
}

// Keeps of n candidates those on one side of a pivot.
template <class Side>
int64_t narrow(float* some, int64_t n, Side side) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const V16 x = load(some, i, n);
    kept += squeeze(some + kept, x, side(x) & (x > kNone));
  }
  return kept;
}

float middle(const float* x, int64_t n) {
  float a = x[n / 4], b = x[n / 2], c = x[n - 1 - n / 4];
  return std::max(std::min(a, b), std::min(std::max(a, b), c));
}

// The fewest likeliest tokens whose weights reach `needed`: quickselect by weight.
Cut nucleus(Row& row, const Scale& scale, float least, int64_t needed) {
  int64_t n = gather(row, least), above = 0;
  float* some = row.some.data();
  for (;;) {
    const float pivot = middle(some, n);
    const int64_t larger = above + weight_of(some, n, 0, n, scale, {pivot, -1});
    if (larger >= needed) {
      n = narrow(some, n, [pivot](V16 x) { return x > pivot; });
      continue;
    }
    const int64_t one = weight_of(&pivot, 1, 0, 1, scale, {});
    const int64_t equal = above + weight_of(some, n, 0, n, scale, {pivot}) - larger;
    if (larger + equal < needed) {
      above = larger + equal;
      n = narrow(some, n, [pivot](V16 x) { return x < pivot; });
      continue;
    }
    int64_t wanted = (needed - larger + one - 1) / one;
    if (wanted * one == equal) return {pivot};
    int64_t id = -1;
    while (wanted > 0) wanted -= row.logits[++id] == pivot;
    return {pivot, id};
  }
}

// No logit below it stands in the nucleus: tokens that weigh less than an equal part of the rest are of the rest.
float nucleus_floor(const Scale& scale, const Cut& cut, int64_t total, int64_t needed, int64_t vocab) {
  const double part = std::max(double(total - needed) / double(vocab) - 1, 0.) / double(int64_t(1) << kUnit);
  const double scaled = std::max(double(scale.floor), std::log(part)) - 1e-3;  // far more than rounding
  const float least = float(double(scale.largest) + scaled / double(scale.sharpness) * (1 + 1e-6));
  return std::max(cut.logit, std::nextafter(least, kNone));
}

// The first token at which the running sum of the weights passes `target`.
int64_t pick(const Row& row, const Scale& scale, const Cut& cut, int64_t target) {
  int64_t b = 0;
  while (target >= row.sums[size_t(b)]) target -= row.sums[size_t(b++)];
  for (int64_t i = b * kBlock;; i += 16) {
    const V16 w = weigh(load(row.logits, i, row.vocab), i, scale, cut);
    const L8 parts[2] = {integers(low(w)), integers(high(w))};
    for (int j = 0; j < 16; j++) {
      target -= parts[j / 8][j % 8];
      if (target < 0) return i + j;
    }
  }
}

int64_t draw_row(Row& row, const float* logits, int64_t vocab, const Wish& wish) {
  if (!look(row, logits, vocab)) return -1;
  if (wish.sharpness == 0) return first_largest(row);
  const Scale scale{row.largest, wish.sharpness, wish.floor};
  Cut cut;
  if (wish.top_k > 0 && wish.top_k < vocab) cut.logit = kth_largest(row, wish.top_k);
  int64_t total = sum_blocks(row, scale, cut);
  if (wish.top_p < 1) {
    const int64_t needed = std::min(total, int64_t(std::ceil(wish.top_p * double(total))));
    cut = nucleus(row, scale, nucleus_floor(scale, cut, total, needed, vocab), needed);
    total = sum_blocks(row, scale, cut);
  }
  return pick(row, scale, cut, std::min(total - 1, int64_t(wish.share * double(total))));
}

// Room that a thread keeps: fresh pages would cost as much as the draw.
Row& room() {
  static thread_local Row row;
  return row;
}

void draw(const DrawArgs& args, int64_t first, int64_t past) {
  for (int64_t r = first; r < past; r++)
    args.tokens[r] = draw_row(room(), args.logits + args.at[r] * args.stride, args.vocab, args.wishes[r]);
}

void likeliest(Row& row, int64_t top, int64_t* ids) {
  const float least = kth_largest(row, top);
  std::vector<int64_t> found;
  for (int64_t b = 0; b < row.blocks; b++) {
    if (row.peaks[size_t(b)] < least) continue;
    for (int64_t i = b * kBlock; i < std::min(row.vocab, (b + 1) * kBlock); i++)
      if (row.logits[i] >= least) found.push_back(i);
  }
  std::partial_sort_copy(found.begin(), found.end(), ids, ids + top, [&](int64_t a, int64_t b) {
    return row.logits[a] != row.logits[b] ? row.logits[a] > row.logits[b] : a < b;
  });
}

void score(const ScoreArgs& args, int64_t first, int64_t past) {
  Row& row = room();
  for (int64_t r = first; r < past; r++) {
    const bool finite = look(row, args.logits + args.at[r] * args.stride, args.vocab);
    args.largest[r] = finite ? row.largest : std::numeric_limits<float>::quiet_NaN();
    if (!finite) continue;
    args.totals[r] = sum_blocks(row, {row.largest, 1.f, kFar}, {});
    if (args.top > 0) likeliest(row, args.top, args.ids + r * args.top);
  }
}

}  // namespace
}  // namespace plait
