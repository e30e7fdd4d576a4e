"""The tests of Triton kernels run under its interpreter, in a process of their own: see test_triton.py."""

import os

INTERPRETED = ("test_triton_attention.py", "test_triton_pointwise.py", "test_triton_model.py")
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else list(INTERPRETED)
