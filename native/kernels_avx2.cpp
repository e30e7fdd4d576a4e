#define LANES 8
#include "kernels.inl"

namespace plait {
const Isa kAvx2{"AVX2", linear};
}
