// Sums over processes of one host, through memory that they share.
//
// Each process has a counter and two buffers. It copies its part into the buffer of its turn, raises its counter,
// waits until all counters have come so far, and adds up all buffers in the order of ranks: the same bits
// everywhere. Two buffers are enough: who writes in turn n + 2 has seen all arrive at turn n + 1, so all have read
// turn n.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "bind.h"

namespace nb = nanobind;

namespace plait {
namespace {

constexpr int64_t kLine = 64;
constexpr int kSpins = 64;  // between looks at whether another process wants the core

struct Room {
  char* base;
  int64_t size, part_bytes;

  std::atomic<uint64_t>& turn(int64_t rank) const {
    return *reinterpret_cast<std::atomic<uint64_t>*>(base + rank * kLine);
  }
  char* part(int64_t rank, uint64_t turn) const {
    return base + size * kLine + (2 * rank + int64_t(turn % 2)) * part_bytes;
  }
};

// Raises if a process does not come in time.
void await(const Room& room, int64_t peer, uint64_t turn, bool spin, double patience_s) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 1; room.turn(peer).load(std::memory_order_acquire) < turn; i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (!spin || i % kSpins == 0) std::this_thread::yield();
    if (i % 1024 == 0 && std::chrono::steady_clock::now() - begin > std::chrono::duration<double>(patience_s))
      throw std::runtime_error("no sign of column " + std::to_string(peer));
  }
}

float from(const uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from(const float x) { return x; }

void put(float value, float& to) { to = value; }

// To the nearest, ties to even; sums of finite parts only overflow to infinity, which stays.
void put(float value, uint16_t& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  to = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
void add_up(const Room& room, uint64_t turn, T* out, int64_t count) {
  constexpr int64_t kBlock = 256;
  float total[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t some = std::min(kBlock, count - begin);
    for (int64_t rank = 0; rank < room.size; rank++) {
      const T* part = reinterpret_cast<const T*>(room.part(rank, turn)) + begin;
      if (rank == 0)
        for (int64_t i = 0; i < some; i++) total[i] = from(part[i]);
      else
        for (int64_t i = 0; i < some; i++) total[i] += from(part[i]);
    }
    for (int64_t i = 0; i < some; i++) put(total[i], out[begin + i]);
  }
}

// bytes: of x and out; bf16: else float32; spin: each process has a core of its own.
void shared_sum(Address base, int64_t rank, int64_t size, int64_t part_bytes, Address x, Address out,
                int64_t bytes, bool bf16, bool spin, double patience_s) {
  nb::gil_scoped_release release;
  const Room room{at<char>(base), size, part_bytes};
  for (int64_t begin = 0; begin < bytes; begin += part_bytes) {
    const int64_t count = std::min(part_bytes, bytes - begin);
    const uint64_t turn = room.turn(rank).load(std::memory_order_relaxed) + 1;
    std::memcpy(room.part(rank, turn), at<char>(x) + begin, count);
    room.turn(rank).store(turn, std::memory_order_release);
    for (int64_t peer = 0; peer < size; peer++) await(room, peer, turn, spin, patience_s);
    if (bf16)
      add_up(room, turn, at<uint16_t>(out + begin), count / 2);
    else
      add_up(room, turn, at<float>(out + begin), count / 4);
  }
}

}  // namespace

void bind_shared_sum(nb::module_& m) { m.def("shared_sum", &shared_sum); }

}  // namespace plait
