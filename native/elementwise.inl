// Bodies of elementwise.h; compiled once per instruction set within its own anonymous namespace.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "elementwise.h"

namespace plait {
namespace {

#include "vectors.inl"

constexpr int64_t kChunk = 256;  // elements that are widened, computed and narrowed at a time

template <class T>
void widen_chunk(const T* p, int64_t stride, int64_t n, float* to) {
  if (stride == 1) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) write(to + i, read16(p + i));
    for (; i < n; i++) to[i] = widen(p[i]);
  } else if (stride == 0) {
    const V16 all = splat(widen(*p));
    for (int64_t i = 0; i < n; i += 16) write(to + i, all);
  } else {
    for (int64_t i = 0; i < n; i++) to[i] = widen(p[i * stride]);
  }
}

// Elements [at, at + n) of a line as floats; room for whole vectors behind the last one.
void widen_chunk(const Line& line, int64_t at, int64_t n, float* to) {
  if (line.type == Type::kFloat32)
    widen_chunk(static_cast<const float*>(line.data) + at * line.stride, line.stride, n, to);
  else
    widen_chunk(static_cast<const uint16_t*>(line.data) + at * line.stride, line.stride, n, to);
}

template <class T>
void narrow_chunk(const float* from, int64_t n, T* p, int64_t stride) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 16 <= n; i += 16) write16(p + i, read16(from + i));
  for (; i < n; i++) put(p + i * stride, from[i]);
}

void narrow_chunk(const float* from, int64_t at, int64_t n, void* out, Type type, int64_t stride) {
  if (type == Type::kFloat32)
    narrow_chunk(from, n, static_cast<float*>(out) + at * stride, stride);
  else
    narrow_chunk(from, n, static_cast<uint16_t*>(out) + at * stride, stride);
}

template <class F>
inline V16 each(V16 x, F f) {
  for (int i = 0; i < 16; i++) x[i] = f(x[i]);
  return x;
}

// x = f(x, y) on whole vectors.
template <class F>
inline void over(float* x, const float* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += 16) write(x + i, f(read16(x + i), read16(y + i)));
}

void apply(Map map, float* x, const float* y, int64_t n) {
  switch (map) {
    case Map::kCopy: return;
    case Map::kNeg: return over(x, y, n, [](V16 a, V16) { return -a; });
    case Map::kSquare: return over(x, y, n, [](V16 a, V16) { return a * a; });
    case Map::kRsqrt:
      return over(x, y, n, [](V16 a, V16) { return each(a, [](float v) { return 1.f / std::sqrt(v); }); });
    case Map::kSilu: return over(x, y, n, [](V16 a, V16) { return a / (1.f + exp16(-a)); });
    case Map::kGelu:
      return over(x, y, n, [](V16 a, V16) {
        return each(a, [](float v) { return 0.5f * v * (1.f + std::erf(v * 0.70710678f)); });
      });
    case Map::kGeluTanh:
      return over(x, y, n,
                  [](V16 a, V16) { return 0.5f * a * (1.f + tanh16(0.7978845608f * (a + 0.044715f * a * a * a))); });
    case Map::kRelu: return over(x, y, n, [](V16 a, V16) { return a > 0 ? a : V16{}; });
    case Map::kSigmoid: return over(x, y, n, [](V16 a, V16) { return 1.f / (1.f + exp16(-a)); });
    case Map::kTanh: return over(x, y, n, [](V16 a, V16) { return tanh16(a); });
    case Map::kAdd: return over(x, y, n, [](V16 a, V16 b) { return a + b; });
    case Map::kMul: return over(x, y, n, [](V16 a, V16 b) { return a * b; });
    case Map::kSub: return over(x, y, n, [](V16 a, V16 b) { return a - b; });
    case Map::kDiv: return over(x, y, n, [](V16 a, V16 b) { return a / b; });
  }
}

void map(Map kind, Line a, Line b, void* out, Type out_type, int64_t out_stride, int64_t n) {
  alignas(64) float x[kChunk + 16] = {}, y[kChunk + 16] = {};
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t count = n - i < kChunk ? n - i : kChunk;
    widen_chunk(a, i, count, x);
    if (kind >= Map::kAdd) widen_chunk(b, i, count, y);
    apply(kind, x, y, count);
    narrow_chunk(x, i, count, out, out_type, out_stride);
  }
}

float sum(Line a, int64_t n) {
  alignas(64) float x[kChunk + 16] = {};
  V16 all{};
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t count = n - i < kChunk ? n - i : kChunk;
    widen_chunk(a, i, count, x);
    for (int64_t j = count; j % 16; j++) x[j] = 0;
    for (int64_t j = 0; j < count; j += 16) all += read16(x + j);
  }
  return total(all);
}

void layer_norm(Line a, Line weight, Line bias, float eps, void* out, int64_t n) {
  const float mean = sum(a, n) / float(n);
  alignas(64) float x[kChunk + 16] = {}, y[kChunk + 16] = {};
  float squares = 0;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t count = n - i < kChunk ? n - i : kChunk;
    widen_chunk(a, i, count, x);
    V16 part{};
    for (int64_t j = count; j % 16; j++) x[j] = mean;
    for (int64_t j = 0; j < count; j += 16) part += (read16(x + j) - mean) * (read16(x + j) - mean);
    squares += total(part);
  }
  const float scale = 1.f / std::sqrt(squares / float(n) + eps);
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t count = n - i < kChunk ? n - i : kChunk;
    widen_chunk(a, i, count, x);
    over(x, y, count, [&](V16 v, V16) { return (v - mean) * scale; });
    if (weight.data) widen_chunk(weight, i, count, y), apply(Map::kMul, x, y, count);
    if (bias.data) widen_chunk(bias, i, count, y), apply(Map::kAdd, x, y, count);
    narrow_chunk(x, i, count, out, a.type, 1);
  }
}

}  // namespace
