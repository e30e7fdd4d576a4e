#include "attention.inl"

namespace plait {
const AttentionIsa kAttentionAvx2{"AVX2", attend, join, merge};
}
