#define LANES 4
#include "kernels.inl"

namespace plait {
const Isa kBaseline{"baseline", linear};
}
