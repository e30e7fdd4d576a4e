#define LANES 16
#include "linear.inl"

namespace plait {
const PackedIsa kPackedAvx512{"AVX-512", kernel<Bf16>(), kernel<Int8>(), kernel<Int4>(), read};
}
