"""`plait serve MODEL`: an OpenAI-compatible server on real workers."""

import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from plait.cli.lora import AdminKey, Lora, LoraDir, adapters_of, guarded
from plait.cli.planned import Follow
from plait.cost.catalog import cost_named
from plait.cost.scaling_base import ScalingBase
from plait.planner.errand import Errand
from plait.planner.monitor import Monitor
from plait.runtime.away import away
from plait.runtime.engine import Engine
from plait.runtime.fleet import FleetConfig
from plait.runtime.replanner import Replanner
from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.server.lifespan import serve as answer
from plait.server.lifespan import visited
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.text.tool_format import FORMATS
from plait.workload.placement import read_placement

Model = Annotated[str, typer.Argument(help="A model folder, a hub id, or an alias of `plait pull`.")]
Name = Annotated[str | None, typer.Option("--served-model-name", help="Name for clients; without it, MODEL.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")]
ApiKey = Annotated[
    list[str] | None, typer.Option(help="Accepted key, may be repeated; or set PLAIT_API_KEY.")
]
Instances = Annotated[
    int, typer.Option(min=1, help="Instances; each has all weights, in --tp x --pp processes.")
]
Tp = Annotated[int, typer.Option(min=1, help="Processes of an instance that share each layer.")]
Pp = Annotated[int, typer.Option(min=1, help="Stages of an instance, each with an interval of layers.")]
PlacementFile = Annotated[
    Path | None,
    typer.Option("--placement", help="JSON or YAML file of instances and their roles; not with --instances."),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="What plait plan wrote: its placement, kept to its objectives.")
]
AutoTrace = Annotated[
    Path | None,
    typer.Option("--auto", help="Plan first, for requests like this trace's; with --on and --slo. Says why."),
]
OnCluster = Annotated[Path | None, typer.Option("--on", help="With --auto: YAML of this cluster.")]
Prefill = Annotated[int, typer.Option(min=0, help="Instances that only compute prompts; with --decode.")]
Decode = Annotated[
    int, typer.Option(min=0, help="Instances that only decode. What --instances has beyond both does both.")
]
Elastic = Annotated[
    bool,
    typer.Option(
        "--elastic",
        help="All instances compute steps in groups, formed anew for each step; or those of --placement.",
    ),
]
Scaling = Annotated[
    Path | None, typer.Option(help="With --elastic: times of groups, written by plait profile --groups.")
]
MoveBandwidth = Annotated[
    float | None,
    typer.Option(
        min=1, help="With --elastic: bytes/s of moves of KV; rows leave instances to prompts where it pays."
    ),
]
Overlap = Annotated[
    bool, typer.Option("--overlap", help="Move KV layer by layer behind the step that writes it.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each worker.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
KvDtype = Annotated[
    str,
    typer.Option(
        help="Type of keys and values: float32, bfloat16, int8; auto: what MODEL was made for, or --dtype."
    ),
]
Device = Annotated[str, typer.Option(help="Where workers compute: cpu, cuda or cuda:N.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="No bit of an answer depends on batching, chunking or threads.")
]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest prompt with output, in tokens.")]
KvTokens = Annotated[
    int | None, typer.Option(min=1, help="KV tokens of each instance; without it, by free memory.")
]
Page = Annotated[int, typer.Option(min=1, help="Tokens in a KV page.")]
StepTokens = Annotated[int, typer.Option(min=1, help="Tokens that one step computes at most.")]
Depth = Annotated[int, typer.Option(min=1, help="Steps in flight on an instance.")]
MaxRows = Annotated[int, typer.Option(min=1, help="Requests on one instance.")]
MaxQueue = Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")]
Priority = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Seconds that a step in a request's priority counts; without it, priorities are refused.",
    ),
]
OutputShare = Annotated[
    float, typer.Option(min=0.01, max=1, help="Share of max_tokens that requests are presumed to use.")
]
PrefixCache = Annotated[bool, typer.Option(help="Share the KV of equal prompt prefixes.")]
OverloadStatus = Annotated[int, typer.Option(help="Answer to a full queue: 503, 429 or 529.")]
RateLimit = Annotated[int | None, typer.Option(min=1, help="Requests a minute for each API key.")]
Timeout = Annotated[float | None, typer.Option(min=0.001, help="Seconds for requests that name no timeout.")]
ToolParser = Annotated[str, typer.Option(help=f"How the model writes calls of tools: {', '.join(FORMATS)}.")]
ChatTemplate = Annotated[Path | None, typer.Option(help="Jinja file in the place of the model's own.")]
Drain = Annotated[float, typer.Option(min=0, help="Seconds that requests may go on after SIGTERM.")]
Journal = Annotated[Path | None, typer.Option(help="Write every event and command to this file.")]
OtlpEndpoint = Annotated[
    str | None, typer.Option(help="Send OpenTelemetry traces to this collector, such as http://HOST:4318.")
]
Cluster = Annotated[str | None, typer.Option(help="Start workers with Ray: local, or a cluster's address.")]
Interface = Annotated[str, typer.Option(help="Address on which the driver listens for its workers.")]
Pace = Annotated[
    str | None, typer.Option(help="Answer no earlier than this cost file says; results are 'paced'.")
]

PaceBandwidth = Annotated[
    float | None, typer.Option(min=1, help="With --pace: bytes/s of each instance's link, for moves of KV.")
]
ReplanCluster = Annotated[
    Path | None,
    typer.Option("--replan", help="Change roles when the workload does; YAML of this cluster. With --slo."),
]
Objectives = Annotated[
    str | None,
    typer.Option(help="Such as ttft=200ms,tpot=50ms: for --replan, elastic instances and the dashboard."),
]
Dash = Annotated[bool, typer.Option(help="Show what happens at /dash.")]
Costs = Annotated[str, typer.Option(help="With --replan and --auto: step times, as in plait plan.")]


Visit = Callable[[Engine, str], Awaitable[None]]
"""What is done with an engine whose server listens, by its URL."""


def serving(
    model: Model,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    instances: Instances = 1,
    tp: Tp = 1,
    pp: Pp = 1,
    placement: PlacementFile = None,
    plan: PlanFile = None,
    auto: AutoTrace = None,
    on: OnCluster = None,
    prefill: Prefill = 0,
    decode: Decode = 0,
    elastic: Elastic = False,
    scaling: Scaling = None,
    move_bandwidth: MoveBandwidth = None,
    overlap: Overlap = False,
    threads: Threads = 1,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    device: Device = "cpu",
    exact: Exact = False,
    max_model_len: MaxModelLen = None,
    kv_tokens: KvTokens = None,
    page: Page = 16,
    step_tokens: StepTokens = 512,
    depth: Depth = 2,
    max_rows: MaxRows = 256,
    max_queue: MaxQueue = 4096,
    priority: Priority = None,
    output_share: OutputShare = 1.0,
    prefix_cache: PrefixCache = True,
    overload_status: OverloadStatus = 503,
    rate_limit: RateLimit = None,
    timeout: Timeout = None,
    drain: Drain = 30.0,
    chat_template: ChatTemplate = None,
    tool_parser: ToolParser = "hermes",
    journal: Journal = None,
    otlp_endpoint: OtlpEndpoint = None,
    cluster: Cluster = None,
    interface: Interface = "127.0.0.1",
    pace: Pace = None,
    pace_bandwidth: PaceBandwidth = None,
    replan: ReplanCluster = None,
    slo: Objectives = None,
    cost: Costs = "roofline",
    dash: Dash = True,
    lora: Lora = None,
    lora_dir: LoraDir = None,
    admin_key: AdminKey = None,
) -> "Serving":
    """What is to be served, and how. Raises UserError for options that do not go together."""
    follow = Follow(plan, auto, on, cost)
    roles, slo = _roles(model, placement, follow, slo, (instances, prefill, decode, tp, pp), elastic=elastic)
    server = _server(host, port, api_key, overload_status, rate_limit, timeout, drain, dash, slo)
    server = replace(server, tool_parser=tool_parser, otlp_endpoint=otlp_endpoint)
    server = guarded(server, admin_key, lora_dir)
    manager = ManagerConfig(
        model=name or model,
        page=page,
        placement=roles,
        handover=HandoverConfig(overlap=overlap),
        admission=_admission(max_queue, max_rows, priority, output_share),
        batcher=BatcherConfig(step_tokens=step_tokens, depth=depth, prefix_cache=prefix_cache),
        elastic=_elastic(slo),
    )
    config = ServeConfig(model=model, name=name, manager=manager, journal=journal, cluster=cluster)
    config = replace(config, threads=threads, dtype=dtype, kv_dtype=kv_dtype, device=device, exact=exact)
    config = replace(config, max_len=max_model_len, kv_tokens=kv_tokens, chat_template=chat_template)
    config = _timed(config, pace, pace_bandwidth, scaling, move_bandwidth)
    fleet = FleetConfig(instances=len(roles.instances), interface=interface)
    config = replace(config, fleet=fleet, adapters=adapters_of(lora))
    return Serving(config, server, _replan(replan, slo, cost))


@wraps(serving, assigned=())
def serve(**options: Any) -> None:
    """Serve MODEL over HTTP until SIGTERM or Ctrl-C."""
    words = "%(asctime)s %(name)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=words)
    serving(**options).run()


def _server(
    host: str,
    port: int,
    api_key: list[str] | None,
    overload_status: int,
    rate_limit: int | None,
    timeout_s: float | None,
    drain_s: float,
    dash: bool,
    slo: str | None,
) -> ServerConfig:
    return ServerConfig(
        host=host,
        port=port,
        api_keys=tuple(api_key or filter(None, os.environ.get("PLAIT_API_KEY", "").split(","))),
        overload_status=overload_status,
        rate_limit_per_minute=rate_limit,
        default_timeout_s=timeout_s,
        drain_s=drain_s,
        dash=dash,
        slo=Slo.parse(slo) if slo else None,
    )


def _timed(
    config: ServeConfig,
    pace: str | None,
    pace_bandwidth: float | None,
    scaling: Path | None,
    move_bandwidth: float | None,
) -> ServeConfig:
    """With what is said of times: of a paced run, of groups and of moves. Raises UserError for bad files."""
    return replace(
        config,
        pace=cost_named(pace) if pace else None,
        pace_link=None if pace_bandwidth is None else Link(pace_bandwidth),
        scaling=None if scaling is None else ScalingBase.load(scaling),
        move_bandwidth=move_bandwidth,
    )


def _admission(
    max_queue: int, max_rows: int, priority_s: float | None, output_share: float
) -> AdmissionConfig:
    priority_ns = int((priority_s or 0) * 1e9)
    return AdmissionConfig(max_queue, max_rows, priority_ns=priority_ns, output_share=output_share)


def _elastic(slo: str | None) -> ElasticConfig:
    """How elastic instances keep to objectives."""
    aim = Slo.parse(slo) if slo else Slo(0, 0)
    return ElasticConfig(ttft_ns=aim.ttft_ns, tpot_ns=aim.tpot_ns)


def _roles(
    model: str,
    path: Path | None,
    follow: Follow,
    slo: str | None,
    sizes: tuple[int, int, int, int, int],
    *,
    elastic: bool,
) -> tuple[Placement, str | None]:
    """Where instances are, and the objectives: by the options, or as the planner says.

    Raises:
        UserError: they are said twice.
    """
    if sum(each is not None for each in (path, follow.plan, follow.auto)) > 1:
        raise UserError(
            "--placement, --plan and --auto each say where instances are: choose one", "placement"
        )
    if not follow:
        return _placement(path, *sizes, elastic=elastic), slo
    if elastic or sizes != (1, 0, 0, 1, 1):
        raise UserError(
            "--plan and --auto name all instances, their roles and sizes: leave out --instances, --prefill, "
            "--decode, --elastic, --tp and --pp"
        )
    return follow.placement(model, slo)


def _placement(
    path: Path | None,
    instances: int,
    prefill: int,
    decode: int,
    tp: int = 1,
    pp: int = 1,
    *,
    elastic: bool = False,
) -> Placement:
    if elastic:
        if prefill or decode:
            raise UserError("--elastic makes all --instances elastic: leave out --prefill and --decode")
        if path is not None:
            return _elastic_placement(read_placement(path), path, max(instances, tp, pp) > 1)
        return Placement(tuple(Instance(i, Role.ELASTIC, tp, pp) for i in range(instances)))
    if path is None:
        equal = Placement.disaggregated(prefill, decode, max(0, instances - prefill - decode))
        return Placement(tuple(replace(each, tp=tp, pp=pp) for each in equal.instances))
    if prefill or decode or max(instances, tp, pp) > 1:
        raise UserError(
            "--placement names all instances with their tp and pp: leave out --instances, --prefill, "
            "--decode, --tp and --pp"
        )
    return read_placement(path)


def _elastic_placement(placement: Placement, path: Path, more: bool) -> Placement:
    """What `plait plan --elastic` chose. `more`: sizes are named beside it."""
    if more:
        raise UserError("--placement names all instances with their tp: leave out --instances, --tp and --pp")
    if not any(each.role.elastic for each in placement.instances):
        raise UserError(
            f"{path} has no elastic instances: leave out --elastic, or plan with --policy elastic or pools"
        )
    return placement


@dataclass(frozen=True, slots=True)
class _Replan:
    cluster: Path
    slo: Slo
    cost: str

    def watch(self, engine: Engine, slots: int | None) -> Replanner:
        """Raises UserError: the cluster cannot have the engine's instances, or there are no such costs."""
        settings = engine.config
        errand = Errand(str(settings.folder), str(self.cluster), self.slo, self.cost, settings.manager, slots)
        errand.roles()
        return Replanner(engine, Monitor(), partial(away, errand))


def _replan(cluster: Path | None, slo: str | None, cost: str) -> _Replan | None:
    if cluster and not slo:
        raise UserError("--replan keeps to objectives: name them with --slo")
    return _Replan(cluster, Slo.parse(slo), cost) if cluster and slo else None


@dataclass(frozen=True, slots=True)
class Serving:
    """What `plait serve` was told."""

    engine: ServeConfig
    server: ServerConfig
    replan: _Replan | None

    def run(self, visit: Visit | None = None) -> None:
        """Serve until SIGTERM or Ctrl-C; with a visit, until that is over."""
        uvloop.run(self._run(time.monotonic(), visit))

    async def _run(self, began_s: float, visit: Visit | None) -> None:
        engine = open_engine(self.engine)
        replanner = None if self.replan is None else self.replan.watch(engine, self.engine.kv_tokens)

        def ready(url: str) -> None:
            self._say(url, time.monotonic() - began_s)

        await engine.start()
        try:
            if visit is None:
                await answer(engine, self.server, ready)
            else:
                await visited(engine, self.server, partial(visit, engine))
        finally:
            if replanner is not None:
                await replanner.close()
            await engine.close()

    def _say(self, url: str, seconds: float) -> None:
        paced = " (paced)" if self.engine.pace else ""
        watch = f"; watch at {url}/dash" if self.server.dash else ""
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        console = Console(stderr=True, highlight=False)
        console.print(f"ready after {seconds:.1f} s: {url}/v1{paced}{watch}")
