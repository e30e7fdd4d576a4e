"""`plait VERB`: each verb is one file of this package. Data goes to stdout, logs to stderr."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from plait import __version__
from plait.cli.align import align
from plait.cli.bench import bench
from plait.cli.chat import chat
from plait.cli.compress import compress, sweep
from plait.cli.dash import dash
from plait.cli.doctor import doctor
from plait.cli.plan import plan
from plait.cli.profile import profile
from plait.cli.pull import pull
from plait.cli.quantize import quantize
from plait.cli.replay import replay
from plait.cli.reward import reward
from plait.cli.rlhf import plan_rlhf, simulate_rlhf
from plait.cli.run import run
from plait.cli.serve import serve
from plait.cli.simulate import simulate
from plait.cli.top import top
from plait.cli.verbs import Compressing, Verbs
from plait.spec.errors import PlaitError, UserError

app = typer.Typer(
    name="plait", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"plait {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Align, compress and serve large language models on one elastic runtime."""


app.command()(serve)
app.command()(run)
app.command()(align)
app.command()(reward)
app.command()(pull)
app.command()(quantize)
compressing = typer.Typer(
    cls=Compressing, help="Fit a model to budgets; without a subject, one model to all."
)
compressing.command("model")(compress)
compressing.command("sweep")(sweep)
app.add_typer(compressing, name="compress")
app.command()(chat)
app.command()(profile)
for verb, serving, aligning, about in (
    ("plan", plan, plan_rlhf, "Find what goes where; without a subject, for serving."),
    ("simulate", simulate, simulate_rlhf, "Predict without the devices; without a subject, serving."),
):
    group = typer.Typer(cls=Verbs, help=about)
    group.command("serving")(serving)
    group.command("rlhf")(aligning)
    app.add_typer(group, name=verb)
app.command()(replay)
app.command()(dash)
app.command()(top)
app.command()(doctor)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point: a user's mistake ends with a sentence and exit code 2, ours with 1."""
    console = Console(stderr=True)
    try:
        app()
    except PlaitError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2 if isinstance(error, UserError) else 1)
