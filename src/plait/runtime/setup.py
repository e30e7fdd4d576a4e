"""`open_engine`: from a few choices to an engine that is ready to start."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from plait.cost.cost import Cost
from plait.model.config import ModelConfig, dtype_of
from plait.model.hub import resolve
from plait.runtime.driver import Fleet
from plait.runtime.engine import Engine, EngineConfig, max_len_of, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.launch import Launcher, LocalLauncher
from plait.runtime.paced import PacedFleet
from plait.runtime.room import free_slots
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement
from plait.spec.errors import UserError


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
    cluster: str | None = None
    """None: workers are child processes; "local" or an address: Ray starts them."""
    pace: Cost | None = None
    """Deliver answers no earlier than this cost model says."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """How many workers, and when one counts as lost; its placement is that of `manager`."""
    tp: int = 1
    """Processes that share each layer, in instances that the placement does not name."""
    pp: int = 1
    """Stages, in instances that the placement does not name."""


def open_engine(config: ServeConfig) -> Engine:
    """Put an engine together; nothing runs before its `start`.

    Raises:
        UserError: an option or the model cannot be used; the message names the next step.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device is {config.device}; choose cpu, cuda or cuda:N", "device")
    folder = resolve(config.model)
    page, instances = config.manager.page, config.fleet.instances
    max_len = max_len_of(folder, config.max_len)
    config = replace(config, dtype=dtype_of(folder, config.dtype, config.exact, config.device))
    placement, shape = _placement(config), shape_of(folder)
    copies = max(-(-each.tp // shape.layers[0].kv_heads) for each in placement.instances)
    slots = config.kv_tokens or free_slots(
        shape, config.dtype, config.kv_dtype, config.device, instances, max_len, copies
    )
    model = ModelConfig(
        folder=str(folder),
        dtype=config.dtype,
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
        fleet = PacedFleet(fleet, config.pace)
    name = config.name or config.model
    engine = EngineConfig(
        folder=folder,
        name=name,
        max_len=max_len,
        manager=_deep_enough(config.manager, placement),
        journal=config.journal,
    )
    return Engine(engine, fleet, instances)


def _placement(config: ServeConfig) -> Placement:
    """Every instance by name, with its processes."""
    named = {each.id: each for each in config.manager.placement.instances}
    ids = range(config.fleet.instances)
    placement = Placement(tuple(named.get(i, Instance(i, tp=config.tp, pp=config.pp)) for i in ids))
    for each in placement.instances:
        if each.tp < 1 or each.pp < 1:
            raise UserError(f"instance {each.id}: tp ({each.tp}) and pp ({each.pp}) must be at least 1", "tp")
    return placement


def _deep_enough(manager: ManagerConfig, placement: Placement) -> ManagerConfig:
    """At least as many steps in flight as an instance has stages."""
    depth = max(manager.batcher.depth, *(each.pp for each in placement.instances))
    return replace(manager, placement=placement, batcher=replace(manager.batcher, depth=depth))


def _launcher(config: ServeConfig, placement: Placement) -> Launcher:
    if config.cluster is None:
        return LocalLauncher()
    from plait.runtime.launch_ray import RayLauncher  # Ray is an extra

    return RayLauncher(config.cluster, [each.tp * each.pp for each in placement.instances], config.threads)
