// Body of paged attention; compiled once per instruction set. Decoding and prefill are the same code:
// a few (token, head) pairs, the rows of a tile, read 64 keys together.
//
// A result does not depend on what is computed beside it: keys are taken in blocks of 64 and segments of
// kSegment counted from key 0, a score is one chain over the head size, an output one chain over the
// keys of its segment, and segments are merged in ascending order. What is beyond a row's own keys adds
// an exact zero. Functions that both round and could be fused in two ways are compiled once (noinline, noclone).
#include <cmath>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "attention.h"

namespace plait {
namespace {

#include "vectors.inl"

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTilePages = 4, kTileColumns = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTilePages = 1, kTileColumns = 1;
#else
constexpr int kTileRows = 2, kTilePages = 1, kTileColumns = 1;
#endif
constexpr int kBlock = 64;  // keys between two looks at the running maximum
constexpr int kPages = kBlock / kLanes;

// Running state of the rows of an item.
struct State {
  float best[kItemRows], sum[kItemRows];
  alignas(64) float out[kItemRows * kMaxHead];
};

// Packed keys and values of a block, wherever they lie. T is the type of queries and keys, V that of values.
template <class T, class V>
struct Tiles {
  const T* keys[kPages];
  const V* values[kPages];
  const V* ahead[kPages];  // keys and values of the next block, to be asked for while this one is read; or null
};

// Copies of scattered tokens, packed. Keys of an int8 pool are copied in the queries' type, which holds whole
// numbers of 8 bits exactly; its values are read as they are. Both go without scales: those of keys multiply
// the scores, those of values the weights.
template <class T, class V>
struct Scratch {
  alignas(64) T keys[kPages][kLanes * kMaxHead];
  alignas(64) V values[kPages][kLanes * kMaxHead];
  alignas(64) float key_scales[kBlock], value_scales[kBlock];  // of int8 pools
};

inline V16 add_product(V16 sum, const float* q, const float* key, int64_t d) {
  return sum + q[d] * read16(key + d * kLanes);
}

inline V16 add_product(V16 sum, const uint16_t* q, const uint16_t* key, int64_t d) {
#if defined(__AVX512BF16__)
  const __m512bh pair = (__m512bh)_mm512_set1_epi32(read<int32_t>(q + 2 * d));
  return (V16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(key + 2 * d * kLanes), pair);
#else
  const U16 both = read<U16>(key + 2 * d * kLanes);
  sum += widen(q[2 * d]) * cast<V16>(both << 16);
  return sum + widen(q[2 * d + 1]) * cast<V16>(both & 0xffff0000u);
#endif
}

// Scores of M rows against P pages.
template <int M, int P, class T>
inline void score(const T* const* q, const T* const* keys, int64_t size, float* s) {
  V16 sum[M][P] = {};
  const int64_t steps = size * int64_t(sizeof(T)) / 4;
  for (int64_t d = 0; d < steps; d++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) sum[m][p] = add_product(sum[m][p], q[m], keys[p], d);
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++) write(s + m * kBlock + p * kLanes, sum[m][p]);
}

template <int M, class T, class V>
void scores(const T* const* q, const Tiles<T, V>& tiles, int page, int past, int64_t size, float* s) {
  while (past - page >= kTilePages) {
    score<M, kTilePages>(q, tiles.keys + page, size, s + page * kLanes);
    page += kTilePages;
  }
  for (; page < past; page++) score<M, 1>(q, tiles.keys + page, size, s + page * kLanes);
}

// Asks for memory that is read soon.
template <class T>
inline void ask(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i, 0, 2);
}

