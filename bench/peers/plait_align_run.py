"""Ours on a contest: python plait_align_run.py FOLDER SEED THREADS ppo|grpo; prints what TRL's print."""

import asyncio
import json
import sys
from pathlib import Path

from plait.runtime.align_setup import open_alignment
from plait.runtime.recipe import DataRecipe, ModelsRecipe, Recipe, RolloutRecipe, TrainRecipe
from plait.training.aggregate import AggregateConfig, Mean
from plait.training.experience import Estimator, ExperienceConfig
from plait.training.kl_control import KlControlConfig
from plait.training.objectives import PolicyConfig
from plait.training.orders import OptimiserConfig


def recipe(root: Path, seed: int, algorithm: str) -> Recipe:
    """The contest in our words: two generating processes of one thread, then two that train, each on half."""
    told = json.loads((root / "contest.json").read_text())
    ppo = algorithm == "ppo"
    adam = OptimiserConfig(lr=told["lr"], clip_norm=None if ppo else 1.0)
    rollout = RolloutRecipe(
        told["prompts"],
        told["samples"],
        told["tokens"],
        instances=2,
        ignore_eos=True,
        exact=False,
    )
    half = told["prompts"] * told["samples"] // 2
    mean = Mean.TOKENS if ppo else Mean.SEQUENCES
    return Recipe(
        ModelsRecipe(
            "policy", reward="reward" if ppo else None, reward_function=None if ppo else "reward.py:vowels"
        ),
        DataRecipe("prompts.jsonl"),
        iterations=told["updates"],
        seed=seed,
        rollout=rollout,
        train=TrainRecipe(ranks=1, blocks=2, micro_batch=half, actor=adam, critic=adam),
        experience=ExperienceConfig(estimator=Estimator.GAE if ppo else Estimator.GRPO),
        policy=PolicyConfig(aggregate=AggregateConfig(mean)),
        kl=KlControlConfig(coefficient=told["kl"] if ppo else 0.0),
    )


def main() -> None:
    root, seed, algorithm = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
    out = root / f"plait-{algorithm}-{seed}"

    async def go() -> None:
        async with open_alignment(recipe(root, seed, algorithm), root, out) as alignment:
            await alignment.run()

    asyncio.run(go())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [sum(v for k, v in row.items() if k.startswith("seconds/")) for row in rows[1:]]
    print(json.dumps({"seconds": seconds, "scores": [row["score"] for row in rows]}))


if __name__ == "__main__":
    main()
