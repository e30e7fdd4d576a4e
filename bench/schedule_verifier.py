"""Checks a timed pipeline schedule from its definition alone; shares no code with what made or timed it.

A model is (micro-batches, rank of each stage, seconds of F, of B and of W or None, bytes kept): one number
for each stage. A schedule is a list of (model, stage, kind, micro-batch, start) for each rank. `verify`
returns the makespan and the most bytes that a rank holds, or raises `Wrong` with the first thing that is not
right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Timed = tuple[int, int, str, int, float]
SLACK = 1e-9


class Wrong(Exception):
    """The schedule is none."""


@dataclass(frozen=True)
class Model:
    """One pipeline."""

    micro_batches: int
    ranks: Sequence[int]
    forward: Sequence[float]
    backward: Sequence[float]
    weight: Sequence[float] | None
    kept: Sequence[float]

    def lasts(self, stage: int, kind: str) -> float:
        """Seconds of an action."""
        return {"F": self.forward, "B": self.backward, "W": self.weight or ()}[kind][stage]


def verify(models: Sequence[Model], rows: Sequence[Sequence[Timed]], lag: float = 0.0) -> tuple[float, float]:
    """Makespan and peak bytes of a schedule whose messages between ranks take `lag` seconds."""
    start = {(m, s, kind, k): at for row in rows for m, s, kind, k, at in row}
    want = {
        (m, s, kind, k)
        for m, model in enumerate(models)
        for s in range(len(model.ranks))
        for kind in ("FB" if model.weight is None else "FBW")
        for k in range(model.micro_batches)
    }
    if set(start) != want or sum(map(len, rows)) != len(want):
        raise Wrong("actions are missing, foreign or there twice")
    for (m, s, kind, k), at in start.items():
        for before, extra in _before(models[m], m, s, kind, k, lag):
            if at + SLACK < start[before] + models[m].lasts(before[1], before[2]) + extra:
                raise Wrong(f"{(m, s, kind, k)} starts before {before} is there")
    return max(at + models[m].lasts(s, kind) for (m, s, kind, _), at in start.items()), max(
        _row(models, rank, row) for rank, row in enumerate(rows)
    )


def _before(model: Model, m: int, s: int, kind: str, k: int, lag: float):
    last = len(model.ranks) - 1
    if k > 0:
        yield (m, s, kind, k - 1), 0.0
    source = {"F": s - 1, "B": s + 1 if s < last else s, "W": s}[kind]
    if source >= 0:
        far = model.ranks[source] != model.ranks[s]
        yield (m, source, "F" if kind == "F" or (kind == "B" and s == last) else "B", k), lag * far


def _row(models: Sequence[Model], rank: int, row: Sequence[Timed]) -> float:
    """Peak bytes of a rank, whose actions must follow each other."""
    now = held = peak = 0.0
    for m, s, kind, k, at in row:
        model = models[m]
        if model.ranks[s] != rank:
            raise Wrong(f"{(m, s, kind, k)} is on rank {rank}")
        if at + SLACK < now:
            raise Wrong(f"{(m, s, kind, k)} starts while rank {rank} is busy")
        now = at + model.lasts(s, kind)
        held += model.kept[s] * (kind == "F")
        peak = max(peak, held)
        held -= model.kept[s] * (kind == ("B" if model.weight is None else "W"))
    return peak
