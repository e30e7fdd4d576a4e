#include "elementwise.inl"

const ElementwiseIsa kElementwiseAvx2{map, sum, layer_norm};
}  // namespace plait
