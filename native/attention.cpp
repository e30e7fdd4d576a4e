// Plans the work of paged attention and binds it. Addresses and sizes were checked by the callers in
// plait.kernels.attention, which keep the tensors alive.
#include "attention.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

constexpr int64_t kAlone = 48 << 10;  // bytes of keys and values below which one thread is faster

const std::vector<const AttentionIsa*>& known() {
  static const std::vector<const AttentionIsa*> all{
#if defined(PLAIT_X86)
      &kAttentionAvx512Bf16, &kAttentionAvx512, &kAttentionAvx2,
#endif
      &kAttentionBaseline};
  return all;
}

const AttentionIsa& isa(const std::string& set) { return pick(known(), set); }

int64_t segments_of(const PagedArgs& a, int64_t row) {
  return std::max<int64_t>(1, (a.lens[row] + kSegment - 1) / kSegment);
}

// The items of one call, and how the results of those that were split are joined.
struct Plan {
  std::vector<AttendItem> items, joins;
  std::vector<float> partials;
};

// Cuts one token's keys after every `most` segments.
void split(const AttendItem& whole, int64_t most, Plan& plan) {
  plan.joins.push_back(whole);
  for (int64_t s = 0; s < whole.past_segment; s += most) {
    plan.items.push_back(whole);
    plan.items.back().segment = s;
    plan.items.back().past_segment = std::min(s + most, whole.past_segment);
  }
}

// Gives the pieces of each split item, which stand in the order of `joins`, their room.
void make_room(const PagedArgs& a, Plan& plan) {
  const int64_t part = a.heads / a.kv_heads * (padded(a.size) + 16);
  int64_t floats = 0;
  for (const AttendItem& whole : plan.joins) floats += whole.past_segment * part;
  plan.partials.resize(size_t(floats));
  float* room = plan.partials.data();
  size_t next = 0;
  for (AttendItem& whole : plan.joins) {
    whole.partial = room;
    for (bool last = false; !last; next++) {
      AttendItem& piece = plan.items[next];
      if (piece.token != whole.token || piece.kv_head != whole.kv_head) continue;
      piece.partial = room + piece.segment * part;
      last = piece.past_segment == whole.past_segment;
    }
    room += whole.past_segment * part;
  }
}

// Prompts are cut by tokens, their last ones, which see most, first; a single token whose keys are a
// large share of all is cut by segments.
void draw_up(const PagedArgs& a, int64_t count, int threads, Plan& plan) {
  plan.items.clear();
  plan.joins.clear();
  const int64_t block = std::clamp<int64_t>(kItemRows / (a.heads / a.kv_heads), 1, 32);
  int64_t all = 0;
  for (int64_t r = 0; r < count; r++) all += segments_of(a, r);
  const int64_t most = threads == 1 ? INT64_MAX : std::max<int64_t>(1, all * a.kv_heads / (threads * 8));
  for (int64_t r = 0; r < count; r++) {
    const int64_t segments = segments_of(a, r), start = a.starts[r];
    for (int64_t past = a.starts[r + 1]; past > start; past -= block) {
      const int64_t token = std::max(start, past - block);
      for (int64_t h = 0; h < a.kv_heads; h++) {
        const AttendItem item{int32_t(r), int32_t(token), int32_t(past - token), int32_t(h), 0, segments, nullptr, nullptr};
        if (item.count == 1 && segments > most)
          split(item, most, plan);
        else
          plan.items.push_back(item);
      }
    }
  }
  for (size_t i = 1; i < plan.items.size(); i++) plan.items[i - 1].next = &plan.items[i];
  make_room(a, plan);
}

void attend(Crew& crew, const std::string& name, const PagedArgs& a, int64_t count, int threads) {
  const AttentionIsa& kernels = isa(name);
  int64_t keys = 0;
  for (int64_t r = 0; r < count; r++) keys += int64_t(a.lens[r]) * std::max(1, a.starts[r + 1] - a.starts[r]);
  if (keys * a.kv_heads * a.size * 2 * (a.int8 ? 1 : a.bf16 ? 2 : 4) < kAlone) threads = 1;
  static thread_local Plan work;
  draw_up(a, count, threads, work);
  crew.run(threads, int64_t(work.items.size()), [&, items = work.items.data()](int64_t first, int64_t past) {
    for (int64_t i = first; i < past; i++) kernels.attend(a, items[i]);
  });
  for (const AttendItem& item : work.joins) kernels.join(a, item);
}

// Puts keys and values of new tokens into their slots; `bytes` of an element is 2 or 4.
template <class T>
void store(const T* k, const T* v, int64_t k_stride, int64_t v_stride, const int32_t* slots, T* kv, int64_t tokens,
           int64_t heads, int64_t size, int64_t lanes) {
  constexpr int64_t pack = 4 / int64_t(sizeof(T));
  const int64_t width = padded(size), part = lanes * width;
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t lane = slots[t] % lanes;
      T* keys = kv + (slots[t] / lanes * heads + h) * 2 * part;
      const T* from = k + t * k_stride + h * size;
      for (int64_t d = 0; d < size / pack; d++) std::memcpy(keys + (d * lanes + lane) * pack, from + d * pack, 4);
      put_values(v + t * v_stride + h * size, size, keys + part, width, lanes, lane);
    }
}

