// Packed linear layers for CPUs with bf16 and int8 dot products.
// bf16: each output of each token is one chain over the inputs, so batch, tiling and threads change
// no bit. int8 and int4: sums of each 64 inputs (or each group) are exact integers, added in order.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "linear.h"

namespace plait {
namespace {

#include "vectors.inl"

constexpr int64_t kBlockTiles = 16;  // tokens of so many tiles go through all panels together
constexpr int64_t kRun = 2048;       // words of a panel that all tiles of a block use before the next

// With products to do between its reads a core no longer runs ahead by itself. bf16 weights of one or
// two tokens are little more than reading, which this only hurts.
constexpr int64_t kAhead = 2048;  // words

template <_mm_hint Where>
inline void fetch(const uint32_t* words) {
  _mm_prefetch(reinterpret_cast<const char*>(words), Where);
  _mm_prefetch(reinterpret_cast<const char*>(words + 16), Where);
}

inline __m512 widen16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m512 scales_at(const PackedArgs& a, int64_t at) {
  if (a.scales_bf16) return widen16(static_cast<const uint16_t*>(a.scales) + at);
  return _mm512_loadu_ps(static_cast<const float*>(a.scales) + at);
}

// silu(gate) * value of 16 outputs, rounded where modules of their own would round.
inline __m512 gate(const __m512* sums) {
  const V16 g = rounded<uint16_t>(V16(sums[0])), value = rounded<uint16_t>(V16(sums[1]));
  return __m512(rounded<uint16_t>(g / (1.f + exp16(-g))) * value);
}

inline __mmask16 mask_of(int64_t left) { return left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1); }

// Adds the bias and writes 32 outputs of one token, or as many as there are.
inline void finish(const PackedArgs& a, const __m512* sums, int64_t token, int64_t panel) {
  if (a.gated) {
    const int64_t first = panel * 16;
    uint16_t* to = static_cast<uint16_t*>(a.out) + token * a.gated + first;
    _mm256_mask_storeu_epi16(to, mask_of(a.gated - first), __m256i(_mm512_cvtneps_pbh(gate(sums))));
    return;
  }
  for (int c = 0; c < 2; c++) {
    const int64_t first = panel * kPanel + c * 16, left = a.outputs - first;
    if (left <= 0) return;
    const __mmask16 mask = mask_of(left);
    __m512 v = sums[c];
    if (a.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, a.bias + first));
    const int64_t at = token * a.outputs + first;
    if (a.wide)
      _mm512_mask_storeu_ps(static_cast<float*>(a.out) + at, mask, v);
    else
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(a.out) + at, mask, __m256i(_mm512_cvtneps_pbh(v)));
  }
}

// Calls f.template operator()<M>() for M == count.
template <int M, class F>
inline void with_height(int64_t count, const F& f) {
  if constexpr (M > 0) {
    if (count == M)
      f.template operator()<M>();
    else
      with_height<M - 1>(count, f);
  }
}

namespace bf16 {

constexpr int kTile = 14;  // 28 sums, 2 vectors of weights and a broadcast fill the registers

int64_t words_of(const PackedArgs& a) { return (a.inputs + 1) / 2; }
int64_t row_bytes(const PackedArgs& a) { return words_of(a) * 4; }

// Activations of a tile as pairs [words][tokens of the tile].
void prepare(const PackedArgs& a, int64_t first_tile, int64_t past_tile) {
  const int64_t tiles = tile_count(a, kTile), words = words_of(a);
  for (int64_t t = first_tile; t < past_tile; t++) {
    const int64_t first = tile_row(a, t, tiles), count = tile_row(a, t + 1, tiles) - first;
    uint32_t* to = reinterpret_cast<uint32_t*>(a.prepared) + first * words;
    const uint16_t* from = a.x + first * a.x_stride;
    with_height<kTile>(count, [&]<int M>() {
      for (int64_t i = 0; i < a.inputs / 2; i++)
#pragma GCC unroll 14
        for (int m = 0; m < M; m++) std::memcpy(to + i * M + m, from + m * a.x_stride + 2 * i, 4);
      if (a.inputs % 2)
        for (int m = 0; m < M; m++) to[(words - 1) * M + m] = from[m * a.x_stride + a.inputs - 1];
    });
  }
}

// Sums of a tile over words [first, past) of a panel, which stands at `weights`; between runs of words they
// rest in `carry`. With `Ahead` it asks for the next panel's words as it goes.
template <int M, bool Ahead>
void tile(const PackedArgs& a, const uint32_t* weights, int64_t token, int64_t panel, int64_t first, int64_t past,
          float* carry) {
  const int64_t words = words_of(a);
  __m512 sum[M][2];
#pragma GCC unroll 14
  for (int m = 0; m < M; m++) {
    sum[m][0] = first ? _mm512_loadu_ps(carry + m * kPanel) : _mm512_setzero_ps();
    sum[m][1] = first ? _mm512_loadu_ps(carry + m * kPanel + 16) : _mm512_setzero_ps();
  }
  const uint32_t* w = weights + first * kPanel;
  const uint32_t* x = reinterpret_cast<const uint32_t*>(a.prepared) + token * words + first * M;
#pragma GCC unroll 2
  for (int64_t word = first; word < past; word++, w += kPanel, x += M) {
    const __m512bh w0 = __m512bh(_mm512_loadu_si512(w)), w1 = __m512bh(_mm512_loadu_si512(w + 16));
    if constexpr (Ahead)
      fetch<_MM_HINT_T1>(w + words * kPanel);
    else if constexpr (M > 2)
      fetch<_MM_HINT_T0>(w + kAhead);
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) {
      const __m512bh pair = __m512bh(_mm512_set1_epi32(int(x[m])));
      sum[m][0] = _mm512_dpbf16_ps(sum[m][0], w0, pair);
      sum[m][1] = _mm512_dpbf16_ps(sum[m][1], w1, pair);
    }
  }
  if (past == words) {
    if (a.scales) {
      const __m512 scale[2] = {scales_at(a, panel * kPanel), scales_at(a, panel * kPanel + 16)};
#pragma GCC unroll 14
      for (int m = 0; m < M; m++)
        for (int c = 0; c < 2; c++) sum[m][c] = _mm512_mul_ps(sum[m][c], scale[c]);
    }
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) finish(a, sum[m], token + m, panel);
    return;
  }
