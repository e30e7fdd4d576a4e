"""`plait run RECIPE`: align, compress, plan and serve, from one file."""

import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from plait.spec.errors import UserError

if TYPE_CHECKING:
    from plait.recipe.run import Outlook


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML with stages; see recipes/story.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of all stages; else runs/RECIPE.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and say what each stage would do.")
    ] = False,
    until: Annotated[str | None, typer.Option(help="The last stage: align, compress, plan or serve.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write OUT/report.html in the end; needs the report extra.")
    ] = False,
    cost: Annotated[
        str | None,
        typer.Option(help="Step times for forecasts: a file of plait profile; else one CPU core's."),
    ] = None,
) -> None:
    """Align, compress, plan and serve; stages that are done are not done again."""
    from plait.cli.align import run_alignment
    from plait.cli.bench import loading
    from plait.cli.compress import compression
    from plait.cli.plan import planning
    from plait.cli.serve import serving
    from plait.recipe.forecast import Pace
    from plait.recipe.run import Run
    from plait.recipe.stage import Verbs
    from plait.recipe.story import read_story

    verbs = Verbs(run_alignment, compression, planning, serving, loading)
    told = Run(read_story(recipe, verbs).until(until), out or Path("runs") / recipe.stem)
    write = _page() if report else None  # whether it can be written is known before work starts
    outlook = told.outlook(Pace(cost))
    if dry_run:
        Console(highlight=False).print(_table(outlook))
        return
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    console = Console(stderr=True, highlight=False)
    with contextlib.redirect_stdout(sys.stderr):  # what verbs print; ours are the results
        results = list(told.go(console.print))
    if write is not None:
        results.append(write(told.out, recipe.stem))
    sys.stdout.write("".join(f"{result}\n" for result in results))


def _page() -> Callable[[Path, str], Path]:
    """What writes the report. Raises UserError where plotting is not installed."""
    try:
        from plait.recipe.page import write_page
    except ModuleNotFoundError as error:
        raise UserError("a report needs matplotlib: install plait[report]", "report") from error
    return write_page


def _table(outlook: "list[Outlook]") -> Table:
    """Times are at least those of arithmetic and memory traffic."""
    table = Table("stage", "", "what", "memory", "time, at least")
    for each in outlook:
        row = ["", "", ""]
        if each.forecast is not None:
            memory, seconds = each.forecast.memory_bytes, each.forecast.seconds
            row = [each.forecast.what, _size(memory), "" if seconds is None else _duration(seconds)]
        table.add_row(each.stage.name, each.standing.value, *row)
    return table


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "little"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
