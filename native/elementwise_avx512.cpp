#include "elementwise.inl"

const ElementwiseIsa kElementwiseAvx512{"AVX-512", map, sum, layer_norm};
}  // namespace plait
