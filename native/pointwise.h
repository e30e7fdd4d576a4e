// Pointwise work between the products of a layer. Legend: T tokens, N width, H query heads, K key-value
// heads, D head size, F rotated part of a head. Tensors are float32 or bf16, all of one type.
#pragma once
#include <cstdint>

namespace plait {

struct NormArgs {
  const void* x;  // [T, N], rows x_stride apart
  int64_t x_stride;
  const void* residual;  // [T, N] dense: added to x first, and their sum is normalised; or null
  void* sum;             // [T, N]: where that sum goes
  const void* weight;
  float offset;  // added to the weight
  float eps;
  void* out;  // [T, N]
  int64_t width;
  bool bf16;
};

struct GateArgs {
  const void *gate, *up;  // [T, N]
  int64_t gate_stride, up_stride;
  void* out;  // [T, N]
  int64_t width;
  bool bf16;
};

struct RopeArgs {
  const void *q, *k, *v;  // [T, H or K, D]
  int64_t q_stride, k_stride, v_stride;
  const void *cos, *sin;  // [T, F]
  const int32_t* slots;   // [T]
  void *out, *kv;         // [T, H, D]; the pool, see attention.h
  int64_t heads, kv_heads, size, rotated, lanes;
  bool bf16;
};

// All over tokens [first, past).
struct PointwiseIsa {
  const char* name;
  void (*norm)(const NormArgs&, int64_t first, int64_t past);
  void (*gate)(const GateArgs&, int64_t first, int64_t past);
  void (*rope)(const RopeArgs&, int64_t first, int64_t past);
};

extern const PointwiseIsa kPointwiseBaseline;
#if defined(PLAIT_X86)
extern const PointwiseIsa kPointwiseAvx2;
extern const PointwiseIsa kPointwiseAvx512;
extern const PointwiseIsa kPointwiseAvx512Bf16;
#endif

}  // namespace plait
