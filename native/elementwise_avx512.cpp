#include "elementwise.inl"

const ElementwiseIsa kElementwiseAvx512{map, sum, layer_norm};
}  // namespace plait
