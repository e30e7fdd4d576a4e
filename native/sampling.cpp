// Binds the draws. Addresses and sizes were checked by the callers in plait.kernels.sampling.
#include "sampling.h"

#include <string>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

const SamplingIsa& isa(const std::string& set) {
  static const std::vector<const SamplingIsa*> known{
#if defined(PLAIT_X86)
      &kSamplingAvx512, &kSamplingAvx2,
#endif
      &kSamplingBaseline};
  return pick(known, set);
}

}  // namespace

void bind_sampling(nb::module_& m) {
  m.def("draw", [](const std::string& name, Address logits, int64_t stride, int64_t vocab, Address at_rows, Address wishes,
                   Address tokens, int64_t rows, int threads) {
    const SamplingIsa& kernels = isa(name);
    const DrawArgs args{at<float>(logits), stride, vocab, at<int64_t>(at_rows), at<Wish>(wishes), at<int64_t>(tokens)};
    nb::gil_scoped_release release;
    crew().run(threads, rows, [&](int64_t first, int64_t past) { kernels.draw(args, first, past); });
  });
  m.def("score", [](const std::string& name, Address logits, int64_t stride, int64_t vocab, Address at_rows, int64_t top,
                    Address largest, Address totals, Address ids, int64_t rows, int threads) {
    const SamplingIsa& kernels = isa(name);
    const ScoreArgs args{at<float>(logits), stride,           vocab, at<int64_t>(at_rows), top, at<float>(largest),
                         at<int64_t>(totals), at<int64_t>(ids)};
    nb::gil_scoped_release release;
    crew().run(threads, rows, [&](int64_t first, int64_t past) { kernels.score(args, first, past); });
  });
}

}  // namespace plait
