#define LANES 16
#include "kernels.inl"

namespace plait {
const Isa kAvx512{"AVX-512", linear};
}
