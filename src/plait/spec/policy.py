"""`CompressionPolicy`: what is cut from each unit of a network, and what may be chosen for it.

A policy's JSON form, version 1:

    {"v": 1, "units": {"layer1.conv1": {"prune": 0.25, "weight_bits": 4, "act_bits": 4}}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from plait.spec.errors import UserError

VERSION = 1


class Knob(StrEnum):
    """What may be chosen for a unit. Each is a field of `Unit` and of `Choice`."""

    PRUNE = "prune"
    WEIGHT_BITS = "weight_bits"
    ACT_BITS = "act_bits"
    KV_BITS = "kv_bits"


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One knob of one unit."""

    unit: str
    knob: Knob


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a network whose compression is chosen by itself.

    Levels of a knob run from the most compressed to the least; with none, the knob is left alone.
    """

    name: str
    prune: tuple[float, ...] = ()
    """Fractions of the output channels that may be removed, descending."""
    weight_bits: tuple[float, ...] = ()
    """Ascending."""
    act_bits: tuple[float, ...] = ()
    """Bits of the unit's input activations, ascending."""
    kv_bits: tuple[float, ...] = ()
    """Bits of the keys and values that the unit keeps, ascending."""

    def __post_init__(self) -> None:
        for knob in Knob:
            levels = self.levels(knob)
            rising = tuple(-x for x in levels) if knob is Knob.PRUNE else levels
            if list(rising) != sorted(set(rising)):
                raise UserError(
                    f"{self.name}.{knob}: order the levels from most compressed to least", "units"
                )
        if any(not 0 <= ratio < 1 for ratio in self.prune):
            raise UserError(f"{self.name}.prune: choose ratios in [0, 1)", "units")

    def levels(self, knob: Knob) -> tuple[float, ...]:
        """What may be chosen for `knob`, most compressed first."""
        found: tuple[float, ...] = getattr(self, knob)
        return found

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its knobs that are not left alone."""
        return tuple(Slot(self.name, knob) for knob in Knob if self.levels(knob))


@dataclass(frozen=True, slots=True)
class Tie:
    """Slots that must be given equal values: both ends of a residual sum, fused q, k and v, and the like."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one unit. None: the knob is left alone."""

    prune: float | None = None
    """Fraction of the output channels removed."""
    weight_bits: float | None = None
    act_bits: float | None = None
    kv_bits: float | None = None

    def value(self, knob: Knob) -> float | None:
        """What was chosen for `knob`."""
        found: float | None = getattr(self, knob)
        return found


@dataclass(frozen=True, slots=True)
class CompressionPolicy:
    """A choice for each unit, in the network's order."""

    choices: tuple[tuple[str, Choice], ...]

    def choice(self, unit: str) -> Choice:
        """What was chosen for `unit`; units that the policy does not name are left alone."""
        return dict(self.choices).get(unit, Choice())

    def json(self) -> str:
        """One line of JSON, equal for equal policies."""
        units = {name: _chosen(choice) for name, choice in self.choices}
        return json.dumps({"v": VERSION, "units": units})

    @staticmethod
    def parse(text: str) -> "CompressionPolicy":
        """Read what `json` wrote.

        Raises:
            UserError: it is not a policy of version 1; the message says what is wrong.
        """
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"the policy is no JSON: {error}", "policy") from error
        if (
            not isinstance(found, dict)
            or found.get("v") != VERSION
            or not isinstance(found.get("units"), dict)
        ):
            raise UserError(f'a policy is {{"v": {VERSION}, "units": {{...}}}}: write it again', "policy")
        return CompressionPolicy(tuple((name, _choice(name, told)) for name, told in found["units"].items()))


def _chosen(choice: Choice) -> dict[str, float]:
    values = ((knob.value, choice.value(knob)) for knob in Knob)
    return {name: value for name, value in values if value is not None}


def _choice(name: str, told: Mapping[str, Any]) -> Choice:
    known = {knob.value for knob in Knob}
    wrong = [key for key, value in told.items() if key not in known or not isinstance(value, int | float)]
    if wrong:
        raise UserError(
            f"{name}: cannot read {', '.join(wrong)}; choose numbers for {', '.join(Knob)}", "policy"
        )
    return Choice(**told)
