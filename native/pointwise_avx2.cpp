#include "pointwise.inl"

namespace plait {
const PointwiseIsa kPointwiseAvx2{"AVX2", norm, gate, rope};
}
