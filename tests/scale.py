"""How much of a large counted suite to run: all of it with PLAIT_TEST_ALL=1, else a twentieth."""

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def scaled(full: int) -> int:
    """`full` when everything is to be run, else 5 % of it."""
    return full if os.environ.get("PLAIT_TEST_ALL") == "1" else max(1, full // 20)


def seed() -> int:
    """PLAIT_TEST_SEED, or one that changes with each commit when everything is to be run, else 0, so that a
    change fails for what it did and not for its number; printed so that a failure can be repeated."""
    given = os.environ.get("PLAIT_TEST_SEED")
    if given is None and scaled(2) == 1:
        given = "0"
    if given is None:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        given = str(int(commit[:8] or "0", 16))
    print(f"PLAIT_TEST_SEED={given}")
    return int(given)


def some(cases: Sequence[T], count: int) -> list[T]:
    """All cases when everything is to be run, else `count` of them, always the same."""
    if scaled(2) == 2:
        return list(cases)
    chosen = random.Random(seed()).sample(range(len(cases)), count)
    return [cases[i] for i in sorted(chosen)]
