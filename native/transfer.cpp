// Takes keys and values out of a paged pool, and puts them into another one. Addresses and sizes were checked by
// the callers in plait.kernels.transfer.
#include <cstring>
#include <vector>

#include "attention.h"
#include "bind.h"

namespace nb = nanobind;

namespace plait {
namespace {

// Which part of a layer's pool a copy is about.
struct Slots {
  uint8_t* pool;
  const int32_t* slots;
  int64_t count, kv_heads, first_head, heads, size, lanes;
};

template <class T>
void between(T* pool, T* wire, int64_t bytes, bool out) {
  if (out)
    std::memcpy(wire, pool, size_t(bytes));
  else
    std::memcpy(pool, wire, size_t(bytes));
}

// The wire has, for each head, keys then values: the tokens' elements side by side, of int8 then their scales.
template <class T>
void copy_slots(const Slots& s, uint8_t* wire, bool out) {
  constexpr int64_t pack = 4 / int64_t(sizeof(T));
  const int64_t width = padded(s.size), part = part_of<T>(s.size, s.lanes);
  const bool scaled = sizeof(T) == 1, paired = sizeof(T) == 2 && s.lanes > 1;
  const int64_t wire_part = s.count * (s.size * int64_t(sizeof(T)) + (scaled ? 4 : 0));
  T* pool = reinterpret_cast<T*>(s.pool);
  for (int64_t h = 0; h < s.heads; h++)
    for (int64_t t = 0; t < s.count; t++) {
      const int64_t lane = s.slots[t] % s.lanes;
      T* keys = pool + (s.slots[t] / s.lanes * s.kv_heads + s.first_head + h) * 2 * part;
      T* values = keys + part;
      uint8_t* wire_keys = wire + h * 2 * wire_part;
      uint8_t* wire_values = wire_keys + wire_part;
      T* key = reinterpret_cast<T*>(wire_keys) + t * s.size;
      T* value = reinterpret_cast<T*>(wire_values) + t * s.size;
      for (int64_t d = 0; d < s.size / pack; d++) between(keys + (d * s.lanes + lane) * pack, key + d * pack, 4, out);
      if (paired) {
        T* pairs = values + lane / 2 * 2 * width + lane % 2;
        for (int64_t d = 0; d < s.size; d++) (out ? value[d] : pairs[2 * d]) = out ? pairs[2 * d] : value[d];
      } else {
        between(values + lane * width, value, s.size * int64_t(sizeof(T)), out);
      }
      if (scaled) {
        const int64_t scales = s.lanes * width + lane * 4, wire_scales = s.count * s.size + t * 4;
        between(reinterpret_cast<uint8_t*>(keys) + scales, wire_keys + wire_scales, 4, out);
        between(reinterpret_cast<uint8_t*>(values) + scales, wire_values + wire_scales, 4, out);
      }
    }
}

void move_slots(Address pool, Address slots, int64_t count, int64_t kv_heads, int64_t first_head, int64_t heads,
                int64_t size, int64_t lanes, int64_t bytes, Address wire, bool out) {
  const Slots s{at<uint8_t>(pool), at<int32_t>(slots), count, kv_heads, first_head, heads, size, lanes};
  nb::gil_scoped_release release;
  if (bytes == 4)
    copy_slots<float>(s, at<uint8_t>(wire), out);
  else if (bytes == 2)
    copy_slots<uint16_t>(s, at<uint8_t>(wire), out);
  else
    copy_slots<int8_t>(s, at<uint8_t>(wire), out);
}

// Tokens of one pool into slots of another one whose blocks are of the same form; through one token's room.
template <class T>
void carry(Slots from, Slots to, int64_t count) {
  const int64_t token_bytes = from.heads * 2 * (from.size * int64_t(sizeof(T)) + 4);
  static thread_local std::vector<uint8_t> room;
  room.resize(size_t(token_bytes));
  for (int64_t t = 0; t < count; t++, from.slots++, to.slots++) {
    copy_slots<T>(from, room.data(), true);
    copy_slots<T>(to, room.data(), false);
  }
}

void carry_slots(Address from, Address from_slots, Address to, Address to_slots, int64_t count, int64_t kv_heads,
                 int64_t size, int64_t lanes, int64_t bytes) {
  const Slots source{at<uint8_t>(from), at<int32_t>(from_slots), 1, kv_heads, 0, kv_heads, size, lanes};
  const Slots target{at<uint8_t>(to), at<int32_t>(to_slots), 1, kv_heads, 0, kv_heads, size, lanes};
  nb::gil_scoped_release release;
  if (bytes == 4)
    carry<float>(source, target, count);
  else if (bytes == 2)
    carry<uint16_t>(source, target, count);
  else
    carry<int8_t>(source, target, count);
}

// Whole blocks as they lie: `run` bytes of each, `offset` bytes into it; blocks are `apart` bytes.
void move_blocks(Address pool, Address blocks, int64_t count, int64_t apart, int64_t offset, int64_t run, Address wire,
                 bool out) {
  const int32_t* which = at<int32_t>(blocks);
  nb::gil_scoped_release release;
  for (int64_t b = 0; b < count; b++)
    between(at<uint8_t>(pool) + which[b] * apart + offset, at<uint8_t>(wire) + b * run, run, out);
}

// Fletcher's sums over words of 64 bits, the last one filled up with zeros: the sum, and the sum of all sums.
nb::tuple fletcher(Address from, int64_t bytes) {
  const uint8_t* data = at<uint8_t>(from);
  uint64_t sum = 0, sums = 0;
  {
    nb::gil_scoped_release release;
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) {  // four words at a time: the chain from sum to sum is a quarter as long
      uint64_t w[4];
      std::memcpy(w, data + i, 32);
      sums += 4 * sum + 4 * w[0] + 3 * w[1] + 2 * w[2] + w[3];
      sum += w[0] + w[1] + w[2] + w[3];
    }
    for (; i < bytes; i += 8) {
      uint64_t word = 0;
      std::memcpy(&word, data + i, size_t(bytes - i < 8 ? bytes - i : 8));
      sum += word;
      sums += sum;
    }
  }
  return nb::make_tuple(sum, sums);
}

}  // namespace

void bind_transfer(nb::module_& m) {
  m.def("move_slots", &move_slots);
  m.def("carry_slots", &carry_slots);
  m.def("move_blocks", &move_blocks);
  m.def("fletcher", &fletcher);
}

}  // namespace plait
