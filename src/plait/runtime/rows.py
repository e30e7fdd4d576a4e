"""Cutting a sequence into rows of equal length."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """So many at a time, the last row with what is left (as itertools has it from Python 3.12 on)."""
    for at in range(0, len(items), size):
        yield tuple(items[at : at + size])
