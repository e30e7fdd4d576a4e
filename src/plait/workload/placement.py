"""Placement files: which instances serve, in which roles, as JSON or YAML.

    instances:
      - role: prefill
      - role: decode
        tp: 2

An entry has the fields of `Instance`; one without `id` has its place in the list.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import yaml

from plait.spec.cluster import Instance, Placement
from plait.spec.errors import UserError

_KNOWN = tuple(field.name for field in fields(Instance))


def read_placement(path: Path) -> Placement:
    """Read a placement file.

    Raises:
        UserError: it cannot be read or is not a placement; the message says what is wrong where.
    """
    try:
        raw = yaml.safe_load(path.read_text())  # JSON is YAML
    except OSError as error:
        raise UserError(f"cannot read the placement {path}: {error.strerror}", "placement") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the placement {path} is neither JSON nor YAML: {error}", "placement") from error
    listed = raw.get("instances") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"the placement {path} has no list called instances", "placement")
    found = tuple(_instance(path, at, entry) for at, entry in enumerate(listed))
    if sorted(each.id for each in found) != list(range(len(found))):
        raise UserError(
            f"the placement {path} must name instances 0 to {len(found) - 1}, each once", "placement"
        )
    return Placement(found)


def _instance(path: Path, at: int, entry: Any) -> Instance:
    where = f"the placement {path}, instance {at}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not an object with any of {', '.join(_KNOWN)}", "placement")
    unknown = [str(key) for key in entry if key not in _KNOWN]
    if unknown:
        raise UserError(f"{where}: {', '.join(unknown)} is not one of {', '.join(_KNOWN)}", "placement")
    try:
        instance = msgspec.convert({"id": at, **entry}, Instance)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {error}", "placement") from error
    if min(instance.tp, instance.pp) < 1:
        raise UserError(f"{where}: tp and pp are at least 1", "placement")
    return instance
