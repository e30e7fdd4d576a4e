"""Kernels for GPUs, in Triton: the ops of `plait.kernels.attention` and `plait.kernels.pointwise`.

Imported only where Triton is, and where the device is a GPU or Triton's interpreter is on.
"""
