#include "sampling.inl"

namespace plait {
const SamplingIsa kSamplingAvx2{"AVX2", draw, score};
}
