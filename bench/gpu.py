"""A GPU against its own limits: attention alone, whole models, and two instances that share it.

    python bench/gpu.py [--quick]

Every figure is a share of what the same GPU does in the same run: bytes that a copy moves, FLOPs of torch's
matrix product. Two instances share the GPU in one process, each on a stream of its own; KV moves between
their pools on a third. Without a GPU nothing is measured and nothing is written. --quick takes fewer
shapes and the smallest model.
"""

import re

import torch
from claim import arguments, finish, together

from plait.kernels.choice import choose
from plait.spec.errors import UserError


def main() -> None:
    """Measure everything and print the claim."""
    options = arguments(__doc__)
    try:
        choose("cuda")
    except UserError as error:
        print(f"No GPU was measured: {error}.")
        return
    import gpu_attention  # these need Triton
    import gpu_models

    torch.manual_seed(options.seed)
    suites = (
        gpu_attention.decode_parts,
        gpu_attention.prefill_parts,
        gpu_models.decode_parts,
        gpu_models.sharing_parts,
    )
    parts = [part for suite in suites for part in suite(options.quick)]
    name = torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    finish(f"gpu_{slug}", together(f"{name}: shares of its own bandwidth and matrix rate", parts), options)


if __name__ == "__main__":
    main()