// Outputs of M rows and C vectors of columns: adds keys [first, past) by their weights.
template <int M, int C, class T, class V>
inline void value(const float* weights, const Tiles<T, V>& tiles, int first, int past, int64_t width, float* out,
                  int64_t column) {
  V16 sum[M][C];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sum[m][c] = read16(out + m * width + column + c * 16);
  for (int j = first; j < past;) {
    const V* v = tiles.values[j / kLanes] + (j % kLanes) * width + column;
    const int page_past = (j / int(kLanes) + 1) * int(kLanes), end = page_past < past ? page_past : past;
    const V* ahead = column ? nullptr : tiles.ahead[j / kLanes];
    for (; j < end; j++, v += width) {
      if (ahead) ask(ahead + 2 * (j % kLanes) * width, 2 * width);
      V16 part[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) part[c] = read16(v + c * 16);
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        const float weight = weights[m * kBlock + j];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sum[m][c] += weight * part[c];
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) write(out + m * width + column + c * 16, sum[m][c]);
}

// Adds two keys' values, each of 16 columns, by their weights.
inline V16 add_pair(V16 sum, const uint16_t* weights, U16 both) {
#if defined(__AVX512BF16__)
  return (V16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)_mm512_set1_epi32(read<int32_t>(weights)));
#else
  sum += widen(weights[0]) * cast<V16>(both << 16);
  return sum + widen(weights[1]) * cast<V16>(both & 0xffff0000u);
#endif
}

// The same of bf16 values, which lie in pairs of keys, and with weights in bf16, as torch has them. What a
// pair's other key holds may be no number: it is left out where it is not of [first, past).
template <int M, int C>
inline void value(const uint16_t* weights, const Tiles<uint16_t, uint16_t>& tiles, int first, int past, int64_t width,
                  float* out, int64_t column) {
  V16 sum[M][C];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sum[m][c] = read16(out + m * width + column + c * 16);
  for (int j = first / 2 * 2; j < past; j += 2) {
    const int64_t at = j % kLanes * width;
    const uint16_t* v = tiles.values[j / kLanes] + at + 2 * column;
    if (!column && tiles.ahead[j / kLanes]) ask(tiles.ahead[j / kLanes] + 2 * at, 4 * width);
    U16 both[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) both[c] = read<U16>(v + 32 * c);
    if (j < first || j + 1 == past)
      for (int c = 0; c < C; c++) both[c] &= j < first ? 0xffff0000u : 0xffffu;
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sum[m][c] = add_pair(sum[m][c], weights + m * kBlock + j, both[c]);
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) write(out + m * width + column + c * 16, sum[m][c]);
}

template <int M, class W, class T, class V>
void columns(const W* weights, const Tiles<T, V>& tiles, int first, int past, int64_t width, float* out) {
  int64_t column = 0;
  for (; column + kTileColumns * 16 <= width; column += kTileColumns * 16)
    value<M, kTileColumns>(weights, tiles, first, past, width, out, column);
  if constexpr (kTileColumns > 2)  // heads of 32: one sum alone would wait for itself at each key
    for (; column + 32 <= width; column += 32) value<M, 2>(weights, tiles, first, past, width, out, column);
  for (; column < width; column += 16) value<M, 1>(weights, tiles, first, past, width, out, column);
}

template <int M, class T, class V>
void values(const float* weights, const Tiles<T, V>& tiles, int first, int past, int64_t width, float* out) {
  if constexpr (sizeof(V) == 2) {
    alignas(64) uint16_t halves[M * kBlock];
    for (int i = 0; i < M * kBlock; i += 16) write16(halves + i, read16(weights + i));
    columns<M>(halves, tiles, first, past, width, out);
  } else {
    columns<M>(weights, tiles, first, past, width, out);
  }
}

// Turns the scores of a row into weights: keys [first, past) of the block count, the others weigh 0.
__attribute__((noinline, noclone)) void weigh(const PagedArgs& a, float* s, int first, int past, float* best, float* sum,
                                     float* out, int64_t width) {
  V16 part[kPages], most = splat(-INFINITY);
  for (int p = 0; p < kPages; p++) {
    part[p] = read16(s + p * kLanes) * a.scale;
    if (a.softcap > 0) part[p] = tanh16(part[p] * (1.f / a.softcap)) * a.softcap;
    const V16 at = kIota + float(p * kLanes);
    part[p] = at < float(first) ? splat(-INFINITY) : part[p];
    part[p] = at < float(past) ? part[p] : splat(-INFINITY);
    most = greater(part[p], most);
  }
  const float now = greatest(most);
  if (now > *best) {
    const float shrink = *best == -INFINITY ? 0.f : exp16(splat(*best - now))[0];
    *sum *= shrink;
    for (int64_t d = 0; d < width; d += 16) write(out + d, read16(out + d) * shrink);
    *best = now;
  }
  const float level = *best == -INFINITY ? 0.f : *best;
  for (int p = 0; p < kPages; p++) {
    part[p] = exp16(part[p] - level);
    write(s + p * kLanes, part[p]);
  }
  *sum += total((part[0] + part[1]) + (part[2] + part[3]));
}

