// Binds the pointwise kernels. Addresses and sizes were checked by the callers in plait.kernels.pointwise.
#include "pointwise.h"

#include <string>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

constexpr int64_t kAlone = 1 << 14;  // elements below which one thread is faster

const PointwiseIsa& isa(const std::string& set) {
  static const std::vector<const PointwiseIsa*> known{
#if defined(PLAIT_X86)
      &kPointwiseAvx512Bf16, &kPointwiseAvx512, &kPointwiseAvx2,
#endif
      &kPointwiseBaseline};
  return pick(known, set);
}

template <class Body>
void over_tokens(int threads, int64_t tokens, int64_t width, const Body& body) {
  nb::gil_scoped_release release;
  crew().run(tokens * width < kAlone ? 1 : threads, tokens, body);
}

}  // namespace

void bind_pointwise(nb::module_& m) {
  m.def("rms_norm", [](const std::string& name, Address x, int64_t stride, Address residual, Address sum,
                            Address weight, float offset, float eps, Address out, int64_t tokens, int64_t width, bool bf16,
                            int threads) {
    const PointwiseIsa& kernels = isa(name);
    const NormArgs args{at<void>(x), stride, at<void>(residual), at<void>(sum), at<void>(weight), offset, eps,
                        at<void>(out), width, bf16};
    over_tokens(threads, tokens, width, [&](int64_t first, int64_t past) { kernels.norm(args, first, past); });
  });
  m.def("silu_mul", [](const std::string& name, Address gate, int64_t gate_stride, Address up, int64_t up_stride,
                            Address out, int64_t tokens, int64_t width, bool bf16, int threads) {
    const PointwiseIsa& kernels = isa(name);
    const GateArgs args{at<void>(gate), at<void>(up), gate_stride, up_stride, at<void>(out), width, bf16};
    over_tokens(threads, tokens, width, [&](int64_t first, int64_t past) { kernels.gate(args, first, past); });
  });
  m.def("rope_store", [](const std::string& name, Address q, Address k, Address v, int64_t q_stride,
                              int64_t k_stride, int64_t v_stride, Address cos, Address sin, Address slots, Address out,
                              Address kv, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t size,
                              int64_t rotated, int64_t lanes, bool bf16, int threads) {
    const PointwiseIsa& kernels = isa(name);
    const RopeArgs args{at<void>(q), at<void>(k),        at<void>(v),   q_stride, k_stride, v_stride,
                        at<void>(cos), at<void>(sin), at<int32_t>(slots), at<void>(out), at<void>(kv), heads,
                        kv_heads,    size,            rotated,       lanes,           bf16};
    over_tokens(threads, tokens, (heads + 2 * kv_heads) * size,
                [&](int64_t first, int64_t past) { kernels.rope(args, first, past); });
  });
}

}  // namespace plait
