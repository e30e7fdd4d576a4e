"""`plait simulate`: the serving core on virtual devices."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plait import __version__
from plait.cli import report, workload
from plait.cost.catalog import CONFIGS, DEVICES, cost_named, device_named, shape_named
from plait.cost.measured import measured_named
from plait.cost.roofline import Roofline
from plait.planner.cluster import read_cluster
from plait.planner.placed import placed
from plait.planner.plans import Plans
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.sim.world import Observer
from plait.spec.cluster import Placement
from plait.spec.command import Command, End
from plait.spec.errors import UserError
from plait.spec.event import Event
from plait.spec.slo import Slo
from plait.workload.journal import Journal
from plait.workload.placement import read_placement
from plait.workload.profile import Profile
from plait.workload.result import Recorder, Summary
from plait.workload.timeline import Timeline
from plait.workload.trace import TraceRow


def simulate(
    model: Annotated[
        str, typer.Option(help=f"A config.json, or one of {', '.join(CONFIGS)}.")
    ] = "llama-2-7b",
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "a100-80g",
    instances: Annotated[int, typer.Option(min=1, help="Equal instances that take both phases.")] = 1,
    tp: Annotated[int, typer.Option(min=1, help="Devices an instance.")] = 1,
    placement: Annotated[
        Path | None, typer.Option(help="Instances with roles and plans, as `plait plan` writes them.")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="With --placement: YAML of nodes, devices and links.")
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="Step times from a file; KV size stays the device's. With --placement as in plan."),
    ] = None,
    process: workload.Process = "poisson",
    rate: workload.Rate = None,
    count: workload.Count = 256,
    input_len: workload.PromptLength = "512",
    output_len: workload.OutputLength = "128",
    cv: workload.Cv = 2.0,
    burst: workload.Burst = 8,
    trace: workload.Trace = None,
    form: workload.Format = "azure",
    seed: workload.Seed = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Limit that callers ask for; without it, each one's true output length."),
    ] = None,
    slo: workload.Objectives = None,
    json_out: workload.Json = None,
    journal: Annotated[Path | None, typer.Option(help="Write every event and command to this file.")] = None,
    perfetto: Annotated[Path | None, typer.Option(help="Write a timeline for ui.perfetto.dev.")] = None,
) -> None:
    """Predict latency and throughput of a workload on devices that need not be here."""
    objectives = Slo.parse(slo) if slo else None
    profile = Profile(process, rate, count, input_len, output_len, cv, burst, trace, form, seed=seed)
    if placement is not None:
        if instances != 1 or tp != 1 or cluster is None:
            raise UserError("--placement takes --cluster, and neither --instances nor --tp", "placement")
        there = read_cluster(cluster)
        plans = Plans(shape_named(model), there, measured_named(cost or "roofline", model, there.device.name))
        scenario = placed(read_placement(placement), plans, model, objectives)
        device, instances = there.device.name, len(scenario.placement.instances)
    elif cluster is not None:
        raise UserError("--cluster describes where a --placement lies: name one, or use --device", "cluster")
    else:
        roofline = Roofline(device_named(device), shape_named(model), tp)
        step_cost, slots = cost_named(cost) if cost else roofline, roofline.kv_slots()
        scenario = Scenario(Placement.colocated(instances), step_cost, slots, ManagerConfig(model=model))
    machine = {"model": model, "device": device, "instances": instances, "tp": tp, "cost": cost or "roofline"}
    machine |= {} if placement is None else {"placement": str(placement), "cluster": str(cluster)}
    meta = {"world": "sim", "plait": __version__, **machine, "max_tokens": max_tokens}
    meta |= {"profile": profile.json()}
    recorder, timeline = Recorder(), Timeline()
    with ExitStack() as files:
        observers = [recorder.see] if perfetto is None else [recorder.see, timeline.see]
        if journal is not None:
            observers.append(files.enter_context(Journal(journal, asdict(scenario.config), meta)).append)
        _run(scenario, profile.rows(), observers, max_tokens)
    if perfetto is not None:
        timeline.save(perfetto)
    plan = f"{instances} x {tp} {device}" if placement is None else f"{placement} of {device}"
    title = f"{model} on {plan} (simulated)"
    report.show(title, Summary.of(recorder.records, objectives), recorder.records, meta, json_out)


def _run(
    scenario: Scenario, rows: Sequence[TraceRow], observers: Sequence[Observer], max_tokens: int | None
) -> None:
    """Simulate behind a progress bar."""
    with report.progress() as bar:
        task = bar.add_task("simulating", total=len(rows))

        def ended(now_ns: int, event: Event, commands: Sequence[Command]) -> None:
            if done := sum(isinstance(command, End) for command in commands):
                bar.advance(task, done)

        scenario.run(rows, [*observers, ended], max_tokens=max_tokens)
