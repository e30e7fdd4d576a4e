"""`open_engine`: from a few choices to an engine that is ready to start."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from plait.cost.cost import Cost
from plait.cost.scaling_base import ScalingBase
from plait.model.config import ModelConfig, Rank, dtype_of, kv_dtype_of
from plait.model.hub import resolve
from plait.model.share import share_of
from plait.runtime.driver import Fleet
from plait.runtime.elastic import measured, presumed_widths, refusal_of_groups
from plait.runtime.engine import Engine, EngineConfig, max_len_of, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.launch import Launcher, LocalLauncher
from plait.runtime.paced import PacedFleet
from plait.runtime.room import free_slots, stored_shape
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Network
from plait.spec.cluster import Instance, Link, Placement, Role, incomplete
from plait.spec.errors import Unsupported, UserError
from plait.spec.shape import ModelShape
from plait.workload.journal import Core


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What `plait serve` was told."""

    model: str
    """Alias, hub id or folder."""
    name: str | None = None
    """Name that clients use; None: as `model` is spelled."""
    threads: int = 1
    """Threads of each worker."""
    dtype: str = "auto"
    """Type of weights and activations; see ModelConfig."""
    weights: str = "auto"
    """Of linear layers; see ModelConfig."""
    kv_dtype: str = "auto"
    """Type of keys and values; see ModelConfig."""
    device: str = "cpu"
    """Where workers compute; see ModelConfig."""
    exact: bool = False
    """Results do not depend on batch, chunking or threads."""
    max_len: int | None = None
    """Longest prompt with output, in tokens; None: the model's own limit."""
    kv_tokens: int | None = None
    """KV slots of each instance; None: a share of the memory that is free."""
    manager: ManagerConfig = field(default_factory=ManagerConfig)
    journal: Path | None = None
    """Where to write the journal; None: nowhere."""
    chat_template: Path | None = None
    """Jinja file of the chat template; None: the model's own."""
    cluster: str | None = None
    """None: workers are child processes; "local" or an address: Ray starts them."""
    pace: Cost | None = None
    """Deliver answers no earlier than this cost model says."""
    pace_link: Link | None = None
    """What moves between instances of a paced run travel on; None: they take as long as they do."""
    scaling: ScalingBase | None = None
    """Measured times of groups, by which elastic instances decide; None: those of `manager`, or presumed."""
    move_bandwidth: float | None = None
    """Bytes/s at which KV moves between elastic instances: rows leave instances to prompts where that is
    worth it. None: nothing is moved for that."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """How many workers, and when one counts as lost; its placement is that of `manager`."""
    tp: int = 1
    """Processes that share each layer, in instances that the placement does not name."""
    pp: int = 1
    """Stages, in instances that the placement does not name."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """(name, folder) of the adapters to begin with."""


def open_engine(config: ServeConfig, owner: Callable[[GlobalManager], Core] | None = None) -> Engine:
    """Put an engine together; nothing runs before its `start`. `owner`: see `Engine`.

    Raises:
        UserError: an option or the model cannot be used; the message names the next step.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device is {config.device}; choose cpu, cuda or cuda:N", "device")
    folder = resolve(config.model)
    page, instances = config.manager.page, config.fleet.instances
    _check_placement(config.manager.placement, instances)
    max_len = max_len_of(folder, config.max_len)
    config = replace(
        config,
        dtype=dtype_of(folder, config.dtype, config.exact, config.device),
        kv_dtype=kv_dtype_of(folder, config.kv_dtype),
    )
    shape = shape_of(folder)
    placement = _placement(config, shape)
    copies = max(-(-each.tp // shape.layers[0].kv_heads) for each in placement.instances)
    slots = config.kv_tokens or free_slots(
        shape, config.dtype, config.kv_dtype, config.device, instances, max_len, copies
    )
    model = ModelConfig(
        folder=str(folder),
        dtype=config.dtype,
        weights=config.weights,
        kv_dtype=config.kv_dtype,
        device=config.device,
        slots=max(slots // page, 1) * page,
        page=page,
        exact=config.exact,
        max_len=max_len,
        threads=config.threads,
    )
    fleet: Fleet = WorkerFleet(
        replace(config.fleet, placement=placement), model, _launcher(config, placement)
    )
    if config.pace is not None:
        nodes = {each.id: each.node for each in config.manager.placement.instances}
        fleet = PacedFleet(fleet, config.pace, _network(config, folder), nodes)
    elif config.pace_link is not None:
        raise UserError("only a paced run has a stated bandwidth: give --pace, or leave it out", "pace_link")
    name = config.name or config.model
    engine = EngineConfig(
        folder=folder,
        name=name,
        max_len=max_len,
        manager=_deep_enough(_mobile(config, _wide_enough(config, placement, shape), folder), placement),
        journal=config.journal,
        chat_template=config.chat_template,
        meta={} if config.pace is None else {"paced": True},
        no_groups=refusal_of_groups(placement.instances, config.device, shape),
        adapters=dict(config.adapters),
    )
    return Engine(engine, fleet, instances, owner)


def _check_placement(placement: Placement, instances: int) -> None:
    """Raises UserError where these instances cannot serve so."""
    named = {each.id: each for each in placement.instances}
    strangers = [id for id in named if not 0 <= id < instances]
    if strangers:
        raise UserError(f"the placement names instance {strangers[0]} of {instances}", "placement")
    roles = [named[id].role if id in named else Role.MIXED for id in range(instances)]
    if lack := incomplete(roles):
        raise UserError(f"a placement needs {lack}: add one, or one that does both", "placement")


def _network(config: ServeConfig, folder: Path) -> Network | None:
    link = config.pace_link
    if link is None:
        return None
    shape = stored_shape(shape_of(folder), config.dtype, config.kv_dtype)
    layers = len(shape.layers) if config.manager.handover.overlap else 1
    return Network(shape.kv_bytes_per_token, local=link, remote=link, layers=layers)


def _placement(config: ServeConfig, shape: ModelShape) -> Placement:
    """Every instance by name, with its processes. Raises UserError where the model cannot be divided so."""
    named = {each.id: each for each in config.manager.placement.instances}
    ids = range(config.fleet.instances)
    placement = Placement(tuple(named.get(i, Instance(i, tp=config.tp, pp=config.pp)) for i in ids))
    for each in placement.instances:
        if each.tp < 1 or each.pp < 1:
            raise UserError(f"instance {each.id}: tp ({each.tp}) and pp ({each.pp}) must be at least 1", "tp")
        try:
            share_of(shape, Rank(each.tp, each.pp))
        except Unsupported as refusal:
            raise Unsupported(f"instance {each.id}: {refusal}", refusal.param) from refusal
    elastic = [each for each in placement.instances if each.role.elastic]
    if elastic and (reason := refusal_of_groups(elastic, config.device, shape)):
        raise Unsupported(reason, "placement")
    return placement


def _wide_enough(config: ServeConfig, placement: Placement, shape: ModelShape) -> ManagerConfig:
    """With times of groups: those that were measured, else those that the manager has, else presumed ones."""
    manager, base = config.manager, config.scaling
    if base is not None:
        elastic = measured(base, manager.elastic, placement.instances)
    elif manager.elastic.widths != ElasticConfig().widths:
        return manager
    else:
        widths = presumed_widths(shape, placement.instances)
        elastic = replace(manager.elastic, widths=widths)
    return replace(manager, elastic=elastic)


def _mobile(config: ServeConfig, manager: ManagerConfig, folder: Path) -> ManagerConfig:
    """With the time to move a token's KV, where it is known how fast that goes.

    Raises:
        UserError: there are no elastic instances.
    """
    if config.move_bandwidth is None:
        return manager
    if not any(each.role.elastic for each in manager.placement.instances):
        raise UserError("a bandwidth of moves is for elastic instances: add --elastic", "move_bandwidth")
    shape = stored_shape(shape_of(folder), config.dtype, config.kv_dtype)
    token_ns = shape.kv_bytes_per_token / config.move_bandwidth * 1e9
    return replace(manager, elastic=replace(manager.elastic, move_token_ns=token_ns))


def _deep_enough(manager: ManagerConfig, placement: Placement) -> ManagerConfig:
    """At least as many steps in flight as an instance has stages."""
    depth = max(manager.batcher.depth, *(each.pp for each in placement.instances))
    return replace(manager, placement=placement, batcher=replace(manager.batcher, depth=depth))


def _launcher(config: ServeConfig, placement: Placement) -> Launcher:
    if config.cluster is None:
        return LocalLauncher()
    from plait.runtime.launch_ray import RayLauncher  # Ray is an extra

    return RayLauncher(config.cluster, [each.tp * each.pp for each in placement.instances], config.threads)
