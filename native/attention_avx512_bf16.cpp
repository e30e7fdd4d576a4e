#include "attention.inl"

namespace plait {
const AttentionIsa kAttentionAvx512Bf16{"AVX-512-bf16", attend, join, merge};
}
