// Body of the pointwise kernels; compiled once per instruction set. They compute in float32 and round
// where torch's modules do; a token's result depends on that token alone.
#include <cmath>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "attention.h"
#include "pointwise.h"

namespace plait {
namespace {

#include "vectors.inl"

// Up to 16 elements, the rest zero.
template <class T>
inline V16 read_part(const T* p, int64_t count) {
  if (count >= 16) return read16(p);
  T part[16] = {};
  std::memcpy(part, p, size_t(count) * sizeof(T));
  return read16(part);
}

template <class T>
inline void write_part(T* p, V16 v, int64_t count) {
  if (count >= 16) return write16(p, v);
  T part[16];
  write16(part, v);
  std::memcpy(p, part, size_t(count) * sizeof(T));
}

template <class T>
void norm_rows(const NormArgs& a, int64_t first, int64_t past) {
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t t = first; t < past; t++) {
    const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
    V16 squares = {};
    if (a.residual) {
      const T* residual = static_cast<const T*>(a.residual) + t * a.width;
      T* sum = static_cast<T*>(a.sum) + t * a.width;
      for (int64_t n = 0; n < a.width; n += 16)
        write_part(sum + n, read_part(residual + n, a.width - n) + read_part(x + n, a.width - n), a.width - n);
      x = sum;
    }
    for (int64_t n = 0; n < a.width; n += 16) {
      const V16 part = read_part(x + n, a.width - n);
      squares += part * part;
    }
    const float factor = 1.f / std::sqrt(total(squares) / float(a.width) + a.eps);
    T* out = static_cast<T*>(a.out) + t * a.width;
    for (int64_t n = 0; n < a.width; n += 16) {
      V16 scaled = read_part(x + n, a.width - n) * factor;
      if (a.offset == 0) scaled = rounded<T>(scaled);  // weights that are kept less 1 are added in float32
      write_part(out + n, scaled * (read_part(weight + n, a.width - n) + a.offset), a.width - n);
    }
  }
}

template <class T>
void gate_rows(const GateArgs& a, int64_t first, int64_t past) {
  for (int64_t t = first; t < past; t++) {
    const T* gate = static_cast<const T*>(a.gate) + t * a.gate_stride;
    const T* up = static_cast<const T*>(a.up) + t * a.up_stride;
    T* out = static_cast<T*>(a.out) + t * a.width;
    for (int64_t n = 0; n < a.width; n += 16) {
      const V16 g = read_part(gate + n, a.width - n);
      write_part(out + n, rounded<T>(g / (1.f + exp16(-g))) * read_part(up + n, a.width - n), a.width - n);
    }
  }
}

// Turns the pairs (d, d + F / 2) of a head by the token's angles; what is not rotated stays.
template <class T>
void turn(const T* x, const T* cos, const T* sin, int64_t rotated, int64_t size, T* out) {
  const int64_t half = rotated / 2;
  for (int64_t d = 0; d < half; d += 16) {
    const int64_t left = half - d;
    const V16 one = read_part(x + d, left), two = read_part(x + half + d, left);
    const auto times = [left](V16 v, const T* angles) { return rounded<T>(v * read_part(angles, left)); };
    write_part(out + d, times(one, cos + d) - times(two, sin + d), left);
    write_part(out + half + d, times(two, cos + half + d) + times(one, sin + half + d), left);
  }
  std::memcpy(out + rotated, x + rotated, size_t(size - rotated) * sizeof(T));
}

template <class T>
void rope_rows(const RopeArgs& a, int64_t first, int64_t past) {
  constexpr int64_t pack = 4 / int64_t(sizeof(T));
  const int64_t width = padded(a.size), part = a.lanes * width;
  T key[kMaxHead];
  for (int64_t t = first; t < past; t++) {
    const T* cos = static_cast<const T*>(a.cos) + t * a.rotated;
    const T* sin = static_cast<const T*>(a.sin) + t * a.rotated;
    for (int64_t h = 0; h < a.heads; h++)
      turn(static_cast<const T*>(a.q) + t * a.q_stride + h * a.size, cos, sin, a.rotated, a.size,
           static_cast<T*>(a.out) + (t * a.heads + h) * a.size);
    const int64_t block = a.slots[t] / a.lanes, lane = a.slots[t] % a.lanes;
    for (int64_t h = 0; h < a.kv_heads; h++) {
      T* keys = static_cast<T*>(a.kv) + (block * a.kv_heads + h) * 2 * part;
      turn(static_cast<const T*>(a.k) + t * a.k_stride + h * a.size, cos, sin, a.rotated, a.size, key);
      for (int64_t d = 0; d < a.size / pack; d++) std::memcpy(keys + (d * a.lanes + lane) * pack, key + d * pack, 4);
      put_values(static_cast<const T*>(a.v) + t * a.v_stride + h * a.size, a.size, keys + part, width, a.lanes, lane);
    }
  }
}

void norm(const NormArgs& a, int64_t first, int64_t past) {
  a.bf16 ? norm_rows<uint16_t>(a, first, past) : norm_rows<float>(a, first, past);
}
void gate(const GateArgs& a, int64_t first, int64_t past) {
  a.bf16 ? gate_rows<uint16_t>(a, first, past) : gate_rows<float>(a, first, past);
}
void rope(const RopeArgs& a, int64_t first, int64_t past) {
  a.bf16 ? rope_rows<uint16_t>(a, first, past) : rope_rows<float>(a, first, past);
}

}  // namespace
}  // namespace plait
