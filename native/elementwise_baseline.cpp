#include "elementwise.inl"

const ElementwiseIsa kElementwiseBaseline{map, sum, layer_norm};
}  // namespace plait
