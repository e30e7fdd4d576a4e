"""`plait plan`: the placement that carries a rate with the fewest devices."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from plait import __version__
from plait.cli import report, workload
from plait.cost.catalog import CONFIGS, shape_named
from plait.cost.measured import measured_named
from plait.cost.scaling_base import ScalingBase
from plait.planner.cluster import read_cluster
from plait.planner.placed import save_placement
from plait.planner.plans import Plans
from plait.planner.published import Map
from plait.planner.race import Entry
from plait.planner.search import Algorithm, Outcome, Policy, Search, SearchConfig
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow, read_trace


def planning(
    model: Annotated[str, typer.Option(help=f"A config.json, or one of {', '.join(CONFIGS)}.")],
    cluster: Annotated[Path, typer.Option(help="YAML: nodes, devices_per_node, device, links.")],
    trace: Annotated[Path, typer.Option(help="Requests whose lengths are drawn from.")],
    slo: Annotated[str, typer.Option(help="Objectives, such as ttft=200ms,tpot=50ms.")],
    rate: Annotated[float, typer.Option(help="Requests a second that the placement must carry.")],
    form: workload.Format = "azure",
    policy: Annotated[Policy, typer.Option(help="Kinds of placements; auto takes the best.")] = Policy.AUTO,
    mode: Annotated[
        Policy | None,
        typer.Option(
            help="As policy, with elastic groups: auto compares all kinds and says why one is best."
        ),
    ] = None,
    algorithm: Annotated[
        Algorithm, typer.Option(help="joint: all placements; high, low: DistServe's algorithms 1 and 2.")
    ] = Algorithm.JOINT,
    cost: Annotated[
        str,
        typer.Option(help="Step times: roofline; a100-distserve or a100-vllm of OPT; a profile."),
    ] = "roofline",
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Elastic groups too, without measured times by what steps cost.")
    ] = False,
    scaling: Annotated[
        Path | None, typer.Option(help="Times of groups, by plait profile --groups: elastic groups too.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Write the placement to this file.")] = Path("placement.json"),
    finalists: Annotated[int, typer.Option(min=1, help="Candidates that are measured with intervals.")] = 3,
    requests: Annotated[
        int, typer.Option(min=50, help="Of each of their runs; fewer are quicker and less sure.")
    ] = 800,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 2,
    seed: workload.Seed = 0,
) -> "Planning":
    """What is to be planned. Raises UserError for what cannot be read."""
    shape, there = shape_named(model), read_cluster(cluster)
    groups = None if scaling is None else ScalingBase.load(scaling)
    plans = Plans(shape, there, measured_named(cost, model, there.device.name), groups)
    if mode is not None and policy is not Policy.AUTO:
        raise UserError("mode and policy say the same: leave one of them out", "mode")
    grouped = elastic or groups is not None or mode is Policy.AUTO
    config = SearchConfig(
        algorithm, mode or policy, grouped, finalists=finalists, requests=requests, seed=seed
    )
    about = {"model": model, "cluster": str(cluster), "slo": slo, "rate_hz": rate, "seed": seed, "cost": cost}
    about |= {} if scaling is None else {"scaling": str(scaling)}
    return Planning(plans, read_trace(trace, form), Slo.parse(slo), rate, config, out, jobs, about)


@wraps(planning, assigned=())
def plan(**options: Any) -> None:
    """Find which instances, how parallel and in which roles, serve a workload within its objectives."""
    planning(**options).run()


@dataclass(frozen=True, slots=True)
class Planning:
    """What `plait plan` was told."""

    plans: Plans
    trace: Sequence[TraceRow]
    slo: Slo
    rate_hz: float
    config: SearchConfig
    out: Path
    jobs: int
    about: dict[str, Any]

    def search(self, map: Map = map) -> Search:
        """The search, which has not begun. Raises UserError: the rate is none, or the objectives are."""
        return Search(self.plans, self.trace, self.slo, self.rate_hz, self.config, map)

    def run(self) -> Outcome:
        """Search, show and write the placement."""
        with ProcessPoolExecutor(self.jobs) as pool, report.progress() as bar:
            search = self.search(pool.map)
            task = bar.add_task("bounds", total=None)

            def said(stage: str, entries: Sequence[Entry]) -> None:
                bar.update(task, description=f"{stage}: {entries[0].candidate}")

            outcome = search.run(said)
        there, best = self.plans.cluster, outcome.best
        of, wanted = self.about["model"], f"{self.about['slo']}, {self.rate_hz:g} requests/s"
        _show(outcome, f"{of} on {there.devices} x {there.device.name}, {wanted}")
        about = {"plait": __version__, "candidate": str(best.candidate), "kind": best.candidate.kind}
        save_placement(self.out, search.placement(best), self.about | about)
        Console(stderr=True, highlight=False).print(f"placement: {self.out}")
        return outcome


def _show(outcome: Outcome, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("candidate", "kind", "requests/s a device", "95 % interval", "bound", "copies", "devices"):
        table.add_column(name, justify="left" if name in ("candidate", "kind") else "right")
    for each in outcome.entries:
        size = each.candidate.devices
        table.add_row(
            str(each.candidate),
            each.candidate.kind,
            f"{each.per_device:.2f}",
            f"{each.low_hz / size:.2f} .. {each.high_hz / size:.2f}",
            f"{each.bound_hz / size:.2f}",
            str(each.copies) if each.copies else "-",
            str(each.devices) if each.copies else "-",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(outcome.reason())
    console.print(f"{sum(outcome.fates.values()):,} candidates:")
    for fate, count in outcome.fates.items():
        console.print(f"  {count:>6,} {fate.value}")
    for refused, reason in outcome.refused.items():
        console.print(f"plan {refused}: {reason}")
    for candidate, reason in outcome.failed.items():
        console.print(f"could not be evaluated: {candidate}: {reason}")
