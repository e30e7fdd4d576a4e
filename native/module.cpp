#include <algorithm>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "kernels.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

// The kernels of that instruction set, or of the best one below it that they are written for.
const Isa& isa(const std::string& set) {
  static const std::vector<const Isa*> known{
#if defined(PLAIT_X86)
      &kAvx512, &kAvx2,
#endif
      &kBaseline};
  return pick(known, set);
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

// Puts rows of 32-bit words [outputs, inputs] into panels from row `offset` on.
void pack(Address weight, Address packed, int64_t offset, int64_t outputs, int64_t inputs) {
  const uint32_t* from = at<uint32_t>(weight);
  uint32_t* to = at<uint32_t>(packed);
  constexpr int64_t step = 16;  // a cache line of words at a time
  nb::gil_scoped_release release;
  for (int64_t n0 = 0; n0 < outputs;) {
    const int64_t row = offset + n0, column = row % kPanel;
    const int64_t width = std::min(kPanel - column, outputs - n0);
    uint32_t* panel = to + (row - column) * inputs + column;
    for (int64_t i0 = 0; i0 < inputs; i0 += step)
      for (int64_t i = i0; i < std::min(i0 + step, inputs); i++)
        for (int64_t n = 0; n < width; n++) panel[i * kPanel + n] = from[(n0 + n) * inputs + i];
    n0 += width;
  }
}

}  // namespace
}  // namespace plait

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // who leaves with os._exit or with frozen objects leaks on purpose
  m.doc() = "Plait's native kernels and searches.";
  m.attr("panel") = plait::kPanel;
  m.def("isas", &plait::usable_sets, "Instruction sets that this CPU runs, best first.");
  m.def("linear", &plait::linear);
  m.def("pack", &plait::pack);
  plait::bind_linear(m);
  plait::bind_attention(m);
  plait::bind_pointwise(m);
  plait::bind_elementwise(m);
  plait::bind_exchange(m);
  plait::bind_transfer(m);
  plait::bind_sampling(m);
  plait::bind_shared_sum(m);
  plait::bind_batching(m);
  plait::bind_schedules(m);
}
