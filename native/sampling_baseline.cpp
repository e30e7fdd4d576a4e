#include "sampling.inl"

namespace plait {
const SamplingIsa kSamplingBaseline{"baseline", draw, score};
}
