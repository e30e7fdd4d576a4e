"""`plait profile MODEL`: step times of this machine, for `simulate --cost` and `serve --pace`."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plait.runtime.group_times import GroupGrid, scaling_base
from plait.runtime.setup import ServeConfig
from plait.runtime.step_times import Grid
from plait.runtime.step_times import profile as measure
from plait.spec.errors import UserError

USUAL = Grid()


def profile(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, or an alias of `plait pull`.")],
    out: Annotated[Path, typer.Option(help="Write the profile to this file.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the worker.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    prompts: Annotated[str, typer.Option(help="Lengths of prompts, in tokens.")] = ",".join(
        map(str, USUAL.prompts)
    ),
    batches: Annotated[str, typer.Option(help="Rows of decode steps.")] = ",".join(map(str, USUAL.batches)),
    contexts: Annotated[str, typer.Option(help="Tokens of context a row.")] = ",".join(
        map(str, USUAL.contexts)
    ),
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a cell.")] = USUAL.steps,
    repeats: Annotated[int, typer.Option(min=1, help="Prefills of a length.")] = USUAL.repeats,
    groups: Annotated[
        str | None,
        typer.Option(help="Measure groups of so many instances, such as 1,2,4, for serve --scaling."),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="With --groups: processes of each instance.")] = 1,
) -> None:
    """Measure how long steps of MODEL take here, fit a cost model, find how many tokens saturate a step."""
    console = Console(stderr=True, highlight=False)
    if groups is not None:
        wide = replace(
            GroupGrid(_numbers(groups), tp, _numbers(prompts), steps=steps, repeats=repeats),
            batches=_numbers(batches),
            contexts=_numbers(contexts),
        )
        config = ServeConfig(model=model, threads=threads, dtype=dtype)
        asyncio.run(scaling_base(config, wide, console.print)).save(out)
        console.print(f"wrote {out}")
        return
    if tp > 1:
        raise UserError("--tp is for --groups: a profile is of one process")
    grid = Grid(_numbers(prompts), _numbers(batches), _numbers(contexts), steps, repeats)
    found = asyncio.run(measure(ServeConfig(model=model, threads=threads, dtype=dtype), grid, console.print))
    found.save(out)
    console.print(
        f"saturates at {found.saturation_tokens} tokens; the fit is off by at most {found.worst:.0%}"
    )
    console.print(f"wrote {out}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(
            f"cannot read the list {text!r}: write numbers with commas, such as 8,64,512"
        ) from error
