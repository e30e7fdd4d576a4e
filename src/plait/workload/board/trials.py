"""`Trials`: what a compression search has measured, from the labels that it stores.

Labels hold no bytes, since these are the target's; so policies are placed by the bits that they keep: the
mean over units of bits times the share that is not pruned, where each unit counts the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from plait.spec.errors import UserError

POINTS = 2000
FULL_BITS = 16.0
"""Of units whose bits are left alone."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Measured policies, in the order in which they were measured."""

    kept_bits: tuple[float, ...]
    score: tuple[float, ...]
    """What the search maximises."""
    best: tuple[int, ...]
    """Numbers of those that no other beats in both, by bits."""
    chosen: int | None
    """Number of the one that was written in the end, or is the best so far."""
    labels: int
    """In all: of very many only the newest are shown."""
    seconds: float
    """That measuring took."""


def trials_of(lines: Iterable[bytes], chosen: bytes | None, name: str) -> Trials:
    """From the lines of a labels.jsonl and, if it is there, the policy of a best.json.

    Raises:
        UserError: a line is no label, or the policy is none; `name` is the folder's.
    """
    found: list[tuple[float, float, Any]] = []
    seconds, number = 0.0, 0
    for number, line in enumerate(lines, 1):
        try:
            label = msgspec.json.decode(line, type=dict[str, Any])
            units = label["policy"]["units"]
            found.append((kept_bits(units), float(label["metric"]["score"]), units))
            seconds += float(label["seconds"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}, labels.jsonl, line {number} is no label: {error!r}") from error
    shown = found[-POINTS:]
    policy = None if chosen is None else _units(chosen, name)
    return Trials(
        kept_bits=tuple(round(bits, 4) for bits, _, _ in shown),
        score=tuple(score for _, score, _ in shown),
        best=_unbeaten([(bits, score) for bits, score, _ in shown]),
        chosen=next((at for at, (_, _, units) in enumerate(shown) if units == policy), None),
        labels=number,
        seconds=seconds,
    )


def kept_bits(units: Mapping[str, Mapping[str, float]]) -> float:
    """See the module. A unit that is only pruned, such as a block of layers, counts with full bits."""
    weighty = [unit for unit in units.values() if "weight_bits" in unit or "prune" in unit]
    kept = [unit.get("weight_bits", FULL_BITS) * (1 - unit.get("prune", 0.0)) for unit in weighty]
    return sum(kept) / len(kept) if kept else FULL_BITS


def _units(text: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])["units"]
    except (msgspec.DecodeError, KeyError) as error:
        raise UserError(f"{name}, best.json is no policy: {error!r}") from error


def _unbeaten(points: list[tuple[float, float]]) -> tuple[int, ...]:
    """Fewest bits first, each with a higher score than all before."""
    best: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if not best or points[at][1] > points[best[-1]][1]:
            best.append(at)
    return tuple(best)
