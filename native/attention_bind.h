// Where module.cpp finds the bindings of attention.
#pragma once
#include <nanobind/nanobind.h>

namespace plait {
class Crew;
void bind_attention(nanobind::module_& m, Crew& crew);
}  // namespace plait
