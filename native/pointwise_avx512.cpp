#include "pointwise.inl"

namespace plait {
const PointwiseIsa kPointwiseAvx512{"AVX-512", norm, gate, rope};
}
