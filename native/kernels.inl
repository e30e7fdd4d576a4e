// Body of the kernels; compiled once per instruction set, each time within its own anonymous namespace
// so that no code of one set is ever linked into another. LANES is the vector width in floats.
// Every sum is a chain over the inputs: neither batch, nor tiling, nor threads change a bit.
#include <cstring>

#include "kernels.h"

namespace plait {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));

constexpr int kRows = LANES == 16 ? 12 : 6;  // tokens of a register tile; its width is two vectors

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

}  // namespace
}  // namespace plait
