"""SmolLM2-135M is aligned: a reward model from pairs of answers, then PPO with a Critic against it.

The runs are those of recipes/reward-smollm2.yaml and recipes/ppo-smollm2.yaml. The mean reward of the last
fifth of the iterations has to be above that of the first fifth; how many held-out pairs the reward model
puts in order is reported. `--quick` takes some steps of each. Models lie in runs/align_smollm2: a run that
was stopped goes on from there, and a reward model of the same recipe is not trained again.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from align_runs import Curve, rise
from claim import Claim, arguments, at_least, finish, reported, together

from plait.runtime.align_setup import open_alignment
from plait.runtime.recipe import Recipe, read_recipe
from plait.runtime.reward_model import PairsRecipe, open_reward_training, read_pairs_recipe

ROOT = Path(__file__).parents[1]
RECIPES, RUNS = ROOT / "recipes", ROOT / "runs" / "align_smollm2"
QUICK_STEPS, QUICK_PAIRS, QUICK_ITERATIONS = 2, 8, 2


def place(recipe: PairsRecipe | Recipe) -> Path:
    """Where a run of this recipe lies."""
    return RUNS / hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]


def rewarder(recipe: PairsRecipe) -> tuple[Path, Mapping[str, float]]:
    """The reward model, and figures of the pairs that were held out."""
    out = place(recipe)
    if (out / "held_out.json").is_file():
        return out / "reward", json.loads((out / "held_out.json").read_text())

    async def go() -> Mapping[str, float]:
        async with open_reward_training(recipe, RECIPES, out) as training:
            return await training.run(told)

    return out / "reward", asyncio.run(go())


def aligned(recipe: Recipe) -> Curve:
    """PPO; the figures of all iterations."""
    out = place(recipe)

    async def go() -> None:
        async with open_alignment(
            recipe, RECIPES, out, resume=any((out / "checkpoints").glob("iteration-*"))
        ) as alignment:
            await alignment.run(told)

    asyncio.run(go())
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def told(step: int, figures: Mapping[str, float]) -> None:
    """A line for whoever waits."""
    names = ("loss", "accuracy", "score", "kl", "seconds/iteration")
    print(step, {name: round(figures[name], 4) for name in names if name in figures}, flush=True)


def spread(curve: Curve, name: str) -> Claim:
    """A figure of the last iteration, between its lowest and highest."""
    values = [row[name] for row in curve]
    return reported(f"{name}, last iteration", values[-1], (min(values), max(values)))


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    pairs = read_pairs_recipe(RECIPES / "reward-smollm2.yaml")
    recipe = replace(read_recipe(RECIPES / "ppo-smollm2.yaml"), seed=options.seed)
    if options.quick:
        pairs = replace(pairs, steps=QUICK_STEPS, test_pairs=QUICK_PAIRS)
        recipe = replace(recipe, iterations=QUICK_ITERATIONS)
    judge, found = rewarder(pairs)
    curve = aligned(replace(recipe, models=replace(recipe.models, reward=str(judge))))
    risen = rise(curve)
    parts = [
        reported("held-out pairs in order, share", found["accuracy"], (found["accuracy"],) * 2),
        reported("rise of the mean reward", risen, (risen, risen))
        if options.quick
        else at_least("rise of the mean reward over its start", risen, 1e-9),
        spread(curve, "score"),
        spread(curve, "kl"),
    ]
    finish("align_smollm2", together("SmolLM2-135M learns by PPO", parts), options)


if __name__ == "__main__":
    main()
