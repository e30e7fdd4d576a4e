"""Makes the start of recipes/story.yaml: python bench/alignment/start_story.py FOLDER [STEPS]."""

import sys
from pathlib import Path

import torch
from adder import write, write_text

STEPS, SUMS, CONTEXT = 100, 1000, 512
"""Supervised steps; sums of each text; tokens of context."""

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / "train.txt", SUMS, seed=2)
    write_text(root / "test.txt", SUMS, seed=3)
    print(write(root, int(sys.argv[2]) if len(sys.argv) > 2 else STEPS, context=CONTEXT))
