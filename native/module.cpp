#include <nanobind/nanobind.h>

NB_MODULE(_native, m) { m.doc() = "Plait's native kernels and searches."; }
