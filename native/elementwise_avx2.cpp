#include "elementwise.inl"

const ElementwiseIsa kElementwiseAvx2{"AVX2", map, sum, layer_norm};
}  // namespace plait
