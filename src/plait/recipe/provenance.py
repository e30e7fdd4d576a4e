"""`Provenance`: where the result of a stage comes from, kept beside it in provenance.json.

It is written when a stage begins and again when it has ended, then with the hash of what it left. A stage
whose recipe and inputs have the digest of its provenance, and whose result is as it was left, is done.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from plait import __version__
from plait.spec.errors import UserError

FILE = "provenance.json"
PACKAGES = ("numpy", "pydantic", "tokenizers", "torch", "transformers")
"""Whose versions are noted."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """See the module."""

    stage: str
    recipe: Mapping[str, Any]
    """The stage's section."""
    seed: int
    inputs: Mapping[str, str]
    """Hashes (SHA-256) of the files and weights that are read, by key."""
    parents: Mapping[str, str]
    """Digests of the provenances of the stages before."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Plait, Python and packages that compute. Other versions do not make another digest."""
    result: str = ""
    """What was left, in the stage's folder."""
    result_sha256: str = ""
    """Of it; empty: the stage has not ended."""
    seconds: float = 0.0
    """That the stage took, from where it last went on."""
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe_sha256(self) -> str:
        """Of the section alone."""
        return _digest(self.recipe)

    @property
    def digest(self) -> str:
        """Of recipe, inputs and parents."""
        return _digest([self.stage, self.recipe, dict(self.inputs), dict(self.parents)])

    def ended(self, result: Path, seconds: float, metrics: Mapping[str, Any]) -> "Provenance":
        """The same of a stage that has left `result`."""
        hashed = hash_of(result)
        return replace(self, result=result.name, result_sha256=hashed, seconds=seconds, metrics=metrics)

    def holds(self, folder: Path) -> bool:
        """The stage has ended, and its result in the folder is as it was left."""
        result = folder / self.result
        return bool(self.result_sha256) and result.exists() and hash_of(result) == self.result_sha256

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        hashes = {"recipe_sha256": self.recipe_sha256, "digest": self.digest}
        partial = folder / f".{FILE}.partial"
        partial.write_text(json.dumps(asdict(self) | hashes, indent=2) + "\n")
        partial.replace(folder / FILE)

    @staticmethod
    def load(folder: Path) -> "Provenance | None":
        """Of a stage's folder; None: nothing was begun there.

        Raises:
            UserError: the folder holds what no stage wrote, or its provenance cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    f"{folder} holds what no recipe wrote: give another --out, or remove it", "out"
                )
            return None
        try:
            told = json.loads(path.read_text())
            return Provenance(**{name: told[name] for name in Provenance.__dataclass_fields__})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a provenance: remove {folder} to run it again", "out") from error


def versions() -> dict[str, str]:
    """Of Plait, Python and those of `PACKAGES` that are installed."""
    found = {"plait": __version__, "python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that this run does without
    return found


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    below = sorted(each for each in path.rglob("*") if each.is_file())
    return _digest([(str(each.relative_to(path)), hash_of(each)) for each in below])


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