#pragma GCC unroll 14
  for (int m = 0; m < M; m++) {
    _mm512_storeu_ps(carry + m * kPanel, sum[m][0]);
    _mm512_storeu_ps(carry + m * kPanel + 16, sum[m][1]);
  }
}

void multiply(const PackedArgs& a, int64_t first_panel, int64_t past_panel) {
  alignas(64) float carry[kBlockTiles * kTile * kPanel];
  const int64_t tiles = tile_count(a, kTile), words = words_of(a);
  for (int64_t block = 0; block < tiles; block += kBlockTiles) {
    const int64_t past_tile = block + kBlockTiles < tiles ? block + kBlockTiles : tiles;
    const int64_t run = past_tile - block > 1 ? kRun : words;
    for (int64_t panel = first_panel; panel < past_panel; panel++)
      for (int64_t first = 0; first < words; first += run) {
        const int64_t past = first + run < words ? first + run : words;
        for (int64_t t = block; t < past_tile; t++) {
          const int64_t token = tile_row(a, t, tiles);
          float* rest = carry + (t - block) * kTile * kPanel;
          // The first tile reads from memory, the others from cache: the last one has time to fetch.
          const bool ahead = t > block && t + 1 == past_tile && panel + 1 < past_panel;
          with_height<kTile>(tile_row(a, t + 1, tiles) - token, [&]<int M>() {
            if (ahead)
              tile<M, true>(a, a.words + panel * words * kPanel, token, panel, first, past, rest);
            else
              tile<M, false>(a, a.words + panel * words * kPanel, token, panel, first, past, rest);
          });
        }
      }
  }
}

// Words of four int8 weights, as words of two bf16 weights: whole numbers up to 128 are exact in bf16.
void widen_words(const uint32_t* from, int64_t words, uint32_t* to) {
  const __m512i signs = _mm512_set1_epi32(int(0x80808080u)), upper = _mm512_set1_epi32(int(0xffff0000u));
  const auto number = [](__m512i bytes, int i) {
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * i), 24)));
  };
  for (int64_t word = 0; word < words; word++)
    for (int c = 0; c < 2; c++) {
      const __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(from + word * kPanel + c * 16), signs);
      for (int i = 0; i < 4; i += 2) {
        const __m512i low = _mm512_srli_epi32(number(bytes, i), 16), high = number(bytes, i + 1);
        // (high & upper) | low
        _mm512_storeu_si512(to + (word * 2 + i / 2) * kPanel + c * 16, _mm512_ternarylogic_epi32(high, upper, low, 0xea));
      }
    }
}

// int8 weights for so many tokens that making them bf16 costs less than computing with planes of int8.
void multiply_int8(const PackedArgs& a, int64_t first_panel, int64_t past_panel) {
  alignas(64) float carry[kTile * kPanel];
  const int64_t tiles = tile_count(a, kTile), quads = (a.inputs + 3) / 4;
  static thread_local std::vector<uint32_t> panel_words;
  panel_words.resize(size_t(quads * 2 * kPanel));
  uint32_t* weights = panel_words.data();
  for (int64_t panel = first_panel; panel < past_panel; panel++) {
    widen_words(a.words + panel * quads * kPanel, quads, weights);
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t token = tile_row(a, t, tiles);
      with_height<kTile>(tile_row(a, t + 1, tiles) - token, [&]<int M>() {
        tile<M, false>(a, weights, token, panel, 0, words_of(a), carry);
      });
    }
  }
}

}  // namespace bf16

