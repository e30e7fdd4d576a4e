"""`Cluster`: the devices there are, and the file that says so.

nodes: 4
devices_per_node: 8
device: a100-80g
local_gbps: 2400        # of each instance, to the others of its node, one way (gigabits/s)
remote_gbps: 25         # of each node, to the others
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import yaml

from plait.cost.catalog import device_named
from plait.spec.cluster import Device, Link
from plait.spec.errors import NotFound, UserError

GBPS = 1e9 / 8
US = 1_000


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the file may say."""

    nodes: int
    devices_per_node: int
    device: str
    """A name of the catalog."""
    local_gbps: float = 2400.0
    """Gigabits/s one way; NVLink of an A100."""
    remote_gbps: float = 25.0
    """Gigabits/s one way."""
    local_latency_us: float = 5.0
    remote_latency_us: float = 30.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal nodes of equal devices."""

    nodes: int
    devices_per_node: int
    device: Device
    local: Link
    """Of each instance, to the others of its node; also between the devices of an instance."""
    remote: Link
    """Of each node, to the others."""

    @property
    def devices(self) -> int:
        """All of them."""
        return self.nodes * self.devices_per_node


def read_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises:
        UserError: it cannot be read, has a key that is not known (says the nearest), lacks one, or has a
            figure that no cluster has.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the cluster {path}: {error.strerror}", "cluster") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the cluster {path} is not YAML: {error}", "cluster") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"the cluster {path} has no keys; it needs nodes, devices_per_node, device", "cluster"
        )
    _check_keys(path, raw)
    try:
        said = msgspec.convert(raw, ClusterFile)
    except msgspec.ValidationError as error:
        raise UserError(f"the cluster {path}: {error}", "cluster") from error
    for name in ("nodes", "devices_per_node", "local_gbps", "remote_gbps"):
        if getattr(said, name) <= 0:
            raise UserError(f"the cluster {path}: {name} is {getattr(said, name)}; it must be above 0", name)
    for name in ("local_latency_us", "remote_latency_us"):
        if getattr(said, name) < 0:
            raise UserError(f"the cluster {path}: {name} is {getattr(said, name)}; it is at least 0", name)
    return Cluster(
        said.nodes,
        said.devices_per_node,
        _device(path, said.device),
        Link(said.local_gbps * GBPS, round(said.local_latency_us * US)),
        Link(said.remote_gbps * GBPS, round(said.remote_latency_us * US)),
    )


def _device(path: Path, name: str) -> Device:
    try:
        return device_named(name)
    except NotFound as error:
        raise UserError(f"the cluster {path}: {error}", "device") from error


def _check_keys(path: Path, raw: dict[Any, Any]) -> None:
    known = ClusterFile.__struct_fields__
    for key in raw:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"the cluster {path}: no key {key!r}; {hint}", "cluster")
