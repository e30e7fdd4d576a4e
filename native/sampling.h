// Draws from rows of logits, and what their log-probabilities are made of. The definition is the numpy code of
// plait.kernels.sampling; weights are integers, so that sums have no order and both give the same token.
#pragma once
#include <cstdint>

namespace plait {

// How a row is drawn from; laid out as plait.kernels.sampling.WISH.
struct Wish {
  float sharpness;  // 1 / temperature; 0: the largest logit is taken
  float floor;      // scaled logits below it weigh nothing
  int64_t top_k;    // 0: all
  double top_p, share;
};

// Row r of the work is row at[r] of logits.
struct DrawArgs {
  const float* logits;
  int64_t stride, vocab;
  const int64_t* at;
  const Wish* wishes;
  int64_t* tokens;  // -1 where the largest logit is not finite
};

struct ScoreArgs {
  const float* logits;
  int64_t stride, vocab;
  const int64_t* at;
  int64_t top;
  float* largest;   // NaN where it is not finite; the rest of the row's answer is then not set
  int64_t* totals;  // sum of the row's weights
  int64_t* ids;     // [rows, top], likeliest first, lowest id first among equals
};

struct SamplingIsa {
  const char* name;
  void (*draw)(const DrawArgs& args, int64_t first, int64_t past);
  void (*score)(const ScoreArgs& args, int64_t first, int64_t past);
};

extern const SamplingIsa kSamplingBaseline;
#if defined(PLAIT_X86)
extern const SamplingIsa kSamplingAvx2;
extern const SamplingIsa kSamplingAvx512;
#endif

}  // namespace plait
