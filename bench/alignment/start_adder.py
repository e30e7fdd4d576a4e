"""Makes the start of recipes/grpo-addition.yaml: python bench/alignment/start_adder.py FOLDER [STEPS]."""

import sys
from pathlib import Path

import torch
from adder import write

STEPS = 250
"""Supervised; about a third of the sums are right then."""

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    print(write(root, int(sys.argv[2]) if len(sys.argv) > 2 else STEPS))
