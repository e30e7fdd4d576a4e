"""`Objective`: latencies and a rate that must hold, in the place of a budget of bytes.

The more bytes a compressed model keeps, the better it is and the slower: so what is looked for is the largest
budget with which the planner, who simulates the compressed model on the cluster, still finds a placement. It
is found by halving, since what meets the objectives does so with fewer bytes, too.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plait.planner.plans import Plans
from plait.recipe.keys import Keys, Told
from plait.spec.errors import UserError
from plait.spec.schemes import held_bits
from plait.spec.shape import ModelShape

FILE = "objective.json"
BY_RUN = ("model", "out")
"""Options of `plait plan` that the run gives."""
STEPS = 12
"""Budgets between the least and the greatest: four of them are planned for."""
MISSED = ("slo", "rate", "model")
"""What the planner names where no placement holds the objectives."""
SCALES = 0.25
"""Bits of scales a weight, for groups of 64."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A budget that was planned for."""

    bits: float
    """Of a weight in the mean, scales counted."""
    share: float
    """Bytes of all weights, of those in bf16."""
    plan: str | None
    """The placement; None: none holds the objectives."""
    why: str


@dataclass(frozen=True, slots=True)
class Reached:
    """The largest budget that holds the objectives."""

    share: float
    """Of the bytes of all weights in bf16."""
    why: str
    tried: tuple[Tried, ...]

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        partial = folder / f".{FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / FILE)


@dataclass(frozen=True, slots=True)
class Objective:
    """See the module."""

    told: Told
    """Options of `plait plan`."""
    plan: Callable[..., Any]

    @staticmethod
    def read(raw: object, file: Path, plan: Callable[..., Any]) -> "Objective":
        """Raises UserError for a key that is unknown (names the nearest), missing or wrong."""
        return Objective(Keys("compress.objective", plan, BY_RUN).read(raw, file), plan)

    def check(self, model: str) -> None:
        """Raises UserError for what can be told before work starts."""
        self._asked(model)

    def reach(self, model: str, shape: ModelShape, levels: Sequence[float]) -> Reached:
        """The largest budget of bytes that holds the objectives.

        Args:
            model: folder of the model that is compressed.
            shape: its sizes, not quantised.
            levels: bits that a weight may have, ascending.

        Raises:
            UserError: not even the fewest bits hold them; says why.
        """
        asked, tried = self._asked(model), list[Tried]()
        ladder = _ladder(levels)
        low, high = -1, len(ladder)
        with ProcessPoolExecutor(asked.jobs) as pool:
            while high - low > 1:
                middle = 0 if not tried else (low + high) // 2
                tried.append(_planned(asked, kept(shape, ladder[middle]), ladder[middle], pool.map))
                low, high = (middle, high) if tried[-1].plan is not None else (low, middle)
        if low < 0:
            raise UserError(
                f"no budget holds the objectives: weights of {ladder[0]:.2g} bits "
                f"do not either. {tried[-1].why}",
                "compress.objective",
            )
        best = next(each for each in tried if each.bits == ladder[low])
        return Reached(best.share, _reason(best, tried), tuple(tried))

    def _asked(self, model: str) -> Any:
        asked = self.plan(**(self.told.options | {"model": model, "out": Path()}))
        if asked.plans.measured is not None:
            raise UserError(
                "an objective is for a model that is not there yet, whose steps nobody can have measured: "
                "leave cost out, or set it to roofline",
                "compress.objective.cost",
            )
        return asked


def kept(shape: ModelShape, bits: float) -> ModelShape:
    """The same with linear layers of so many bits in the mean."""
    return replace(shape, layers=tuple(replace(each, bits=bits, dense=0.0) for each in shape.layers))


def _ladder(levels: Sequence[float]) -> list[float]:
    """Mean bits from the fewest that the engine keeps to the most, scales counted."""
    least, most = (held_bits(bits) + (SCALES if bits < 16 else 0.0) for bits in (levels[0], levels[-1]))
    return [least + (most - least) * step / STEPS for step in range(STEPS + 1)] if most > least else [least]


def _planned(asked: Any, shape: ModelShape, bits: float, mapped: Callable[..., Any]) -> Tried:
    """What the planner says of a model of this shape."""
    plans = Plans(shape, asked.plans.cluster, None, asked.plans.groups)
    share = shape.weight_bytes / (2 * shape.parameters)
    try:
        outcome = replace(asked, plans=plans).search(mapped).run()
    except UserError as refusal:
        if refusal.param not in MISSED:
            raise
        return Tried(bits, share, None, str(refusal))
    return Tried(bits, share, str(outcome.best.candidate), outcome.reason())


def _reason(best: Tried, tried: Sequence[Tried]) -> str:
    said = f"With {best.share:.0%} of the bytes, {best.bits:.3g} bits a weight: {best.why}"
    missed = [each for each in tried if each.plan is None]
    if not missed:
        return f"{said} No more bits are allowed."
    least = min(missed, key=lambda each: each.share)
    return f"{said} With {least.share:.0%}, {least.bits:.3g} bits: {least.why}"