// Adds a part (its best, sum, out) to a state. A part without keys has sum 0.
__attribute__((noinline, noclone)) void add_part(float* best, float* sum, float* out, float part_best, float part_sum,
                                        const float* part, int64_t width) {
  if (part_sum == 0) return;
  if (*sum == 0) {
    *best = part_best;
    *sum = part_sum;
    std::memcpy(out, part, size_t(width) * sizeof(float));
    return;
  }
  const float most = part_best > *best ? part_best : *best;
  const V16 gaps = {*best - most, part_best - most};
  const V16 shares = exp16(gaps);
  const float share = shares[0], part_share = shares[1];
  *best = most;
  *sum *= share;
  *sum += part_sum * part_share;
  for (int64_t d = 0; d < width; d += 16) {
    V16 scaled = read16(part + d) * part_share;
    write(out + d, read16(out + d) * share + scaled);
  }
}

template <class T>
void finish(const PagedArgs& a, float best, float sum, const float* out, int64_t token, int64_t head) {
  T* to = static_cast<T*>(a.out) + (token * a.heads + head) * a.size;
  const bool any = sum != 0;  // what is not a number stays so
  const float factor = any ? 1.f / sum : 0.f;
  int64_t d = 0;
  for (; d + 16 <= a.size; d += 16) write16(to + d, any ? read16(out + d) * factor : V16{});
  for (; d < a.size; d++) put(to + d, any ? out[d] * factor : 0.f);
  a.lse[token * a.heads + head] = any ? best + std::log(sum) : -INFINITY;
}

void finish_any(const PagedArgs& a, float best, float sum, const float* out, int64_t token, int64_t head) {
  if (a.bf16 && !a.wide)
    finish<uint16_t>(a, best, sum, out, token, head);
  else
    finish<float>(a, best, sum, out, token, head);
}

// Keys that a token sees: [first, past).
struct Range {
  int64_t first, past;
};

inline Range seen(const PagedArgs& a, int64_t row, int64_t token) {
  const int64_t ahead = a.positions[token] - a.first;
  const int64_t own = ahead < 0 ? 0 : ahead / a.stride + 1;
  const int64_t past = own < a.lens[row] ? own : a.lens[row];
  const int64_t hidden = a.window > 0 ? ahead - a.window + 1 : 0;
  return {hidden > 0 ? (hidden + a.stride - 1) / a.stride : 0, past};
}

template <class T>
void pack_token(const T* key, const T* value, T* keys, T* values, int64_t lane, int64_t size, int64_t width) {
  constexpr int64_t pack = 4 / int64_t(sizeof(T));
  for (int64_t d = 0; d < size / pack; d++) std::memcpy(keys + (d * kLanes + lane) * pack, key + d * pack, 4);
  put_values(value, width, values, width, kLanes, lane);
}

// Where keys of a row lie, with those of their block.
template <class V>
struct Places {
  const PagedArgs& a;
  const int32_t* table;
  int64_t kv_head, part = part_of<V>(a.size, a.lanes);

  Places(const PagedArgs& args, const AttendItem& item)
      : a(args), table(args.tables + args.rows[item.row] * args.table_stride), kv_head(item.kv_head) {}

  const V* operator()(int64_t key) const {
    const int64_t slot = table[key / a.page] * a.page + key % a.page;
    return static_cast<const V*>(a.kv) + (slot / a.lanes * a.kv_heads + kv_head) * 2 * part;
  }
};

// The pages that the item after this one reads first. Few keys are read a row and head when many are decoded:
// without it each would begin with a wait for memory.
template <class V>
void look_ahead(const PagedArgs& a, const AttendItem* next, const V** pages) {
  for (int64_t page = 0; page < kPages; page++) pages[page] = nullptr;
  if (!next || a.lanes != kLanes) return;
  const Range keys = seen(a, next->row, next->token);
  const int64_t begin = next->segment * kSegment, first = (keys.first > begin ? keys.first : begin) / kBlock * kBlock;
  const Places<V> at(a, *next);
  for (int64_t page = 0; page < kPages && first + page * kLanes < keys.past; page++)
    pages[page] = at(first + page * kLanes);
}

