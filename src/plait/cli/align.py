"""`plait align RECIPE`: PPO, GRPO and their relatives."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plait.runtime.recipe import Recipe


def align(
    recipe: Annotated[Path, typer.Argument(help="YAML; see recipes/.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; else runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in it.")] = False,
) -> None:
    """Align a language model with a reward."""
    from plait.runtime.recipe import read_recipe

    folder = out or Path("runs") / recipe.stem
    run_alignment(read_recipe(recipe), recipe.parent, folder, resume)
    sys.stdout.write(f"{folder / 'actor'}\n")


def run_alignment(recipe: "Recipe", here: Path, out: Path, resume: bool) -> None:
    """Align, with a line for each iteration. `here`: folder that the recipe's paths start from."""
    from plait.runtime.align_setup import open_alignment

    async def run() -> None:
        async with open_alignment(recipe, here, out, resume=resume) as alignment:
            await alignment.run(_say)

    asyncio.run(run())


def _say(iteration: int, figures: Mapping[str, float]) -> None:
    shown = ("score", "kl", "actor/loss", "critic/loss", "tokens_p50")
    seconds = sum(value for key, value in figures.items() if key.startswith("seconds/"))
    told = "  ".join(f"{key} {figures[key]:.4g}" for key in shown if key in figures)
    sys.stderr.write(f"{iteration:5d}  {told}  {seconds:.1f} s\n")