inline float widened(float value) { return value; }
inline float widened(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounds one head of a token to whole numbers of a scale, `step` elements of which lie `apart` from the next.
template <class T>
void round_head(const T* from, int64_t size, int8_t* codes, int64_t step, int64_t apart, float* scale) {
  float most = 0;
  bool finite = true;
  for (int64_t d = 0; d < size; d++) {
    const float value = std::fabs(widened(from[d]));
    finite &= value <= FLT_MAX;
    most = std::max(most, value);
  }
  *scale = finite ? most / 127.f : NAN;  // what is not a number stays so
  const float inverse = finite && most >= FLT_MIN ? 127.f / most : 0.f;
  for (int64_t d = 0; d < size; d++)
    codes[d / step * apart + d % step] = int8_t(std::nearbyint(finite ? widened(from[d]) * inverse : 0.f));
}

// The same into a pool of int8, each head of a token with the scale of its largest element.
template <class T>
void store_rounded(const T* k, const T* v, int64_t k_stride, int64_t v_stride, const int32_t* slots, int8_t* kv,
                   int64_t tokens, int64_t heads, int64_t size, int64_t lanes) {
  const int64_t width = padded(size), part = part_of<int8_t>(size, lanes);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t lane = slots[t] % lanes;
      int8_t* keys = kv + (slots[t] / lanes * heads + h) * 2 * part;
      int8_t* values = keys + part;
      float scales[2];
      round_head(k + t * k_stride + h * size, size, keys + lane * 4, 4, lanes * 4, &scales[0]);
      round_head(v + t * v_stride + h * size, size, values + lane * width, width, width, &scales[1]);
      std::memcpy(keys + lanes * width + lane * 4, &scales[0], 4);
      std::memcpy(values + lanes * width + lane * 4, &scales[1], 4);
    }
}

void store_kv(Address k, Address v, int64_t k_stride, int64_t v_stride, Address slots, Address kv, int64_t tokens,
              int64_t heads, int64_t size, int64_t lanes, bool bf16, bool int8) {
  if (int8 && bf16)
    store_rounded(at<uint16_t>(k), at<uint16_t>(v), k_stride, v_stride, at<int32_t>(slots), at<int8_t>(kv), tokens,
                  heads, size, lanes);
  else if (int8)
    store_rounded(at<float>(k), at<float>(v), k_stride, v_stride, at<int32_t>(slots), at<int8_t>(kv), tokens, heads,
                  size, lanes);
  else if (bf16)
    store(at<uint16_t>(k), at<uint16_t>(v), k_stride, v_stride, at<int32_t>(slots), at<uint16_t>(kv), tokens, heads,
          size, lanes);
  else
    store(at<float>(k), at<float>(v), k_stride, v_stride, at<int32_t>(slots), at<float>(kv), tokens, heads, size, lanes);
}

void merge(const std::string& name, const std::vector<Address>& outs, const std::vector<Address>& lses, int64_t items,
           int64_t size, bool bf16, Address out, Address lse) {
  std::vector<const void*> from;
  std::vector<const float*> levels;
  for (Address each : outs) from.push_back(at<void>(each));
  for (Address each : lses) levels.push_back(at<float>(each));
  isa(name).merge(from.data(), levels.data(), int64_t(from.size()), items, size, bf16, at<void>(out), at<float>(lse));
}

// Asks for large pages where the system gives them on request: scattered reads then miss fewer translations.
void advise_large(Address from, int64_t bytes) {
#if defined(__linux__)
  constexpr Address large = 2 << 20;
  const Address first = (from + large - 1) / large * large, past = (from + Address(bytes)) / large * large;
  if (first < past) madvise(at<void>(first), past - first, MADV_HUGEPAGE);
#endif
}

// Takes whole pages of memory now; they read as they did. False where the system cannot be told to.
bool populate(Address from, int64_t bytes) {
#if defined(__linux__)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
  constexpr Address page = 4096;
  const Address first = (from + page - 1) / page * page, past = (from + Address(bytes)) / page * page;
  nb::gil_scoped_release release;
  return first >= past || madvise(at<void>(first), past - first, MADV_POPULATE_WRITE) == 0;
#else
  return false;
#endif
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("paged_attend", [](const std::string& name, Address q, int64_t q_stride, Address kv, Address tables,
                                int64_t table_stride, Address rows, Address starts, Address lens, Address positions,
                                Address out, Address lse, int64_t count, int64_t heads, int64_t kv_heads, int64_t size,
                                int64_t lanes, int64_t page, int64_t first, int64_t stride, float scale, int64_t window,
                                float softcap, bool bf16, bool int8, bool wide, int threads) {
    const PagedArgs args{at<void>(q),        q_stride,        at<void>(kv),       at<int32_t>(tables),
                         table_stride,       at<int32_t>(rows), at<int32_t>(starts), at<int32_t>(lens),
                         at<int64_t>(positions), at<void>(out), at<float>(lse),   heads,
                         kv_heads,           size,            lanes,              page,
                         first,              stride,          window,             scale,
                         softcap,            bf16,            int8,               wide};
    nb::gil_scoped_release release;
    attend(crew(), name, args, count, threads);
  });
  m.def("advise_large", &advise_large);
  m.def("populate", &populate);
  m.def("paged_store", &store_kv);
  m.def("merge_attention", &merge);
}

}  // namespace plait
