#include "pointwise.inl"

namespace plait {
const PointwiseIsa kPointwiseAvx512Bf16{"AVX-512-bf16", norm, gate, rope};
}
