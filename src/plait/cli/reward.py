"""`plait reward RECIPE`: a reward model from chosen and rejected answers."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def reward(
    recipe: Annotated[Path, typer.Argument(help="YAML; see recipes/.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; else runs/RECIPE.")] = None,
) -> None:
    """Train a reward model from pairs of answers."""
    from plait.runtime.reward_model import open_reward_training, read_pairs_recipe

    read = read_pairs_recipe(recipe)
    folder = out or Path("runs") / recipe.stem

    async def run() -> Mapping[str, float]:
        async with open_reward_training(read, recipe.parent, folder) as training:
            return await training.run(_say)

    found = asyncio.run(run())
    if found:
        sys.stderr.write(f"held out: {found['accuracy']:.1%} of {found['pairs']:.0f} pairs are right\n")
    sys.stdout.write(f"{folder / 'reward'}\n")


def _say(step: int, figures: Mapping[str, float]) -> None:
    told = "  ".join(f"{key} {value:.4g}" for key, value in sorted(figures.items()))
    sys.stderr.write(f"{step:5d}  {told}\n")
