// Linear layers on packed weights: bf16, int8 and int4. Legend: T tokens, I inputs, N outputs, P panels.
//
// A packed weight is 32-bit words [P][words of a row][32]: a word holds 2, 4 or 8 neighbouring inputs
// of one output, 32 outputs stand side by side. So it is read from its first byte to its last.
//   bf16  2 inputs a word
//   int8  4 inputs a word, each a byte of value + 128
//   int4  8 inputs a word: byte b holds input b in its low half and input b + 4 in its high half,
//         each as value + 8
// Rows are filled up with inputs of zero to whole words, the last panel with outputs of zero.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace plait {

struct PackedArgs {
  const uint16_t* x;  // bf16 [T, I], rows x_stride apart
  int64_t x_stride;
  const uint32_t* words;
  const void* scales;  // [P][groups of a row][32]: bf16 or float32; unused for bf16 weights
  bool scales_bf16;
  const float* bias;  // [N] or null
  void* out;          // [T, N], float32 if wide, else bf16
  bool wide;
  int64_t tokens, inputs, outputs;
  int64_t group;   // inputs that share a scale
  int64_t gated;   // 0, or the width of `out`: outputs are panels of 16 gates and their 16 values, and silu(gate) * value
                   // is written, without bias, in bf16
  char* prepared;  // activations as the kernel reads them
};

// Tokens are computed in tiles of nearly equal height: tile t of n begins at row t * T / n.
struct PackedKernel {
  int64_t tile;  // largest height
  int64_t (*row_bytes)(const PackedArgs&);  // of a prepared row
  void (*prepare)(const PackedArgs&, int64_t first_tile, int64_t past_tile);
  void (*multiply)(const PackedArgs&, int64_t first_panel, int64_t past_panel);

};

static inline int64_t tile_count(const PackedArgs& a, int64_t height) { return (a.tokens + height - 1) / height; }
static inline int64_t tile_row(const PackedArgs& a, int64_t tile, int64_t tiles) { return tile * a.tokens / tiles; }

constexpr int64_t kFew = 32;

struct PackedIsa {
  const char* name;
  PackedKernel bf16, int8, int4;
  // Reads memory from end to end and does nothing else; bytes is a multiple of 512.
  float (*read)(const char* from, int64_t bytes);
  // int8 for more than kFew tokens; without a multiply: the one above.
  PackedKernel int8_many{};
};

extern const PackedIsa kPackedBaseline;
#if defined(PLAIT_X86)
extern const PackedIsa kPackedAvx2, kPackedAvx512, kPackedAvx512Bf16;
#endif

}  // namespace plait