// Finds the pages of keys [start, past), start on a page's border. Scattered tokens are copied. The
// next block, up to key `last`, or else `next`, is asked for early: no pattern tells the processor where it is.
template <class T>
void find(const Places<T>& at, int64_t start, int64_t past, int64_t last, const T* const* next, Tiles<T, T>& tiles,
          Scratch<T, T>* scratch) {
  const PagedArgs& a = at.a;
  const int64_t width = padded(a.size), part = at.part;
  for (int64_t key = start; key < past; key += kLanes) {
    const int64_t page = key % kBlock / kLanes;
    tiles.ahead[page] = a.lanes == kLanes && key + kBlock < last ? at(key + kBlock) : next[page];
    if (a.lanes == kLanes) {
      tiles.keys[page] = at(key);
      tiles.values[page] = at(key) + part;
      continue;
    }
    tiles.keys[page] = scratch->keys[page];
    tiles.values[page] = scratch->values[page];
    for (int64_t lane = 0; lane < kLanes && key + lane < past; lane++) {
      const T* token = at(key + lane);
      if (key + lane + kBlock < last) ask(at(key + lane + kBlock), 2 * part);
      pack_token(token, token + part, scratch->keys[page], scratch->values[page], lane, a.size, width);
    }
  }
}

// Packed keys of int8, [D / 4][L][4], in the order of the queries' type. Of a scattered token: at `lane`.
inline void unpack_keys(const int8_t* from, int64_t lanes, float* keys, int64_t lane, int64_t size) {
  if (lanes == kLanes)
    for (int64_t d = 0; d < size; d += 4) {
      const U16 word = read<U16>(from + d * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) write(keys + (d + i) * kLanes, from_byte(word, i));
    }
  else
    for (int64_t d = 0; d < size; d++) keys[d * kLanes + lane] = from[d];
}

inline void unpack_keys(const int8_t* from, int64_t lanes, uint16_t* keys, int64_t lane, int64_t size) {
  if (lanes == kLanes)
    for (int64_t d = 0; d < size; d += 4) {
      const U16 word = read<U16>(from + d * kLanes);
#pragma GCC unroll 2
      for (int i = 0; i < 4; i += 2)  // no bits of an int8 lie in a float's lower half
        write(keys + (d + i) * kLanes, cast<U16>(from_byte(word, i)) >> 16 | cast<U16>(from_byte(word, i + 1)));
    }
  else
    for (int64_t d = 0; d < size; d++) put(keys + (d / 2 * kLanes + lane) * 2 + d % 2, float(from[d]));
}

// The same of an int8 pool.
template <class T>
void find(const Places<int8_t>& at, int64_t start, int64_t past, int64_t last, const int8_t* const* next,
          Tiles<T, int8_t>& tiles, Scratch<T, int8_t>* scratch) {
  const PagedArgs& a = at.a;
  const int64_t width = padded(a.size), part = at.part;
  for (int64_t key = start; key < past; key += a.lanes) {
    const int64_t page = key % kBlock / kLanes, lane = key % kLanes;
    const int8_t *keys = at(key), *values = keys + part;
    if (key + kBlock < last)
      ask(at(key + kBlock), 2 * part);
    else if (next[page])
      ask(next[page], 2 * part);
    unpack_keys(keys, a.lanes, scratch->keys[page], lane, a.size);
    std::memcpy(scratch->key_scales + key % kBlock, keys + a.lanes * width, size_t(a.lanes) * sizeof(float));
    std::memcpy(scratch->value_scales + key % kBlock, values + a.lanes * width, size_t(a.lanes) * sizeof(float));
    if (a.lanes == 1) std::memcpy(scratch->values[page] + lane * width, values, size_t(width));
    tiles.keys[page] = scratch->keys[page];
    tiles.values[page] = a.lanes == 1 ? scratch->values[page] : values;
    tiles.ahead[page] = nullptr;
  }
}

// The rows of an item: pairs of a token and a query head that share a key-value head.
template <class T>
struct Rows {
  int count;
  const T* q[kItemRows];
  Range keys[kItemRows];
  int64_t first, past;  // of all rows
};

