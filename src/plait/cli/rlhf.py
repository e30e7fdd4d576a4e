"""`plait plan rlhf` and `plait simulate rlhf`: an iteration of RLHF on devices that need not be here."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from plait import __version__
from plait.planner.cluster import read_cluster
from plait.planner.rlhf_job import read_job
from plait.planner.rlhf_layout import Machine, best_drawing, best_training
from plait.planner.rlhf_plan import Intra, Ledger, RlhfPlan, Stepped
from plait.rlhf.core import Tail
from plait.search.pipelines.find import ScheduleSearch
from plait.search.pipelines.form import to_csv
from plait.spec.errors import UserError
from plait.workload.gantt import Gantt, Seen

Job = Annotated[
    Path, typer.Argument(help="YAML: actor, critic, samples, lengths (see recipes/plan/rlhf.yaml).")
]
ClusterFile = Annotated[Path, typer.Option("--cluster", help="YAML: nodes, devices_per_node, device, links.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Searching a schedule of the two pipelines.")]
Seed = Annotated[int, typer.Option(help="Of lengths and search.")]


def plan_rlhf(
    job: Job,
    cluster: ClusterFile,
    search_s: Seconds = 20.0,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write layouts, tail and ledger as JSON.")] = None,
    schedule_out: Annotated[Path | None, typer.Option(help="Write the fused schedule as CSV.")] = None,
) -> None:
    """Find layouts for drawing and training, (R_t, m), and a fused schedule; say what an iteration takes."""
    base, other = _plans(job, cluster)
    serial_step, search = base.step(Intra.SERIAL), _search(search_s, seed)
    found = [(plan, plan.step(Intra.SEARCHED, search)) for plan in (base, other)]
    fused, step = min(found, key=lambda each: each[0].trained_s(each[1]))
    tuned, samples = fused.tuned(seed), fused.samples(seed)
    ledgers = [
        base.ledger(base.rollout(samples), serial_step),
        fused.ledger(fused.rollout(samples, tuned.tail), step),
    ]
    console = Console(highlight=False)
    console.print(f"drawing and scoring: {base.drawing}")
    console.print(f"training, serial: {base.training}; fused: {fused.training}")
    console.print(f"tail: {tuned}")
    console.print(_table(ledgers))
    if schedule_out is not None:
        if step.schedule is None:
            raise UserError("no fused schedule is shorter than serial training here, so none is written")
        schedule_out.write_text(to_csv(step.schedule))
    if out is not None:
        told = {"plait": __version__, "job": str(job), "cluster": str(cluster), "seed": seed}
        told |= {"drawing": str(base.drawing), "training": [str(base.training), str(fused.training)]}
        told |= {"tail": asdict(tuned.tail), "seconds": [asdict(ledger) for ledger in ledgers]}
        out.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")


def simulate_rlhf(
    job: Job,
    cluster: ClusterFile,
    left: Annotated[int | None, typer.Option(min=0, help="R_t; 0: serial stages; without: tuned.")] = None,
    kept: Annotated[int | None, typer.Option(min=1, help="m; with --left.")] = None,
    intra: Annotated[Intra, typer.Option(help="How Actor and Critic share the ranks.")] = Intra.SEARCHED,
    search_s: Seconds = 20.0,
    seed: Seed = 0,
    gantt: Annotated[
        Path | None,
        typer.Option(help="Write who does what when: .csv, .txt, or a trace for ui.perfetto.dev."),
    ] = None,
) -> None:
    """Walk through one iteration of RLHF in virtual time."""
    if (left is None) != (kept is None) and left != 0:
        raise UserError("--left and --kept belong together: name both, or neither", "left")
    base, fused = _plans(job, cluster)
    plan = base if intra is Intra.SERIAL else fused
    tail = plan.tuned(seed).tail if left is None else Tail(left, kept or 1)
    drawn = Gantt()
    seen = Seen(drawn)
    times = plan.rollout(plan.samples(seed), tail, [seen.see])
    seen.close()
    step = plan.step(intra, _search(search_s, seed))
    begin_ns = times.scored_ns
    for number in range(plan.job.mini_batches):
        _draw_step(drawn, plan, step, begin_ns + round(number * step.total_s * 1e9))
    console = Console(highlight=False)
    console.print(f"{plan.drawing}; {plan.training}; tail of {tail.left} on {tail.kept}, {times.moves} moved")
    console.print(_table([plan.ledger(times, step)]))
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in drawn.shares().items())
    console.print(f"time of instances and ranks: {shares}")
    if gantt is not None:
        drawn.save(gantt)


def _plans(job: Path, cluster: Path) -> tuple[RlhfPlan, RlhfPlan]:
    """For serial stages and for fused ones."""
    told, machine = read_job(job), Machine(read_cluster(cluster))
    drawing = best_drawing(told, machine)
    serial, fused = (best_training(told, machine, fused=each) for each in (False, True))
    return RlhfPlan(told, machine, drawing, serial), RlhfPlan(told, machine, drawing, fused)


def _search(seconds: float, seed: int) -> ScheduleSearch:
    return ScheduleSearch(seconds=seconds, seed=seed)


def _draw_step(gantt: Gantt, plan: RlhfPlan, step: Stepped, at_ns: int) -> None:
    """A mini-batch on the ranks of one block; all blocks do the same."""
    for rank, kind, begin_s, end_s in plan.bars(step):
        gantt.add(f"rank {rank}", kind, at_ns + round(begin_s * 1e9), at_ns + round(end_s * 1e9))


def _table(ledgers: list[Ledger]) -> Table:
    titles = ("serial", "fused") if len(ledgers) > 1 else ("seconds",)
    table = Table("seconds of an iteration", *titles)
    for name in asdict(ledgers[0]):
        table.add_row(name.removesuffix("_s"), *(f"{getattr(each, name):.3f}" for each in ledgers))
    table.add_row("total", *(f"{each.total_s:.3f}" for each in ledgers))
    if len(ledgers) > 1:
        table.add_row("gain", "", f"{ledgers[0].total_s / ledgers[1].total_s:.3f}x")
    return table
