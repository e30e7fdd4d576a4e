// Strided elementwise work, prepared once and carried out again and again over the same addresses.
#pragma once
#include <cstdint>

namespace plait {

enum class Type : int32_t { kFloat32, kBfloat16 };

enum class Map : int32_t { kCopy, kNeg, kSquare, kRsqrt, kSilu, kGelu, kGeluTanh, kRelu, kSigmoid, kTanh, kAdd, kMul, kSub, kDiv };

// One line of work: n elements, `stride` elements apart (0: the same one again and again).
struct Line {
  const void* data;
  Type type;
  int64_t stride;
};

struct ElementwiseIsa {
  const char* name;
  // out[i] = map(a[i], b[i]); maps of one argument ignore b.
  void (*map)(Map map, Line a, Line b, void* out, Type out_type, int64_t out_stride, int64_t n);
  float (*sum)(Line a, int64_t n);
  // out = (a - mean(a)) / sqrt(var(a) + eps) * weight + bias
  void (*layer_norm)(Line a, Line weight, Line bias, float eps, void* out, int64_t n);
};

extern const ElementwiseIsa kElementwiseBaseline;
#if defined(PLAIT_X86)
extern const ElementwiseIsa kElementwiseAvx2;
extern const ElementwiseIsa kElementwiseAvx512;
#endif

}  // namespace plait