template <class T>
Rows<T> rows_of(const PagedArgs& a, const AttendItem& item, int64_t head, int64_t heads) {
  Rows<T> rows{0, {}, {}, INT64_MAX, 0};
  for (int64_t t = item.token; t < item.token + item.count; t++) {
    const Range keys = seen(a, item.row, t);
    if (keys.first < keys.past) {
      rows.first = keys.first < rows.first ? keys.first : rows.first;
      rows.past = keys.past > rows.past ? keys.past : rows.past;
    }
    for (int64_t h = head; h < head + heads; h++) {
      rows.q[rows.count] = static_cast<const T*>(a.q) + t * a.q_stride + h * a.size;
      rows.keys[rows.count++] = keys;
    }
  }
  return rows;
}

inline int clip(int64_t at) { return int(at < 0 ? 0 : at > kBlock ? kBlock : at); }

// Multiplies M rows of a block's scores or weights by the scales of their keys [first, past).
template <int M>
inline void scale_rows(float* s, const float* scales, int first, int past) {
  for (int p = first / int(kLanes) * int(kLanes); p < past; p += kLanes) {
    const V16 factor = read16(scales + p);
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) write(s + m * kBlock + p, read16(s + m * kBlock + p) * factor);
  }
}

// Up to kTileRows rows from row `m` on take the block of keys at `start`.
template <int M, class T, class V>
void take_tile(const PagedArgs& a, const Rows<T>& rows, int m, int64_t start, const Tiles<T, V>& tiles,
               const Scratch<T, V>* scratch, State& state) {
  int firsts[M], pasts[M], first = kBlock, past = 0;
  for (int i = 0; i < M; i++) {
    firsts[i] = clip(rows.keys[m + i].first - start);
    pasts[i] = clip(rows.keys[m + i].past - start);
    if (firsts[i] >= pasts[i]) continue;
    first = firsts[i] < first ? firsts[i] : first;
    past = pasts[i] > past ? pasts[i] : past;
  }
  if (first >= past) return;
  const int64_t width = padded(a.size);
  alignas(64) float s[M * kBlock];
  scores<M>(rows.q + m, tiles, first / int(kLanes), (past + int(kLanes) - 1) / int(kLanes), a.size, s);
  if constexpr (sizeof(V) == 1) scale_rows<M>(s, scratch->key_scales, first, past);
  for (int i = 0; i < M; i++)
    weigh(a, s + i * kBlock, firsts[i], pasts[i], &state.best[m + i], &state.sum[m + i],
          state.out + (m + i) * width, width);
  if constexpr (sizeof(V) == 1) scale_rows<M>(s, scratch->value_scales, first, past);
  values<M>(s, tiles, first, past, width, state.out + m * width);
}

template <int M, class T, class V>
void take_rest(const PagedArgs& a, const Rows<T>& rows, int m, int64_t start, const Tiles<T, V>& tiles,
               const Scratch<T, V>* scratch, State& state) {
  if constexpr (M > 0) {
    if (rows.count - m == M)
      take_tile<M>(a, rows, m, start, tiles, scratch, state);
    else
      take_rest<M - 1>(a, rows, m, start, tiles, scratch, state);
  }
}

void clear(State& state, int64_t rows, int64_t width) {
  for (int64_t m = 0; m < rows; m++) {
    state.best[m] = -INFINITY;
    state.sum[m] = 0;
  }
  std::memset(state.out, 0, size_t(rows * width) * sizeof(float));
}

// All keys of a segment that the rows see; the next item begins with the pages `next`.
template <class T, class V>
void take_segment(const Places<V>& at, const Rows<T>& rows, int64_t segment, const V* const* next, State& state,
                  Scratch<T, V>* scratch) {
  const PagedArgs& a = at.a;
  const int64_t begin = segment * kSegment, end = begin + kSegment;
  clear(state, rows.count, padded(a.size));
  for (int64_t start = begin; start < end && start < rows.past; start += kBlock) {
    if (start + kBlock <= rows.first) continue;
    Tiles<T, V> tiles;
    const int64_t past = rows.past < start + kBlock ? rows.past : start + kBlock;
    const int64_t first = rows.first > start ? rows.first / kLanes * kLanes : start;
    find(at, first, past, rows.past, next, tiles, scratch);
    int m = 0;
    for (; m + kTileRows <= rows.count; m += kTileRows) {
      take_tile<kTileRows>(a, rows, m, start, tiles, scratch, state);
      for (const V*& page : tiles.ahead) page = nullptr;
    }
    take_rest<kTileRows - 1>(a, rows, m, start, tiles, scratch, state);
  }
}

