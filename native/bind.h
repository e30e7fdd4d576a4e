// What the files with Python bindings share. Tensors come as addresses with their sizes: the callers in
// plait.kernels have checked types and strides, and keep the tensors alive.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace plait {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_linear(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_pointwise(nanobind::module_& m);
void bind_elementwise(nanobind::module_& m);
void bind_exchange(nanobind::module_& m);
void bind_shared_sum(nanobind::module_& m);
void bind_transfer(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_batching(nanobind::module_& m);
void bind_schedules(nanobind::module_& m);

}  // namespace plait
