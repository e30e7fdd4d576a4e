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
from plait.runtime.room import free_slots, stored_shape
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.spec.cluster import Link, Placement, Role
from plait.spec.errors import Unsupported, UserError


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
    pace_link: Link | None = None
    """What moves between instances of a paced run travel on; None: they take as long as they do."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """How many workers, and when one counts as lost."""


def open_engine(config: ServeConfig) -> Engine:
    """Put an engine together; nothing runs before its `start`.

    Raises:
        UserError: an option or the model cannot be used; the message names the next step.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device is {config.device}; choose cpu, cuda or cuda:N", "device")
    folder = resolve(config.model)
    page, instances = config.manager.page, config.fleet.instances
    _check_placement(config.manager.placement, instances)
    max_len = max_len_of(folder, config.max_len)
    config = replace(config, dtype=dtype_of(folder, config.dtype, config.exact, config.device))
    slots = config.kv_tokens or free_slots(
        shape_of(folder), config.dtype, config.kv_dtype, config.device, instances, max_len
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
    fleet: Fleet = WorkerFleet(config.fleet, model, _launcher(config))
    if config.pace is not None:
        nodes = {each.id: each.node for each in config.manager.placement.instances}
        fleet = PacedFleet(fleet, config.pace, _network(config, folder), nodes)
    elif config.pace_link is not None:
        raise UserError("only a paced run has a stated bandwidth: give --pace, or leave it out", "pace_link")
    name = config.name or config.model
    engine = EngineConfig(
        folder=folder, name=name, max_len=max_len, manager=config.manager, journal=config.journal
    )
    return Engine(engine, fleet, instances)


def _check_placement(placement: Placement, instances: int) -> None:
    """Raises UserError where these instances cannot serve so."""
    named = {each.id: each for each in placement.instances}
    strangers = [id for id in named if not 0 <= id < instances]
    if strangers:
        raise UserError(f"the placement names instance {strangers[0]} of {instances}", "placement")
    if any(each.tp * each.pp > 1 for each in placement.instances):
        raise Unsupported(
            "instances of more than one worker are not supported: use tp 1 and pp 1", "placement"
        )
    roles = [named[id].role if id in named else Role.MIXED for id in range(instances)]
    if not any(role.prefills for role in roles) or not any(role.decodes for role in roles):
        raise UserError(
            "a placement needs an instance that prefills and one that decodes: add one, or a mixed one",
            "placement",
        )


def _network(config: ServeConfig, folder: Path) -> Network | None:
    link = config.pace_link
    if link is None:
        return None
    shape = stored_shape(shape_of(folder), config.dtype, config.kv_dtype)
    layers = len(shape.layers) if config.manager.handover.overlap else 1
    return Network(shape.kv_bytes_per_token, local=link, remote=link, layers=layers)


def _launcher(config: ServeConfig) -> Launcher:
    if config.cluster is None:
        return LocalLauncher()
    from plait.runtime.launch_ray import RayLauncher  # Ray is an extra

    return RayLauncher(config.cluster, config.fleet.instances, config.threads)
