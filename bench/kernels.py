"""CPU kernels against the memory they read, measured in the same run, and against torch.

    python bench/kernels.py [--quick]

Reads of plain memory, our kernels and torch take turns in every round, over weights that rotate through
more than the caches hold; a ratio is the median of the rounds' own. --quick takes fewer shapes and rounds.
"""

import kernels_attention
import kernels_linear
from claim import arguments, finish, together

SUITES = (kernels_linear.parts, kernels_attention.parts)


def main() -> None:
    """Measure every suite and print the claim."""
    options = arguments(__doc__)
    parts = [part for suite in SUITES for part in suite(options.quick)]
    finish("kernels", together("Kernels: as fast as memory, several times torch", parts), options)


if __name__ == "__main__":
    main()
