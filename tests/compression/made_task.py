"""A task whose measurements take no time: a made performance. It can be told to fail or to die."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from plait.compression.evaluator import Fidelity
from plait.compression.space import Space
from plait.spec.policy import CompressionPolicy, Unit

UNITS = [
    Unit(f"u{n}", prune=(0.75, 0.5, 0.25, 0.0), weight_bits=(2.0, 4.0, 8.0), act_bits=(2.0, 4.0, 8.0))
    for n in range(4)
]
SPACE = Space(UNITS)


@dataclass(frozen=True)
class MadeTask:
    """Measures a formula."""

    counted: Path
    """Each measurement appends a line here."""
    dies_after: int = 10**9
    """The process ends, without a word, at so many measurements."""
    broken: float = -1.0
    """Ratio of the first unit at which there is no number."""

    @property
    def protocol(self) -> str:
        return "made"

    def open(self) -> "MadeTask":
        return self

    def measure(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> dict[str, float]:
        with self.counted.open("a") as file:
            file.write(json.dumps([policy.json(), fidelity, seed]) + "\n")
        if len(self.counted.read_text().splitlines()) >= self.dies_after:
            os._exit(9)
        if policy.choice("u0").prune == self.broken:
            return {"score": float("nan")}
        loss = 0.0
        for number, (_, choice) in enumerate(policy.choices):
            noise = 4.0**-choice.weight_bits + 4.0**-choice.act_bits
            loss += (1 + number) * (20 * noise + 3 * choice.prune)
        return {"score": 90 - loss}
