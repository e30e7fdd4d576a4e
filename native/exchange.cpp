// Bytes from one process of a host to another, through memory that they share: a passage, one way, in order.
//
// A passage is a line of counters that the writer writes, one that the reader writes, and a room that is used in
// a circle. Bytes belong to a turn, which is the number of a step: a writer begins a turn only when the reader is
// past the one before, and a reader begins it where the writer did, so that what an abandoned turn left behind is
// never read. Whoever is past a turn while the other is not has abandoned it: nobody waits for him.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "bind.h"

namespace nb = nanobind;

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;
using Counter = std::atomic<int64_t>;

struct alignas(64) Writer {
  Counter turn, start, written, past;
};

struct alignas(64) Reader {
  Counter turn, read, past;
};

struct Head {
  Writer writer;
  Reader reader;
};
static_assert(sizeof(Head) == 128);

// Bytes on their way into a passage or out of it; as plait.kernels.exchange lays it out.
struct Flow {
  int64_t passage, capacity, outgoing, address, count, done;

  Head& head() const { return *at<Head>(Address(passage)); }
  char* room() const { return at<char>(Address(passage)) + sizeof(Head); }
};

enum State { kWaits, kMoves, kGone };

// Copies between the flow's own memory and the circle, from place `from` on.
void copy(const Flow& f, int64_t from, int64_t count, bool out) {
  char* own = at<char>(Address(f.address)) + f.done;
  for (int64_t place = from % f.capacity; count > 0; place = 0) {
    const int64_t some = std::min(count, f.capacity - place);
    std::memcpy(out ? f.room() + place : own, out ? own : f.room() + place, size_t(some));
    own += some;
    count -= some;
  }
}

State give(Flow& f, int64_t turn) {
  Writer& w = f.head().writer;
  const Reader& r = f.head().reader;
  const bool over = r.past.load(std::memory_order_acquire) >= turn;
  if (w.turn.load(std::memory_order_relaxed) != turn) {
    if (over) return kGone;
    if (r.past.load(std::memory_order_acquire) < w.turn.load(std::memory_order_relaxed)) return kWaits;
    w.start.store(w.written.load(std::memory_order_relaxed), std::memory_order_relaxed);
    w.turn.store(turn, std::memory_order_release);
  }
  const int64_t written = w.written.load(std::memory_order_relaxed);
  const int64_t read = std::max(r.read.load(std::memory_order_acquire), w.start.load(std::memory_order_relaxed));
  const int64_t some = std::min(f.capacity - (written - read), f.count - f.done);
  if (some == 0) return over ? kGone : kWaits;
  copy(f, written, some, true);
  f.done += some;
  w.written.store(written + some, std::memory_order_release);
  return kMoves;
}

State take(Flow& f, int64_t turn) {
  const Writer& w = f.head().writer;
  Reader& r = f.head().reader;
  const bool over = w.past.load(std::memory_order_acquire) >= turn;  // looked at first: what came before it counts
  if (r.turn.load(std::memory_order_relaxed) != turn) {
    const int64_t theirs = w.turn.load(std::memory_order_acquire);
    if (theirs != turn) return theirs > turn || over ? kGone : kWaits;
    r.read.store(w.start.load(std::memory_order_relaxed), std::memory_order_release);
    r.turn.store(turn, std::memory_order_relaxed);
  }
  const int64_t read = r.read.load(std::memory_order_relaxed);
  const int64_t some = std::min(w.written.load(std::memory_order_acquire) - read, f.count - f.done);
  if (some == 0) return over ? kGone : kWaits;
  copy(f, read, some, false);
  f.done += some;
  r.read.store(read + some, std::memory_order_release);
  return kMoves;
}

// Lets the core rest: watches first, then lets others have it, then sleeps. Whoever has a core of his own does not
// give it away for as long as a peer is usually late: what else runs there would keep it for milliseconds.
void relax(int64_t idle, bool spin) {
  constexpr int64_t kSpins = 4096, kYields = 4096;
  if (idle > (spin ? 4 : 1) * kYields) return std::this_thread::sleep_for(std::chrono::microseconds(50));
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (!spin || idle % kSpins == kSpins - 1) std::this_thread::yield();
}

// Moves what can be moved: flows of one passage one after another. Gives -1 when all are done, -2 when
// `within_s` is over, or the index of a flow whose other end has abandoned the turn.
int64_t exchange(Address address, int64_t count, int64_t turn, bool spin, double within_s) {
  nb::gil_scoped_release release;
  Flow* const flows = at<Flow>(address);
  const auto end = Clock::now() + std::chrono::duration<double>(within_s);
  for (int64_t idle = 0;; idle++) {
    bool all = true, moved = false;
    for (int64_t i = 0; i < count; i++) {
      Flow& f = flows[i];
      if (f.done == f.count) continue;
      all = false;
      const bool queued = std::any_of(flows, flows + i, [&](const Flow& other) {
        return other.done < other.count && other.passage == f.passage && other.outgoing == f.outgoing;
      });
      if (queued) continue;
      const State state = f.outgoing ? give(f, turn) : take(f, turn);
      if (state == kGone) return i;
      moved |= state == kMoves;
    }
    if (all) return -1;
    if (moved) {
      idle = 0;
      continue;
    }
    if (within_s <= 0 || (idle % 256 == 255 && Clock::now() > end)) return -2;
    relax(idle, spin);
  }
}

// One end is done with a turn and all before it, or has abandoned it.
void pass_turn(Address passage, bool writer, int64_t turn) {
  Head& head = *at<Head>(passage);
  (writer ? head.writer.past : head.reader.past).store(turn, std::memory_order_release);
}

}  // namespace

void bind_exchange(nb::module_& m) {
  m.def("exchange", &exchange);
  m.def("pass_turn", &pass_turn);
}

}  // namespace plait
