#define LANES 4
#include "linear.inl"

namespace plait {
const PackedIsa kPackedBaseline{"baseline", kernel<Bf16>(), kernel<Int8>(), kernel<Int4>(), read};
}
