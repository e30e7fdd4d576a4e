"""Live tails for bench/interstage.py: a tiny policy on four instances, and models that read what it drew."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.rlhf.core import SERIAL, Tail
from plait.runtime.align import Alignment
from plait.runtime.align_setup import Pace, open_alignment
from plait.runtime.recipe import DataRecipe, ModelsRecipe, Recipe, RolloutRecipe, TrainRecipe
from plait.training.batch import Sample
from plait.training.kl_control import KlControlConfig
from plait.training.orders import Rows

INSTANCES, SAMPLES, LONGEST = 4, 64, 160


@dataclass(frozen=True)
class Drawn:
    """An iteration's samples, and what it took."""

    samples: list[Sample]
    found: dict[str, Rows]
    drawn_s: float
    scored_s: float
    moves: int

    def differs(self, other: "Drawn") -> int:
        """Samples whose tokens, log-probabilities or readings are not the same, to the bit."""
        return sum(
            a != b or any(rows[a.id] != other.found[name][a.id] for name, rows in self.found.items())
            for a, b in zip(self.samples, other.samples, strict=True)
        )


def recipe() -> Recipe:
    """PPO with a reward model, a Critic and a reference."""
    return Recipe(
        models=ModelsRecipe(actor="policy", reward="reward"),
        data=DataRecipe(path="prompts.jsonl"),
        rollout=RolloutRecipe(prompts=SAMPLES, max_tokens=LONGEST, instances=INSTANCES, ignore_eos=True),
        train=TrainRecipe(micro_batch=1),
        kl=KlControlConfig(coefficient=0.05),
    )


def live(
    root: Path, out: Path, rounds: Sequence[tuple[Sequence[int], Sequence[Tail]]], pace: Pace | None
) -> list[list[Drawn]]:
    """For each round's lengths, the same samples drawn with stages one after another and with each tail."""

    async def go() -> list[list[Drawn]]:
        async with open_alignment(recipe(), root, out, pace=pace) as alignment:
            await _draw(alignment, 0, [16] * SAMPLES, Tail(SAMPLES // 4, 1))  # everything once, unmeasured
            return [
                [await _draw(alignment, number, lengths, tail) for tail in (SERIAL, *tails)]
                for number, (lengths, tails) in enumerate(rounds)
            ]

    return asyncio.run(go())


async def _draw(alignment: Alignment, number: int, lengths: Sequence[int], tail: Tail) -> Drawn:
    rollouts = alignment.rollouts
    rollouts.limits, rollouts.tail = lengths, tail
    prompts = alignment.prompts.of(number, SAMPLES, 0)
    before, began_s = alignment.engine.stats().moves, time.monotonic()
    samples, found = await rollouts.draw(number, prompts)
    scored_s = time.monotonic() - began_s
    moves = alignment.engine.stats().moves - before
    return Drawn(samples, found, rollouts.drawn_s - began_s, scored_s, moves)