// Activations become two planes of int8, high and low, of 15-bit whole numbers that share a scale
// among the inputs of a span. Weights stand unsigned with an offset, which the start of each sum takes
// away again.
namespace planes {

constexpr int kTile = 6;  // 24 sums, 2 vectors of weights, 2 broadcasts
constexpr float kLargest = 127 * 128;
constexpr float kLeast = 1e-30f;  // spans of smaller numbers count as zero

struct Int8 {
  static constexpr int kInputs = 4, kOffset = 128;
  static constexpr bool kGrouped = false;  // one scale an output
  static int64_t span(const PackedArgs&) { return 64; }
};

struct Int4 {
  static constexpr int kInputs = 8, kOffset = 8;
  static constexpr bool kGrouped = true;
  static int64_t span(const PackedArgs& a) { return a.group; }
};

// One token's span in a prepared tile: [words of a row][tokens][high, low] come first, these after.
struct Span {
  float scale;
  int32_t start;  // what every sum of this span starts from
};

template <class Format>
struct Layout {
  int64_t quads, span_quads, spans;  // four inputs of one token, as one 32-bit number each plane

  explicit Layout(const PackedArgs& a) {
    constexpr int64_t inputs = Format::kInputs;
    quads = (a.inputs + inputs - 1) / inputs * (inputs / 4);
    span_quads = Format::span(a) / 4;
    spans = (quads + span_quads - 1) / span_quads;
  }
  int64_t row() const { return quads * 8 + spans * int64_t(sizeof(Span)); }
};

template <class Format>
int64_t row_bytes(const PackedArgs& a) {
  return Layout<Format>(a).row();
}

// The planes of `count` inputs of one token, written in steps of 16 and filled up with zeros.
Span split(const uint16_t* x, int64_t count, int offset, int8_t* high, int8_t* low) {
  __m512i tops = _mm512_setzero_si512(), sums = _mm512_setzero_si512();
  const auto load = [&](int64_t i) {
    const __mmask16 mask = count - i >= 16 ? __mmask16(0xffff) : __mmask16((1u << (count - i)) - 1);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + i)), 16);
  };
  const __m512i size = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < count; i += 16) tops = _mm512_max_epu32(tops, _mm512_and_si512(load(i), size));
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(_mm512_reduce_max_epu32(tops)))));
  const bool finite = largest <= 3.4e38f;
  const __m512 inverse = _mm512_set1_ps(largest >= kLeast && finite ? kLargest / largest : 0.f);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(load(i)), inverse));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7);
    const __m512i lower = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + i), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + i), _mm512_cvtepi32_epi8(lower));
    sums = _mm512_add_epi32(sums, whole);
  }
  if (!finite) return {__builtin_nanf(""), 0};  // the whole span's share of every sum is not a number
  return {largest / kLargest, -offset * _mm512_reduce_add_epi32(sums)};
}

template <class Format>
void prepare(const PackedArgs& a, int64_t first_tile, int64_t past_tile) {
  const Layout<Format> layout(a);
  const int64_t tiles = tile_count(a, kTile);
  for (int64_t t = first_tile; t < past_tile; t++) {
    const int64_t first = tile_row(a, t, tiles), count = tile_row(a, t + 1, tiles) - first;
    char* base = a.prepared + first * layout.row();
    auto* planes = reinterpret_cast<uint32_t*>(base);
    auto* spans = reinterpret_cast<Span*>(base + layout.quads * count * 8);
    for (int64_t m = 0; m < count; m++)
      for (int64_t s = 0; s < layout.spans; s++) {
        const int64_t quad = s * layout.span_quads;
        const int64_t past = quad + layout.span_quads < layout.quads ? quad + layout.span_quads : layout.quads;
        const int64_t left = a.inputs - quad * 4;
        alignas(64) int8_t high[128], low[128];
        const int64_t inputs = left < (past - quad) * 4 ? left : (past - quad) * 4;
        if (past == layout.quads) std::memset(high, 0, sizeof high), std::memset(low, 0, sizeof low);
        spans[s * count + m] =
            split(a.x + (first + m) * a.x_stride + quad * 4, inputs, Format::kOffset, high, low);
        for (int64_t q = quad; q < past; q++) {
          std::memcpy(planes + (q * count + m) * 2, high + (q - quad) * 4, 4);
          std::memcpy(planes + (q * count + m) * 2 + 1, low + (q - quad) * 4, 4);
        }
      }
  }
}

