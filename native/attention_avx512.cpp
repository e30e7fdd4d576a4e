#include "attention.inl"

namespace plait {
const AttentionIsa kAttentionAvx512{"AVX-512", attend, join, merge};
}
