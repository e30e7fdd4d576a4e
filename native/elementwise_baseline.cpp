#include "elementwise.inl"

const ElementwiseIsa kElementwiseBaseline{"baseline", map, sum, layer_norm};
}  // namespace plait
