// Python bindings. Tensors come as addresses with their sizes: the callers in plait.kernels.native have
// checked types and strides, and keep the tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_bind.h"
#include "kernels.h"
#include "parallel.h"

namespace nb = nanobind;
using Address = uintptr_t;

namespace plait {
namespace {

std::vector<const Isa*> usable() {
  std::vector<const Isa*> all;
#if defined(PLAIT_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
    all.push_back(&kAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&kAvx2);
#endif
  all.push_back(&kBaseline);
  return all;
}

// The best instruction set of this CPU, or the one of that name.
const Isa& isa(const std::string& name = "") {
  static const auto all = usable();
  if (name.empty()) return *all[0];
  for (const Isa* each : all)
    if (name == each->name) return *each;
  throw std::invalid_argument("this CPU does not run " + name);
}

Crew& crew() {
  static Crew the_crew;
  return the_crew;
}

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void linear(const std::string& name, Address x, int64_t x_stride, Address packed, Address bias, Address out,
            int64_t tokens, int64_t inputs, int64_t outputs, int threads) {
  const Isa& kernels = isa(name);
  const LinearArgs args{at<float>(x),   x_stride, at<float>(packed), at<float>(bias), at<float>(out),
                        tokens, inputs,   outputs};
  nb::gil_scoped_release release;
  crew().run(threads, (outputs + kPanel - 1) / kPanel,
             [&](int64_t first, int64_t past) { kernels.linear(args, first, past); });
}

// Puts a weight [outputs, inputs] into panels from row `offset` on.
void pack(Address weight, Address packed, int64_t offset, int64_t outputs, int64_t inputs) {
  const float* from = at<float>(weight);
  float* to = at<float>(packed);
  constexpr int64_t step = 16;  // a cache line of inputs at a time
  nb::gil_scoped_release release;
  for (int64_t n0 = 0; n0 < outputs;) {
    const int64_t row = offset + n0, column = row % kPanel;
    const int64_t width = std::min(kPanel - column, outputs - n0);
    float* panel = to + (row - column) * inputs + column;
    for (int64_t i0 = 0; i0 < inputs; i0 += step)
      for (int64_t i = i0; i < std::min(i0 + step, inputs); i++)
        for (int64_t n = 0; n < width; n++) panel[i * kPanel + n] = from[(n0 + n) * inputs + i];
    n0 += width;
  }
}

}  // namespace
}  // namespace plait

NB_MODULE(_native, m) {
  m.doc() = "Plait's native kernels and searches.";
  m.attr("panel") = plait::kPanel;
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const auto* each : plait::usable()) names.emplace_back(each->name);
    return names;
  }, "Instruction sets that this CPU runs, best first.");
  m.def("linear", &plait::linear);
  m.def("pack", &plait::pack);
  plait::bind_attention(m, plait::crew());
  plait::bind_pointwise(m, plait::crew());
}
