// Prepares elementwise work and binds it. The callers in plait.kernels.elementwise have checked types
// and keep the tensors alive.
#include "elementwise.h"

#include <cstring>

#include <functional>
#include <utility>
#include <vector>

#include "bind.h"
#include "cpu.h"
#include "parallel.h"

namespace nb = nanobind;

namespace plait {
namespace {

constexpr int64_t kAlone = 1 << 15;  // elements below which one thread is faster

const ElementwiseIsa& isa(const std::string& set) {
  static const std::vector<const ElementwiseIsa*> known{
#if defined(PLAIT_X86)
      &kElementwiseAvx512, &kElementwiseAvx2,
#endif
      &kElementwiseBaseline};
  return pick(known, set);
}

int64_t width(Type type) { return type == Type::kFloat32 ? 4 : 2; }

// A tensor: where it starts, its type, and the distance of neighbours in each dimension, in elements.
struct Operand {
  Address data = 0;
  Type type = Type::kFloat32;
  std::vector<int64_t> strides;

  int64_t offset(const std::vector<int64_t>& at) const {
    int64_t elements = 0;
    for (size_t d = 0; d < at.size(); d++) elements += at[d] * strides[d];
    return elements * width(type);
  }
  int64_t inner() const { return strides.empty() ? 0 : strides.back(); }
};

// Something that is done the same way in every step.
struct Work {
  std::function<void()> body;
  void run() const {
    nb::gil_scoped_release release;
    body();
  }
};

// Calls body(line, position of the line in the outer dimensions) for every line of the last dimension.
template <class F>
void lines(const std::vector<int64_t>& sizes, int64_t first, int64_t past, F body) {
  const size_t outer = sizes.empty() ? 0 : sizes.size() - 1;
  std::vector<int64_t> at(outer);
  int64_t rest = first;
  for (size_t d = outer; d-- > 0;) {
    at[d] = rest % sizes[d];
    rest /= sizes[d];
  }
  for (int64_t line = first; line < past; line++) {
    body(at);
    for (size_t d = outer; d-- > 0;) {
      if (++at[d] < sizes[d]) break;
      at[d] = 0;
    }
  }
}

Work map_work(const std::string& name, Map kind, std::vector<int64_t> sizes, Operand a, Operand b, Operand out, int threads) {
  const ElementwiseIsa& set = isa(name);
  const int64_t inner = sizes.empty() ? 1 : sizes.back();
  int64_t outer = 1;
  for (size_t d = 0; d + 1 < sizes.size(); d++) outer *= sizes[d];
  auto part = [&set, kind, sizes, a, b, out, inner](int64_t first, int64_t past) {
    lines(sizes, first, past, [&](const std::vector<int64_t>& at) {
      const Line x{reinterpret_cast<const void*>(a.data + a.offset(at)), a.type, a.inner()};
      const Line y{b.data ? reinterpret_cast<const void*>(b.data + b.offset(at)) : nullptr, b.type, b.inner()};
      set.map(kind, x, y, reinterpret_cast<void*>(out.data + out.offset(at)), out.type, out.inner(), inner);
    });
  };
  if (threads <= 1 || outer * inner < kAlone) return {[part, outer] { part(0, outer); }};
  return {[part, outer, threads] { crew().run(threads, outer, part); }};
}

}  // namespace

void bind_elementwise(nb::module_& m) {
  nb::class_<Work>(m, "Work").def("__call__", &Work::run);
  m.def(
      "map_work",
      [](const std::string& name, int kind, std::vector<int64_t> sizes, Address a, int a_type, std::vector<int64_t> a_strides, Address b,
              int b_type, std::vector<int64_t> b_strides, Address out, int out_type, std::vector<int64_t> out_strides,
              int threads) {
        return map_work(name, Map(kind), std::move(sizes), {a, Type(a_type), std::move(a_strides)},
                        {b, Type(b_type), std::move(b_strides)}, {out, Type(out_type), std::move(out_strides)}, threads);
      },
      "out = map(a, b), element by element; b = 0: of one argument.");
  m.def(
      "mean_work",
      [](const std::string& name, int64_t rows, int64_t n, Address a, int type, int64_t stride, Address out) {
        return Work{[&set = isa(name), rows, n, a, type, stride, out] {
          for (int64_t r = 0; r < rows; r++) {
            const Line line{reinterpret_cast<const void*>(a + r * stride * width(Type(type))), Type(type), 1};
            const float mean = set.sum(line, n) / float(n);
            const Line value{&mean, Type::kFloat32, 0};
            set.map(Map::kCopy, value, value, reinterpret_cast<void*>(out + r * width(Type(type))), Type(type), 1, 1);
          }
        }};
      },
      "out[r] = mean of row r, in its own type.");
  m.def(
      "layer_norm_work",
      [](const std::string& name, int64_t rows, int64_t n, Address a, int type, Address weight, Address bias, float eps,
         Address out) {
        return Work{[&set = isa(name), rows, n, a, type, weight, bias, eps, out] {
          const Type t = Type(type);
          for (int64_t r = 0; r < rows; r++)
            set.layer_norm({reinterpret_cast<const void*>(a + r * n * width(t)), t, 1},
                           {reinterpret_cast<const void*>(weight), t, 1}, {reinterpret_cast<const void*>(bias), t, 1}, eps,
                           reinterpret_cast<void*>(out + r * n * width(t)), n);
        }};
      },
      "LayerNorm of each of `rows` dense rows.");
  m.def(
      "gather_work",
      [](int64_t rows, int64_t row_bytes, Address table, int64_t table_rows, Address indices, Address out) {
        return Work{[=] {
          const auto* at = reinterpret_cast<const int64_t*>(indices);
          for (int64_t r = 0; r < rows; r++) {
            const int64_t row = at[r] < 0 ? 0 : (at[r] < table_rows ? at[r] : table_rows - 1);
            std::memcpy(reinterpret_cast<void*>(out + r * row_bytes),
                        reinterpret_cast<const void*>(table + row * row_bytes), size_t(row_bytes));
          }
        }};
      },
      "out[r] = table[indices[r]], rows of bytes.");
}

}  // namespace plait
