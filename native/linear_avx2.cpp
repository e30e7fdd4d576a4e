#define LANES 8
#include "linear.inl"

namespace plait {
const PackedIsa kPackedAvx2{"AVX2", kernel<Bf16>(), kernel<Int8>(), kernel<Int4>(), read};
}
