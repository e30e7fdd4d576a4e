#include "linear.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

const std::vector<const PackedIsa*>& known() {
  static const std::vector<const PackedIsa*> all{
#if defined(PLAIT_X86)
      &kPackedAvx512Bf16, &kPackedAvx512, &kPackedAvx2,
#endif
      &kPackedBaseline};
  return all;
}

const PackedKernel& kernel(const std::string& set, const std::string& format, int64_t tokens) {
  const PackedIsa& isa = pick(known(), set);
  if (format == "bf16") return isa.bf16;
  if (format == "int8") return tokens > kFew && isa.int8_many.multiply ? isa.int8_many : isa.int8;
  if (format == "int4") return isa.int4;
  throw std::invalid_argument("no weights of format " + format);
}

// Memory of this thread for prepared activations; it grows to the largest need and stays.
char* room(int64_t bytes) {
  constexpr size_t line = 64;
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<char, Free> held;
  static thread_local size_t size = 0;
  if (size_t(bytes) > size) {
    size = (size_t(bytes) + line - 1) / line * line;
    held.reset(static_cast<char*>(std::aligned_alloc(line, size)));
    if (!held) throw std::bad_alloc();
  }
  return held.get();
}

void packed_linear(const std::string& set, const std::string& format, Address x, int64_t x_stride, Address words,
                   Address scales, bool scales_bf16, Address bias, Address out, bool wide, int64_t tokens,
                   int64_t inputs, int64_t outputs, int64_t group, int64_t gated, int threads) {
  constexpr int64_t alone = 16;  // rows that one thread prepares sooner than two
  if (!tokens) return;
  const PackedKernel& chosen = kernel(set, format, tokens);
  nb::gil_scoped_release release;
  PackedArgs args{at<uint16_t>(x), x_stride, at<uint32_t>(words), at<void>(scales), scales_bf16, at<float>(bias),
                  at<void>(out),   wide,     tokens,              inputs,           outputs,     group,
                  gated,           nullptr};
  args.prepared = room(tokens * chosen.row_bytes(args));
  crew().run(tokens <= alone ? 1 : threads, tile_count(args, chosen.tile),
             [&](int64_t first, int64_t past) { chosen.prepare(args, first, past); }, true);
  crew().run(threads, (outputs + kPanel - 1) / kPanel,
             [&](int64_t first, int64_t past) { chosen.multiply(args, first, past); }, true);
}

// Reads whole parts of memory on `threads` threads, as the kernels read weights: what they are measured
// against. The sum of what was read, so that nothing is left out.
float read(const std::string& set, Address from, int64_t bytes, int threads) {
  constexpr int64_t part = 1 << 16;
  const PackedIsa& isa = pick(known(), set);
  std::atomic<float> total{0};
  nb::gil_scoped_release release;
  crew().run(threads, bytes / part, [&](int64_t first, int64_t past) {
    total += isa.read(at<char>(from) + first * part, (past - first) * part);
  }, true);
  return total;
}

}  // namespace

void bind_linear(nb::module_& m) {
  m.def("packed_linear", &packed_linear);
  m.def("read", &read);
}

}  // namespace plait