template <class T, class V>
void attend_heads(const PagedArgs& a, const AttendItem& item, int64_t head, int64_t heads) {
  const Rows<T> rows = rows_of<T>(a, item, head, heads);
  const int64_t width = padded(a.size), share = a.heads / a.kv_heads;
  State whole, part;
  Scratch<T, V>* scratch = nullptr;
  Scratch<T, V> copies;
  if (a.lanes == 1 || sizeof(V) == 1) scratch = &copies;
  clear(whole, rows.count, width);
  const Places<V> at(a, item);
  const V* next[kPages];
  look_ahead(a, item.next, next);
  for (int64_t segment = item.segment; segment < item.past_segment; segment++) {
    take_segment(at, rows, segment, next, part, scratch);
    for (int m = 0; m < rows.count; m++) {
      if (item.partial) {
        float* to = item.partial + ((segment - item.segment) * share + head % share + m) * (width + 16);
        to[0] = part.best[m];
        to[1] = part.sum[m];
        std::memcpy(to + 16, part.out + m * width, size_t(width) * sizeof(float));
      } else {
        add_part(&whole.best[m], &whole.sum[m], whole.out + m * width, part.best[m], part.sum[m],
                 part.out + m * width, width);
      }
    }
  }
  if (item.partial) return;
  for (int m = 0; m < rows.count; m++)
    finish_any(a, whole.best[m], whole.sum[m], whole.out + m * width, item.token + m / heads, head + m % heads);
}

void attend(const PagedArgs& a, const AttendItem& item) {
  const int64_t share = a.heads / a.kv_heads, most = kItemRows / item.count;
  for (int64_t head = item.kv_head * share; head < (item.kv_head + 1) * share;) {
    const int64_t left = (item.kv_head + 1) * share - head, heads = left < most ? left : most;
    if (a.int8 && a.bf16)
      attend_heads<uint16_t, int8_t>(a, item, head, heads);
    else if (a.int8)
      attend_heads<float, int8_t>(a, item, head, heads);
    else if (a.bf16)
      attend_heads<uint16_t, uint16_t>(a, item, head, heads);
    else
      attend_heads<float, float>(a, item, head, heads);
    head += heads;
  }
}

void join(const PagedArgs& a, const AttendItem& item) {
  const int64_t share = a.heads / a.kv_heads, width = padded(a.size);
  for (int64_t h = 0; h < share; h++) {
    alignas(64) float out[kMaxHead] = {};
    float best = -INFINITY, sum = 0;
    for (int64_t segment = item.segment; segment < item.past_segment; segment++) {
      const float* part = item.partial + ((segment - item.segment) * share + h) * (width + 16);
      add_part(&best, &sum, out, part[0], part[1], part + 16, width);
    }
    finish_any(a, best, sum, out, item.token, item.kv_head * share + h);
  }
}

template <class T>
void merge_parts(const void* const* outs, const float* const* lses, int64_t parts, int64_t items, int64_t size,
                 void* out, float* lse) {
  for (int64_t n = 0; n < items; n++) {
    float most = -INFINITY;
    for (int64_t p = 0; p < parts; p++) most = lses[p][n] > most ? lses[p][n] : most;
    float sum = 0, shares[64];
    for (int64_t p = 0; p < parts; p++) {
      shares[p] = lses[p][n] == -INFINITY ? 0.f : exp16(splat(lses[p][n] - most))[0];
      sum += shares[p];
    }
    for (int64_t d = 0; d < size; d++) {
      float value = 0;
      for (int64_t p = 0; p < parts; p++)  // an empty part may hold anything
        if (shares[p] != 0) value += shares[p] / sum * widen(static_cast<const T*>(outs[p])[n * size + d]);
      put(static_cast<T*>(out) + n * size + d, value);
    }
    lse[n] = sum == 0 ? -INFINITY : most + std::log(sum);
  }
}

void merge(const void* const* outs, const float* const* lses, int64_t parts, int64_t items, int64_t size, bool bf16,
           void* out, float* lse) {
  if (bf16)
    merge_parts<uint16_t>(outs, lses, parts, items, size, out, lse);
  else
    merge_parts<float>(outs, lses, parts, items, size, out, lse);
}

}  // namespace
}  // namespace plait
