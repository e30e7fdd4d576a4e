"""Options of `plait serve` that are about adapters."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plait.server.config import ServerConfig
from plait.spec.errors import UserError

Lora = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FOLDER of a LoRA adapter that clients may ask for as a model; may be repeated."),
]
LoraDir = Annotated[
    list[Path] | None,
    typer.Option(help="Adapters below this folder may be loaded later; with --admin-key; may be repeated."),
]
AdminKey = Annotated[
    str | None, typer.Option(help="Key that loads and unloads adapters; or set PLAIT_ADMIN_KEY.")
]


def adapters_of(named: Sequence[str] | None) -> tuple[tuple[str, Path], ...]:
    """(name, folder) of each NAME=FOLDER. Raises UserError for what is none, and for a name given twice."""
    found: dict[str, Path] = {}
    for each in named or ():
        name, _, folder = each.partition("=")
        if not name or not folder or name in found:
            raise UserError(f"--lora {each!r}: give NAME=FOLDER, each name once", "lora")
        found[name] = Path(folder)
    return tuple(found.items())


def guarded(server: ServerConfig, key: str | None, folders: Sequence[Path] | None) -> ServerConfig:
    """With an admin key, of the option or else of the environment. Raises UserError for one that is none."""
    key = os.environ.get("PLAIT_ADMIN_KEY") or None if key is None else key
    return replace(server, admin_key=key, lora_dirs=tuple(folders or ()))
