"""Alignments that learn: GRPO on sums of two digits, five seeds, and fused against serial curves of PPO.

A tiny model that has seen some sums goes on with GRPO and a reward that is 1 for the right answer. With five
seeds its mean reward must rise every time: if it were as likely to fall, that would happen once in 32 times
(one-sided sign test, p = 0.031). Then PPO with a Critic runs 20 iterations twice: with stages one after
another and one pipeline at a time, and with generation, scoring and both pipelines fused; every figure and
every weight must be the same, to the bit.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from alignment import adder
from claim import Claim, arguments, at_least, at_most, finish, reported, together

from plait.rlhf.core import InterStageConfig
from plait.runtime.align_setup import open_alignment
from plait.runtime.recipe import DataRecipe, Fusion, ModelsRecipe, Recipe, RolloutRecipe, TrainRecipe
from plait.training.experience import Estimator, ExperienceConfig
from plait.training.kl_control import KlControlConfig
from plait.training.orders import OptimiserConfig

START_STEPS, SEEDS, ITERATIONS, SAME = 300, 5, 50, 20
QUICK_START, QUICK_SEEDS, QUICK_ITERATIONS, QUICK_SAME = 60, 1, 4, 3
Curve = list[Mapping[str, float]]


def learning(seed: int, iterations: int) -> Recipe:
    """GRPO on sums."""
    return Recipe(
        models=ModelsRecipe(actor="adder", reward_function="exact"),
        data=DataRecipe(path="addition.jsonl"),
        iterations=iterations,
        seed=seed,
        rollout=RolloutRecipe(prompts=32, samples=8, max_tokens=4),
        train=TrainRecipe(micro_batch=64, mini_batches=2, actor=OptimiserConfig(lr=1e-4)),
        experience=ExperienceConfig(estimator=Estimator.GRPO),
    )


def comparing(iterations: int, *, fused: bool) -> Recipe:
    """PPO with a Critic, fused in every way or in none."""
    train = TrainRecipe(
        micro_batch=4,
        mini_batches=2,
        actor=OptimiserConfig(lr=1e-4),
        critic=OptimiserConfig(lr=1e-3),
        fusion=Fusion.SEARCH if fused else Fusion.OFF,
        split_backward=fused,
    )
    tail = InterStageConfig(tail_share=0.5, kept=1) if fused else InterStageConfig()
    rollout = RolloutRecipe(prompts=16, samples=1, max_tokens=8, instances=2, tail=tail)
    return replace(
        learning(0, iterations),
        rollout=rollout,
        train=train,
        experience=ExperienceConfig(),
        kl=KlControlConfig(coefficient=0.05),
    )


def run(recipe: Recipe, start: Path, out: Path) -> Curve:
    """The figures of all iterations."""

    async def go() -> None:
        async with open_alignment(recipe, start, out) as alignment:
            await alignment.run()

    asyncio.run(go())
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def rise(curve: Curve) -> float:
    """Mean score of the last fifth less that of the first."""
    fifth = max(1, len(curve) // 5)
    scores = [row["score"] for row in curve]
    return sum(scores[-fifth:]) / fifth - sum(scores[:fifth]) / fifth


def differences(one: Curve, other: Curve) -> int:
    """Figures that are not the same, times left out."""
    pairs = zip(one, other, strict=True)
    return sum(a[key] != b.get(key) for a, b in pairs for key in a if not key.startswith("seconds/"))


def weights(out: Path) -> list[bytes]:
    """Of the aligned model."""
    return [path.read_bytes() for path in sorted((out / "actor").glob("*.safetensors"))]


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    quick = options.quick
    seeds, iterations = (QUICK_SEEDS, QUICK_ITERATIONS) if quick else (SEEDS, ITERATIONS)
    same = QUICK_SAME if quick else SAME
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.set_num_threads(1)  # two that wait for each other's cores are slower where others compute
        adder.write(root, QUICK_START if quick else START_STEPS)
        curves = [run(learning(seed, iterations), root, root / f"seed-{seed}") for seed in range(seeds)]
        serial = run(comparing(same, fused=False), root, root / "serial")
        fused = run(comparing(same, fused=True), root, root / "fused")
        apart = sum(a != b for a, b in zip(weights(root / "serial"), weights(root / "fused"), strict=True))
    rises = sorted(rise(curve) for curve in curves)
    parts: list[Claim] = [
        at_most(f"figures of {same} iterations that differ, fused and serial", differences(serial, fused), 0),
        at_most("files of weights that differ then", apart, 0),
    ]
    if quick:
        parts.append(reported("rise of the mean reward", rises[0], (rises[0], rises[-1])))
    else:
        parts.append(at_least("seeds whose mean reward rises", sum(each > 0 for each in rises), seeds))
        parts.append(reported("rise of the mean reward", rises[seeds // 2], (rises[0], rises[-1])))
    finish("align_runs", together("alignments learn, and fusion changes nothing", parts), options)


if __name__ == "__main__":
    main()
