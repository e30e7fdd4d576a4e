"""`open_engine`: from a few choices to an engine that is ready to start."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from plait.cost.cost import Cost
from plait.model.config import ModelConfig
from plait.model.hub import resolve
from plait.runtime.driver import Fleet
from plait.runtime.engine import Engine, EngineConfig, max_len_of, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.launch import Launcher, LocalLauncher
from plait.runtime.paced import PacedFleet
from plait.serving.manager import ManagerConfig
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
    """Type of weights and KV; see ModelConfig."""
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
    max_len = max_len_of(folder, config.max_len)
    slots = config.kv_tokens or _free_slots(folder, config, max_len)
    model = ModelConfig(
        folder=str(folder),
        dtype=config.dtype,
        device=config.device,
        slots=max(slots // page, 1) * page,
        page=page,
        exact=config.exact,
        max_len=max_len,
        threads=config.threads,
    )
    fleet: Fleet = WorkerFleet(config.fleet, model, _launcher(config))
    if config.pace is not None:
        fleet = PacedFleet(fleet, config.pace)
    name = config.name or config.model
    engine = EngineConfig(
        folder=folder, name=name, max_len=max_len, manager=config.manager, journal=config.journal
    )
    return Engine(engine, fleet, instances)


def _launcher(config: ServeConfig) -> Launcher:
    if config.cluster is None:
        return LocalLauncher()
    from plait.runtime.launch_ray import RayLauncher  # Ray is an extra

    return RayLauncher(config.cluster, config.fleet.instances, config.threads)


def _free_slots(folder: Path, config: ServeConfig, max_len: int) -> int:
    """KV slots that fit the free memory, shared by all instances; at most what 32 of the longest requests
    need, for a larger pool only costs start-up time. They may take 40 % of a host's memory, and of a GPU's
    all but a tenth and the weights."""
    shape, instances = shape_of(folder), config.fleet.instances
    gpu = config.device != "cpu"
    width = 2 if config.dtype == "bfloat16" or (gpu and config.dtype == "auto") else 4
    if gpu:
        room = 0.9 * _free_gpu_bytes(config.device) / instances - shape.weight_bytes / 2 * width
    else:
        room = 0.4 * _free_bytes() / instances
    slots = int(room / (shape.kv_bytes_per_token / 2 * width))
    if slots < max_len:
        raise UserError(
            f"free memory holds {max(slots, 0)} KV tokens for each of {instances} instances, less than one "
            f"request of {max_len}: lower --max-model-len or --instances, or set --kv-tokens"
        )
    return min(slots, 32 * max_len)


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("cannot tell how much memory is free here: set --kv-tokens")


def _free_gpu_bytes(device: str) -> int:
    """Asked of the driver's own tool: torch would take memory of the GPU for this process too."""
    command = shutil.which("nvidia-smi")
    if command is None:
        raise UserError(
            f"device is {device}, but there is no NVIDIA GPU here (no nvidia-smi): use --device cpu", "device"
        )
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or "").split(",")
    index = int(device.partition(":")[2] or 0)
    name = visible[index].strip() if index < len(visible) and visible[index] else str(index)
    ask = [command, f"--id={name}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode or not done.stdout.strip().isdigit():
        said = (done.stdout + done.stderr).strip()
        raise UserError(f"device is {device}, but nvidia-smi says: {said}; set --kv-tokens", "device")
    return int(done.stdout) << 20
