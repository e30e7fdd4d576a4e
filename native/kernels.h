// What each instruction set implements. Legend: T tokens, R rows, H query heads, K key-value heads,
// D head size, S slots, P pages, N outputs, I inputs.
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

struct AttendArgs {
  const void* q;  // [T, H, D], tokens q_stride apart
  int64_t q_stride;
  const void* k_pool;  // [S, K, D]
  const void* v_pool;
  const int32_t* tables;  // [rows, table_stride] pages
  int64_t table_stride;
  const int32_t* rows;       // [R]
  const int32_t* lens;       // [R]
  const int32_t* row_of;     // [T]
  const int64_t* positions;  // [T]
  void* out;                 // [T, H, D]
  float* lse;                // [T, H]
  int64_t heads, kv_heads, size, page;
  float scale;
  int64_t window;
  float softcap;
  bool bf16;  // type of q, pools and out; else float32
};

struct Isa {
  const char* name;
  void (*linear)(const LinearArgs&, int64_t first_panel, int64_t past_panel);
  // Items are (token, key-value head): item = token * K + head.
  void (*attend)(const AttendArgs&, int64_t first_item, int64_t past_item);
};

extern const Isa kBaseline;
#if defined(PLAIT_X86)
extern const Isa kAvx2;
extern const Isa kAvx512;
#endif

}  // namespace plait
