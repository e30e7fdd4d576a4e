"""Kernels: native C++ for CPU, and torch references that are their oracles and fallbacks."""
