// Packed linear layers for sets without bf16 products: weights become float32 in registers. Compiled
// once per set within its own anonymous namespace. LANES is the vector width in floats.
// Each output of each token is one chain over the inputs, so batch, tiling and threads change no bit.
#include <cstring>

#include "linear.h"

namespace plait {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t Word __attribute__((vector_size(LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LANES * 4)));

constexpr int kTile = LANES == 16 ? 8 : 4;  // tokens of a register tile; its width is two vectors

inline float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t narrow(float value) {  // round to nearest, ties to even
  uint32_t u;
  std::memcpy(&u, &value, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 64);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline Vec as_float(Word bits) {
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

struct Bf16 {
  static constexpr int kInputs = 2;
  static constexpr bool kScaled = false;
  static Vec input(Word w, int j) { return as_float(j ? w & 0xffff0000u : w << 16); }
};

struct Int8 {
  static constexpr int kInputs = 4;
  static constexpr bool kScaled = true;
  static Vec input(Word w, int j) {
    return __builtin_convertvector(Int((w >> (8 * j)) & 255u) - 128, Vec);
  }
};

struct Int4 {
  static constexpr int kInputs = 8;
  static constexpr bool kScaled = true;
  static Vec input(Word w, int j) {
    return __builtin_convertvector(Int((w >> (8 * (j % 4) + j / 4 * 4)) & 15u) - 8, Vec);
  }
};

template <class Format>
int64_t words_of(const PackedArgs& a) {
  return (a.inputs + Format::kInputs - 1) / Format::kInputs;
}

template <class Format>
int64_t row_bytes(const PackedArgs& a) {
  return words_of<Format>(a) * Format::kInputs * 4;
}

// Activations of a tile as float32 [inputs, filled up to whole words][tokens of the tile].
template <class Format>
void prepare(const PackedArgs& a, int64_t first_tile, int64_t past_tile) {
  const int64_t tiles = tile_count(a, kTile), inputs = words_of<Format>(a) * Format::kInputs;
  for (int64_t t = first_tile; t < past_tile; t++) {
    const int64_t first = tile_row(a, t, tiles), count = tile_row(a, t + 1, tiles) - first;
    float* to = reinterpret_cast<float*>(a.prepared) + first * inputs;
    for (int64_t m = 0; m < count; m++) {
      const uint16_t* from = a.x + (first + m) * a.x_stride;
      for (int64_t i = 0; i < inputs; i++) to[i * count + m] = i < a.inputs ? widen(from[i]) : 0.f;
    }
  }
}

inline Vec scales_at(const PackedArgs& a, int64_t at) {
  Vec v;
  if (a.scales_bf16)
    for (int n = 0; n < LANES; n++) v[n] = widen(static_cast<const uint16_t*>(a.scales)[at + n]);
  else
    std::memcpy(&v, static_cast<const float*>(a.scales) + at, sizeof v);
  return v;
}

void finish(const PackedArgs& a, const float* row, int64_t token, int64_t first) {
  const int64_t width = a.outputs - first < 2 * LANES ? a.outputs - first : 2 * LANES;
  for (int64_t n = 0; n < width; n++) {
    const float value = a.bias ? row[n] + a.bias[first + n] : row[n];
    const int64_t at = token * a.outputs + first + n;
    if (a.wide)
      static_cast<float*>(a.out)[at] = value;
    else
      static_cast<uint16_t*>(a.out)[at] = narrow(value);
  }
}

template <class Format, int M>
void tile(const PackedArgs& a, int64_t token, int64_t panel, int64_t column) {
  const int64_t words = words_of<Format>(a), groups = (a.inputs + a.group - 1) / a.group;
  const int64_t group_words = a.group / Format::kInputs;
  const float* x = reinterpret_cast<const float*>(a.prepared) + token * words * Format::kInputs;
  const uint32_t* w = a.words + panel * words * kPanel + column;
  Vec total[M][2] = {};
  for (int64_t g = 0; g < groups; g++) {
    Vec sum[M][2] = {};
    const int64_t past = g + 1 == groups ? words : (g + 1) * group_words;
    for (int64_t word = g * group_words; word < past; word++) {
      Word w0, w1;
      std::memcpy(&w0, w + word * kPanel, sizeof w0);
      std::memcpy(&w1, w + word * kPanel + LANES, sizeof w1);
#pragma GCC unroll 8
      for (int j = 0; j < Format::kInputs; j++) {
        const Vec v0 = Format::input(w0, j), v1 = Format::input(w1, j);
        const float* values = x + (word * Format::kInputs + j) * M;
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          sum[m][0] += values[m] * v0;
          sum[m][1] += values[m] * v1;
        }
      }
    }
    for (int c = 0; c < 2; c++) {
      Vec scale = Vec{} + 1.f;
      if constexpr (Format::kScaled) scale = scales_at(a, (panel * groups + g) * kPanel + column + c * LANES);
      for (int m = 0; m < M; m++) total[m][c] += sum[m][c] * scale;
    }
  }
  for (int m = 0; m < M; m++) {
    float row[2 * LANES];
    std::memcpy(row, total[m], sizeof row);
    finish(a, row, token + m, panel * kPanel + column);
  }
}

template <class Format, int M>
void tile_of(int64_t count, const PackedArgs& a, int64_t token, int64_t panel, int64_t column) {
  if constexpr (M > 0) {
    if (count == M)
      tile<Format, M>(a, token, panel, column);
    else
      tile_of<Format, M - 1>(count, a, token, panel, column);
  }
}

template <class Format>
void multiply(const PackedArgs& a, int64_t first_panel, int64_t past_panel) {
  const int64_t tiles = tile_count(a, kTile);
  for (int64_t panel = first_panel; panel < past_panel; panel++)
    for (int64_t column = 0; column < kPanel; column += 2 * LANES)
      for (int64_t t = 0; t < tiles; t++) {
        const int64_t first = tile_row(a, t, tiles);
        tile_of<Format, kTile>(tile_row(a, t + 1, tiles) - first, a, first, panel, column);
      }
}

float read(const char* from, int64_t bytes) {
  constexpr int ahead = 8;
  Vec sums[ahead] = {};
  for (int64_t i = 0; i < bytes; i += ahead * int64_t(sizeof(Vec)))
#pragma GCC unroll 8
    for (int j = 0; j < ahead; j++) {
      Vec v;
      std::memcpy(&v, from + i + j * int64_t(sizeof(Vec)), sizeof v);
      sums[j] += v;
    }
  for (int j = 1; j < ahead; j++) sums[0] += sums[j];
  float sum = 0;
  for (int n = 0; n < LANES; n++) sum += sums[0][n];
  return sum;
}

template <class Format>
constexpr PackedKernel kernel() {
  return {kTile, row_bytes<Format>, prepare<Format>, multiply<Format>};
}

}  // namespace
}  // namespace plait
