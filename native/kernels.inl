// Body of the kernels; compiled once per instruction set, each time within its own anonymous namespace
// so that no code of one set is ever linked into another. LANES is the vector width in floats.
// Every sum runs in an order that depends on its own element alone: a chain over inputs for products,
// ascending keys for attention. So neither batch, nor tiling, nor threads change a bit.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace plait {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float V8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef uint16_t H8 __attribute__((vector_size(16)));
typedef uint32_t U8 __attribute__((vector_size(32)));

constexpr int kRows = LANES == 16 ? 12 : 6;  // tokens of a register tile; its width is two vectors
constexpr int kBlock = 64;                   // keys between two looks at the running maximum
constexpr int kGroup = 8;                    // query heads that share one pass over a block of keys
constexpr int kMaxSize = 256;

template <class V>
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <int M>
void tile(const LinearArgs& a, int64_t token, int64_t panel, int64_t column) {
  const float* w = a.packed + panel * a.inputs * kPanel + column;
  const float* x = a.x + token * a.x_stride;
  Vec sum[M][2] = {};
  for (int64_t i = 0; i < a.inputs; i++) {
    const Vec w0 = load<Vec>(w + i * kPanel), w1 = load<Vec>(w + i * kPanel + LANES);
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
      const float value = x[m * a.x_stride + i];
      sum[m][0] += value * w0;
      sum[m][1] += value * w1;
    }
  }
  const int64_t first = panel * kPanel + column;
  const int64_t width = a.outputs - first < 2 * LANES ? a.outputs - first : 2 * LANES;
  for (int m = 0; m < M; m++) {
    float row[2 * LANES];
    store(row, sum[m][0]);
    store(row + LANES, sum[m][1]);
    float* out = a.out + (token + m) * a.outputs + first;
    for (int64_t n = 0; n < width; n++) out[n] = a.bias ? row[n] + a.bias[first + n] : row[n];
  }
}

template <int M>
void rest(const LinearArgs& a, int64_t token, int64_t panel, int64_t column) {
  if constexpr (M > 0) {
    if (a.tokens - token == M)
      tile<M>(a, token, panel, column);
    else
      rest<M - 1>(a, token, panel, column);
  }
}

void linear(const LinearArgs& a, int64_t first_panel, int64_t past_panel) {
  for (int64_t panel = first_panel; panel < past_panel; panel++)
    for (int64_t column = 0; column < kPanel; column += 2 * LANES) {
      if (panel * kPanel + column >= a.outputs) break;
      int64_t token = 0;
      for (; token + kRows <= a.tokens; token += kRows) tile<kRows>(a, token, panel, column);
      rest<kRows - 1>(a, token, panel, column);
    }
}

inline V8 load8(const float* p) { return load<V8>(p); }
inline V8 load8(const uint16_t* p) {
  H8 h;
  std::memcpy(&h, p, sizeof h);
  const U8 u = __builtin_convertvector(h, U8) << 16;
  V8 v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

inline void put(float* p, float value) { *p = value; }
inline void put(uint16_t* p, float value) {  // round to nearest, ties to even
  uint32_t u;
  std::memcpy(&u, &value, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u)
    *p = uint16_t((u >> 16) | 64);
  else
    *p = uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float total(V8 v) {
  const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
  return (a + c) + (b + d);
}

inline V8 exp8(V8 x) {  // for x <= 0; relative error about 1e-7
  const V8 low = {-87.f, -87.f, -87.f, -87.f, -87.f, -87.f, -87.f, -87.f};
  x = x < low ? low : x;
  const V8 n = (x * 1.44269504f + 12582912.f) - 12582912.f;
  V8 f = x - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  V8 y = f * (1.f / 5040) + 1.f / 720;
  y = y * f + 1.f / 120;
  y = y * f + 1.f / 24;
  y = y * f + 1.f / 6;
  y = y * f + 0.5f;
  y = y * f + 1.f;
  y = y * f + 1.f;
  const I8 power = (__builtin_convertvector(n, I8) + 127) << 23;
  V8 scale;
  std::memcpy(&scale, &power, sizeof scale);
  return y * scale;
}

// Running state of one query head.
struct Head {
  float best, sum;
  float q[kMaxSize], out[kMaxSize];
};

template <int J, class T>
inline void scores(const float* q, const T* const* keys, int64_t size, float* score) {
  V8 sum[J] = {};
  for (int64_t d = 0; d < size; d += 8) {
    const V8 part = load8(q + d);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) sum[j] += part * load8(keys[j] + d);
  }
  for (int j = 0; j < J; j++) score[j] = total(sum[j]);
}

template <int J, class T>
inline void weigh(float* out, const T* const* values, const float* weight, int64_t size) {
  for (int64_t d = 0; d < size; d += 8) {
    V8 sum = load8(out + d);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) sum += weight[j] * load8(values[j] + d);
    store(out + d, sum);
  }
}

