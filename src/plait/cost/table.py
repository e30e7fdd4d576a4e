"""`Table`: measured points, interpolated so that more load never costs less."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from plait.cost.cost import Load
from plait.spec.errors import UserError
from plait.spec.step import Step

Points = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A surface over two axes that rises along both.

    Inside: bilinear. Outside: the steepest slope at that edge, so an extrapolation errs to the slow side.
    Points that fall below a point of smaller load (noise) are raised to it.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    values: NDArray[np.float64]
    """[len(x), len(y)]"""

    @staticmethod
    def of(points: Points, what: str) -> "Grid":
        """Raises UserError unless the points are the full product of two axes with two entries each."""
        xs, ys = sorted({x for x, _ in points}), sorted({y for _, y in points})
        missing = [(x, y) for x in xs for y in ys if (x, y) not in points]
        if len(xs) < 2 or len(ys) < 2 or missing:
            lack = f"no point at {missing[0]}" if missing else "fewer than two values on an axis"
            raise UserError(f"the {what} table is no grid ({lack}): measure every pair of both axes")
        if min(points.values()) <= 0:
            raise UserError(f"the {what} table has a time that is not positive")
        raw = np.array([[points[x, y] for y in ys] for x in xs], float)
        rising = np.maximum.accumulate(np.maximum.accumulate(raw, axis=0), axis=1)
        return Grid(np.array(xs, float), np.array(ys, float), rising)

    def at(self, x: float, y: float) -> float:
        """The surface at (x, y)."""
        inside_x, inside_y = np.clip(x, self.x[0], self.x[-1]), np.clip(y, self.y[0], self.y[-1])
        i = min(int(np.searchsorted(self.x, inside_x, "right")) - 1, len(self.x) - 2)
        j = min(int(np.searchsorted(self.y, inside_y, "right")) - 1, len(self.y) - 2)
        u = (inside_x - self.x[i]) / (self.x[i + 1] - self.x[i])
        v = (inside_y - self.y[j]) / (self.y[j + 1] - self.y[j])
        low = (1 - u) * self.values[i, j] + u * self.values[i + 1, j]
        high = (1 - u) * self.values[i, j + 1] + u * self.values[i + 1, j + 1]
        value = (1 - v) * low + v * high
        value += self._beyond(self.x, self.values, x) + self._beyond(self.y, self.values.T, y)
        return max(float(value), 0.0)

    @staticmethod
    def _beyond(axis: NDArray[np.float64], values: NDArray[np.float64], at: float) -> float:
        if axis[0] <= at <= axis[-1]:
            return 0.0
        edge, inner, rim = (0, 1, axis[0]) if at < axis[0] else (-1, -2, axis[-1])
        slope = np.abs(values[edge] - values[inner]).max() / abs(axis[edge] - axis[inner])
        return float(slope * (at - rim))


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Prefill by (new tokens, cached tokens) of one chunk; decode by (rows, context tokens a row).

    The part that does not depend on the load (the surface at the origin) is paid once a step, by whichever
    phase has the larger one; chunks beyond the first and decodes add what is above it. Instances of a group
    share the load evenly. Measure up to the largest chunk that is to be costed: attention grows faster than a
    straight line.
    """

    prefill: Grid
    decode: Grid

    @staticmethod
    def of(prefill: Points, decode: Points) -> "Table":
        """From nanoseconds by (new, cached) and by (rows, context a row).

        Raises:
            UserError: a phase's points are no full grid, or a time is not positive.
        """
        return Table(Grid.of(prefill, "prefill"), Grid.of(decode, "decode"))

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        load = Load.of(step)
        fixed = above = 0.0
        if load.chunk_tokens:
            fixed = self.prefill.at(0, 0)
            chunks = (row for row in step.rows if row.given)
            above += sum(self.prefill.at(row.count, row.first) - fixed for row in chunks)
        if load.decodes:
            idle = self.decode.at(0, 0)
            above += self.decode.at(load.decodes, load.context_tokens / load.decodes) - idle
            fixed = max(fixed, idle)
        return max(1, round(fixed + above / load.members))

    @staticmethod
    def load(path: Path) -> "Table":
        """Read points from CSV (header `phase,x,y,ns`) or a JSON list of such objects.

        `phase` is prefill (x new tokens, y cached tokens) or decode (x rows, y context tokens a row).

        Raises:
            UserError: the file is missing or malformed (with the row), or the points are no grid.
        """
        try:
            text = path.read_text()
            is_json = path.suffix == ".json"
            rows = msgspec.json.decode(text) if is_json else list(csv.DictReader(text.splitlines()))
        except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{path} holds no cost table: {error}") from error
        return Table._from_rows(path, rows)

    @staticmethod
    def _from_rows(path: Path, rows: Iterable[Mapping[str, str | float]]) -> "Table":
        points: dict[str, dict[tuple[int, int], float]] = {"prefill": {}, "decode": {}}
        if not isinstance(rows, list):
            raise UserError(f"{path} is no list of points: each has phase (prefill or decode), x, y and ns")
        for number, row in enumerate(rows, start=1):
            try:
                points[str(row["phase"])][int(row["x"]), int(row["y"])] = float(row["ns"])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}, point {number}: expected phase (prefill or decode), x, y and ns ({error!r})"
                ) from error
        try:
            return Table.of(points["prefill"], points["decode"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
