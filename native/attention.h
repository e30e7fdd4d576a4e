// Attention over paged keys and values. Legend: T tokens, R rows, H query heads, K key-value heads,
// D head size, P pages of a table, B blocks of the pool, L lanes (tokens of a block: 16, or 1).
//
// The pool is kv[B][K][2][L * W] with W = D rounded up to 16: of each block and head first the keys,
// ordered [D / E][L][E] where E elements fill 4 bytes, then the values, [L][W]. So 64 bytes hold
// the same part of 16 keys, and keys and values of a block and head lie side by side. A pool of int8 has
// after the keys, and after the values, a float32 scale of each of their tokens: [L].
#pragma once
#include <cstdint>
#include <cstring>

namespace plait {

constexpr int64_t kLanes = 16;      // tokens of a packed block
constexpr int64_t kSegment = 256;   // keys whose result is complete before it is merged with others'
constexpr int64_t kMaxHead = 256;   // largest head size
constexpr int64_t kItemRows = 96;   // most (token, head) pairs that read the same keys together

struct PagedArgs {
  const void* q;  // [T, H, D], tokens q_stride elements apart
  int64_t q_stride;
  const void* kv;
  const int32_t* tables;  // [rows, table_stride] pages
  int64_t table_stride;
  const int32_t* rows;       // [R]
  const int32_t* starts;     // [R + 1]
  const int32_t* lens;       // [R]
  const int64_t* positions;  // [T]
  void* out;                 // [T, H, D]
  float* lse;                // [T, H]
  int64_t heads, kv_heads, size, lanes, page;
  int64_t first, stride;  // key j of a row stands at position first + j * stride
  int64_t window;         // 0: none
  float scale, softcap;   // softcap 0: none
  bool bf16;              // type of q and out; else float32
  bool int8;              // type of kv; else that of q
  bool wide;              // out is float32, whatever q is
};

// Tokens of a row and the query heads of one key-value head; keys [segment * kSegment, past * kSegment).
struct AttendItem {
  int32_t row, token, count, kv_head;
  int64_t segment, past_segment;
  const AttendItem* next;  // most likely taken after this one; or null
  float* partial;  // null: the item is whole and writes its result; else (best, sum, out[W]) of each
                   // head and segment, for `merge`
};

struct AttentionIsa {
  const char* name;
  void (*attend)(const PagedArgs&, const AttendItem&);
  // Joins the partial results of one token and key-value head in ascending order and writes the result.
  void (*join)(const PagedArgs&, const AttendItem&);
  // Partial results o[n][D] with their lse, of N parts, into one; in ascending order.
  void (*merge)(const void* const* outs, const float* const* lses, int64_t parts, int64_t items, int64_t size,
                bool bf16, void* out, float* lse);
};

extern const AttentionIsa kAttentionBaseline;
#if defined(PLAIT_X86)
extern const AttentionIsa kAttentionAvx2;
extern const AttentionIsa kAttentionAvx512;
extern const AttentionIsa kAttentionAvx512Bf16;
#endif

// Static: each instruction set has its own.
static inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

// Elements of the keys, or the values, of a block and head.
template <class T>
static inline int64_t part_of(int64_t size, int64_t lanes) {
  return lanes * (padded(size) + (sizeof(T) == 1 ? int64_t(sizeof(float)) : 0));
}

// Puts the values of one head of a token into its block: tokens one after another, or in bf16 two tokens
// element by element, as products of pairs read them.
template <class T>
static inline void put_values(const T* from, int64_t size, T* values, int64_t width, int64_t lanes, int64_t lane) {
  if (sizeof(T) == 2 && lanes > 1) {
    T* to = values + lane / 2 * 2 * width + lane % 2;
    for (int64_t d = 0; d < size; d++) to[2 * d] = from[d];
  } else {
    std::memcpy(values + lane * width, from, size_t(size) * sizeof(T));
  }
}

}  // namespace plait