template <class T>
void take_block(const AttendArgs& a, Head& head, const T* const* keys, const T* const* values, int count) {
  alignas(32) float s[kBlock];
  int j = 0;
  for (; j + 4 <= count; j += 4) scores<4>(head.q, keys + j, a.size, s + j);
  for (; j < count; j++) scores<1>(head.q, keys + j, a.size, s + j);
  float best = head.best;
  for (j = 0; j < count; j++) {
    s[j] *= a.scale;
    if (a.softcap > 0) s[j] = a.softcap * std::tanh(s[j] / a.softcap);
    best = s[j] > best ? s[j] : best;
  }
  if (best > head.best) {
    const V8 gap = V8{} + (head.best - best);
    const float shrink = head.sum > 0 ? exp8(gap)[0] : 0.f;
    head.sum *= shrink;
    for (int64_t d = 0; d < a.size; d++) head.out[d] *= shrink;
    head.best = best;
  }
  const int padded = (count + 7) / 8 * 8;
  for (j = count; j < padded; j++) s[j] = best;
  for (j = 0; j < padded; j += 8) store(s + j, exp8(load8(s + j) - best));
  for (j = 0; j < count; j++) head.sum += s[j];
  for (j = 0; j + 4 <= count; j += 4) weigh<4>(head.out, values + j, s + j, a.size);
  for (; j < count; j++) weigh<1>(head.out, values + j, s + j, a.size);
}

template <class T>
void finish(const AttendArgs& a, const Head& head, int64_t token, int64_t h) {
  T* out = static_cast<T*>(a.out) + (token * a.heads + h) * a.size;
  const bool any = head.sum != 0;  // what is not a number stays so
  for (int64_t d = 0; d < a.size; d++) put(out + d, any ? head.out[d] / head.sum : 0.f);
  a.lse[token * a.heads + h] = any ? head.best + std::log(head.sum) : -INFINITY;
}

template <class T>
void attend_heads(const AttendArgs& a, int64_t token, int64_t kv_head, int64_t first_head, int count) {
  Head heads[kGroup];
  const T* q = static_cast<const T*>(a.q) + token * a.q_stride + first_head * a.size;
  for (int g = 0; g < count; g++) {
    heads[g].best = -INFINITY;
    heads[g].sum = 0;
    for (int64_t d = 0; d < a.size; d += 8) store(heads[g].q + d, load8(q + g * a.size + d));
    for (int64_t d = 0; d < a.size; d++) heads[g].out[d] = 0;
  }
  const int32_t row = a.row_of[token];
  const int32_t* table = a.tables + a.rows[row] * a.table_stride;
  const int64_t own = a.positions[token] + 1;
  const int64_t past = own < a.lens[row] ? own : a.lens[row];
  const int64_t first = a.window > 0 && own > a.window ? own - a.window : 0;
  for (int64_t start = first; start < past; start += kBlock) {
    const int block = int(past - start < kBlock ? past - start : kBlock);
    const T *keys[kBlock], *values[kBlock];
    for (int j = 0; j < block; j++) {
      const int64_t at = start + j;
      const int64_t slot = table[at / a.page] * a.page + at % a.page;
      keys[j] = static_cast<const T*>(a.k_pool) + (slot * a.kv_heads + kv_head) * a.size;
      values[j] = static_cast<const T*>(a.v_pool) + (slot * a.kv_heads + kv_head) * a.size;
    }
    for (int g = 0; g < count; g++) take_block<T>(a, heads[g], keys, values, block);
  }
  for (int g = 0; g < count; g++) finish<T>(a, heads[g], token, first_head + g);
}

void attend(const AttendArgs& a, int64_t first_item, int64_t past_item) {
  const int64_t share = a.heads / a.kv_heads;
  for (int64_t item = first_item; item < past_item; item++) {
    const int64_t token = item / a.kv_heads, kv_head = item % a.kv_heads;
    for (int64_t g = 0; g < share; g += kGroup) {
      const int count = int(share - g < kGroup ? share - g : kGroup);
      if (a.bf16)
        attend_heads<uint16_t>(a, token, kv_head, kv_head * share + g, count);
      else
        attend_heads<float>(a, token, kv_head, kv_head * share + g, count);
    }
  }
}

}  // namespace
}  // namespace plait
