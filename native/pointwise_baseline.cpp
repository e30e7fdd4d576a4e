#include "pointwise.inl"

namespace plait {
const PointwiseIsa kPointwiseBaseline{"baseline", norm, gate, rope};
}
