#include "sampling.inl"

namespace plait {
const SamplingIsa kSamplingAvx512{"AVX-512", draw, score};
}
