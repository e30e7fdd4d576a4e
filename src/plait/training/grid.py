"""`Grid`: which process of a trainer holds what (data x pipeline x tensor parallel).

block 0:  place 0: columns 0, 1   place 1: columns 2, 3      a place holds a stage of every model,
block 1:  place 0: columns 4, 5   place 1: columns 6, 7      a column a share of each of its layers
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks follow each other; in a block places, at a place columns."""

    places: int
    """Of a block, which has every model once."""
    tp: int = 1
    """Columns that share each layer (tensor parallel)."""
    blocks: int = 1
    """That train on different samples (data parallel)."""

    @property
    def size(self) -> int:
        """Processes."""
        return self.blocks * self.places * self.tp

    def rank(self, block: int, place: int, column: int) -> int:
        """The number of a process."""
        return (block * self.places + place) * self.tp + column

    def seat(self, rank: int) -> tuple[int, int, int]:
        """Block, place and column of a process."""
        rest, column = divmod(rank, self.tp)
        block, place = divmod(rest, self.places)
        return block, place, column

    def ranks(self, blocks: Iterable[int], places: Iterable[int], columns: Iterable[int]) -> list[int]:
        """All processes with these blocks, places and columns, in order."""
        return sorted(self.rank(*seat) for seat in product(blocks, places, columns))

    @property
    def every(self) -> tuple[range, range, range]:
        """All blocks, places and columns."""
        return range(self.blocks), range(self.places), range(self.tp)