template <int M>
inline void add_quad(__m512i (&high)[M][2], __m512i (&low)[M][2], __m512i w0, __m512i w1, const uint32_t* x) {
#pragma GCC unroll 6
  for (int m = 0; m < M; m++) {
    const __m512i upper = _mm512_set1_epi32(int(x[2 * m])), lower = _mm512_set1_epi32(int(x[2 * m + 1]));
    high[m][0] = _mm512_dpbusd_epi32(high[m][0], w0, upper);
    high[m][1] = _mm512_dpbusd_epi32(high[m][1], w1, upper);
    low[m][0] = _mm512_dpbusd_epi32(low[m][0], w0, lower);
    low[m][1] = _mm512_dpbusd_epi32(low[m][1], w1, lower);
  }
}

template <class Format, int M>
void tile(const PackedArgs& a, int64_t token, int64_t panel) {
  const Layout<Format> layout(a);
  const char* base = a.prepared + token * layout.row();
  const auto* x = reinterpret_cast<const uint32_t*>(base);
  const auto* spans = reinterpret_cast<const Span*>(base + layout.quads * M * 8);
  const int64_t scale_row = panel * (Format::kGrouped ? layout.spans : 1) * kPanel;
  const uint32_t* w = a.words + panel * (layout.quads * 4 / Format::kInputs) * kPanel;
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512 total[M][2];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++) total[m][0] = total[m][1] = _mm512_setzero_ps();
  for (int64_t s = 0; s < layout.spans; s++, spans += M) {
    __m512i high[M][2], low[M][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
      high[m][0] = high[m][1] = _mm512_setzero_si512();
      low[m][0] = low[m][1] = _mm512_set1_epi32(spans[m].start);
    }
    const int64_t first = s * layout.span_quads;
    const int64_t past = first + layout.span_quads < layout.quads ? first + layout.span_quads : layout.quads;
    for (int64_t quad = first; quad < past; quad += Format::kInputs / 4, w += kPanel, x += Format::kInputs / 2 * M) {
      const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 16);
      fetch<_MM_HINT_T0>(w + kAhead);
      if constexpr (Format::kInputs == 4) {
        add_quad<M>(high, low, w0, w1, x);
      } else {
        add_quad<M>(high, low, _mm512_and_si512(w0, nibble), _mm512_and_si512(w1, nibble), x);
        const __m512i u0 = _mm512_and_si512(_mm512_srli_epi16(w0, 4), nibble);
        const __m512i u1 = _mm512_and_si512(_mm512_srli_epi16(w1, 4), nibble);
        add_quad<M>(high, low, u0, u1, x + 2 * M);
      }
    }
#pragma GCC unroll 2
    for (int c = 0; c < 2; c++) {
      __m512 weight_scale = _mm512_set1_ps(1.f);
      if constexpr (Format::kGrouped) weight_scale = scales_at(a, scale_row + s * kPanel + c * 16);
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high[m][c], 7), low[m][c]);
        __m512 scale = _mm512_set1_ps(spans[m].scale);
        if constexpr (Format::kGrouped) scale = _mm512_mul_ps(scale, weight_scale);
        total[m][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, total[m][c]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++) {
    if constexpr (!Format::kGrouped)
      for (int c = 0; c < 2; c++)
        total[m][c] = _mm512_mul_ps(total[m][c], scales_at(a, scale_row + c * 16));
    finish(a, total[m], token + m, panel);
  }
}

template <class Format>
void multiply(const PackedArgs& a, int64_t first_panel, int64_t past_panel) {
  const int64_t tiles = tile_count(a, kTile);
  for (int64_t panel = first_panel; panel < past_panel; panel++)
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t token = tile_row(a, t, tiles);
      with_height<kTile>(tile_row(a, t + 1, tiles) - token, [&]<int M>() { tile<Format, M>(a, token, panel); });
    }
}

template <class Format>
constexpr PackedKernel kernel() {
  return {kTile, row_bytes<Format>, prepare<Format>, multiply<Format>};
}

}  // namespace planes

float read(const char* from, int64_t bytes) {
  constexpr int ahead = 8;
  __m512 sums[ahead] = {};
  for (int64_t i = 0; i < bytes; i += ahead * 64)
#pragma GCC unroll 8
    for (int j = 0; j < ahead; j++) sums[j] = _mm512_add_ps(sums[j], _mm512_loadu_ps(from + i + j * 64));
  for (int j = 1; j < ahead; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}
}  // namespace

const PackedIsa kPackedAvx512Bf16{
    "AVX-512-bf16",
    {bf16::kTile, bf16::row_bytes, bf16::prepare, bf16::multiply},
    planes::kernel<planes::Int8>(),
    planes::kernel<planes::Int4>(),
    read,
    {bf16::kTile, bf16::row_bytes, bf16::prepare, bf16::multiply_int8},
};

}  // namespace plait
