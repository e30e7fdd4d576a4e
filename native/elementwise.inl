// Bodies of elementwise.h; compiled once per instruction set within its own anonymous namespace.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "elementwise.h"

namespace plait {
namespace {

#include "vectors.inl"

inline V16 silu16(V16 x) { return x / (1.f + exp16(-x)); }

// Sixteen elements, or the first `count` of them, from any type and stride.
template <class T>
inline V16 fetch(const T* p, int64_t stride, int64_t count) {
  if (stride == 1 && count == 16) return read16(p);
  if (stride == 0) return splat(widen(*p));
  V16 v{};
  for (int64_t i = 0; i < count; i++) v[i] = widen(p[i * stride]);
  return v;
}

inline V16 fetch(Line line, int64_t at, int64_t count) {
  if (line.type == Type::kFloat32)
    return fetch(static_cast<const float*>(line.data) + at * line.stride, line.stride, count);
  return fetch(static_cast<const uint16_t*>(line.data) + at * line.stride, line.stride, count);
}

template <class T>
inline void keep(T* p, int64_t stride, V16 v, int64_t count) {
  if (stride == 1 && count == 16) return write16(p, v);
  for (int64_t i = 0; i < count; i++) put(p + i * stride, v[i]);
}

template <class F>
inline V16 each(V16 x, F f) {
  for (int i = 0; i < 16; i++) x[i] = f(x[i]);
  return x;
}

inline V16 apply(Map map, V16 a, V16 b) {
  switch (map) {
    case Map::kCopy: return a;
    case Map::kNeg: return -a;
    case Map::kSquare: return a * a;
    case Map::kRsqrt: return each(a, [](float x) { return 1.f / std::sqrt(x); });
    case Map::kSilu: return silu16(a);
    case Map::kGelu: return each(a, [](float x) { return 0.5f * x * (1.f + std::erf(x * 0.70710678f)); });
    case Map::kGeluTanh: return 0.5f * a * (1.f + tanh16(0.7978845608f * (a + 0.044715f * a * a * a)));
    case Map::kRelu: return a > 0 ? a : V16{};
    case Map::kSigmoid: return 1.f / (1.f + exp16(-a));
    case Map::kTanh: return tanh16(a);
    case Map::kAdd: return a + b;
    case Map::kMul: return a * b;
    case Map::kSub: return a - b;
  }
  return a;
}

void map(Map kind, Line a, Line b, void* out, Type out_type, int64_t out_stride, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    const V16 x = fetch(a, i, count);
    const V16 y = kind >= Map::kAdd ? fetch(b, i, count) : x;
    const V16 v = apply(kind, x, y);
    if (out_type == Type::kFloat32)
      keep(static_cast<float*>(out) + i * out_stride, out_stride, v, count);
    else
      keep(static_cast<uint16_t*>(out) + i * out_stride, out_stride, v, count);
  }
}

float sum(Line a, int64_t n) {
  V16 all{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) all += fetch(a, i, 16);
  if (i < n) {
    const V16 last = fetch(a, i, n - i);
    for (int64_t j = 0; j < n - i; j++) all[j] += last[j];
  }
  return total(all);
}

void layer_norm(Line a, Line weight, Line bias, float eps, void* out, int64_t n) {
  const float mean = sum(a, n) / float(n);
  V16 squares{};
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    const V16 d = fetch(a, i, count) - mean;
    for (int64_t j = 0; j < count; j++) squares[j] += d[j] * d[j];
  }
  const float scale = 1.f / std::sqrt(total(squares) / float(n) + eps);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    V16 v = (fetch(a, i, count) - mean) * scale;
    if (weight.data) v *= fetch(weight, i, count);
    if (bias.data) v += fetch(bias, i, count);
    if (a.type == Type::kFloat32)
      keep(static_cast<float*>(out) + i, 1, v, count);
    else
      keep(static_cast<uint16_t*>(out) + i, 1, v, count);
  }
}

}  // namespace
