#include "attention.inl"

namespace plait {
const AttentionIsa kAttentionBaseline{"baseline", attend, join, merge};
}
