// Where module.cpp finds the bindings of attention and of the pointwise kernels.
#pragma once
#include <nanobind/nanobind.h>

namespace plait {
class Crew;
void bind_attention(nanobind::module_& m, Crew& crew);
void bind_pointwise(nanobind::module_& m, Crew& crew);
}  // namespace plait
