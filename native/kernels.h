// Linear layers in float32, as each instruction set implements them. Legend: T tokens, N outputs, I inputs.
#pragma once
#include <cstdint>

namespace plait {

constexpr int64_t kPanel = 32;  // outputs side by side in a packed weight: [N / 32][I][32]

struct LinearArgs {
  const float* x;  // [T, I], rows x_stride apart
  int64_t x_stride;
  const float* packed;
  const float* bias;  // [N] or null
  float* out;         // [T, N]
  int64_t tokens, inputs, outputs;
};

struct Isa {
  const char* name;
  void (*linear)(const LinearArgs&, int64_t first_panel, int64_t past_panel);
};

extern const Isa kBaseline;
#if defined(PLAIT_X86)
extern const Isa kAvx2;
extern const Isa kAvx512;
#endif

}  // namespace plait
