"""Long simulated searches that go on where they were stopped. Not a bench of its own.

What a search found is kept in runs/NAME/CODE, by what was searched; CODE stands for everything that decides
the result, so that nothing is taken from another version.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Found = float | dict[float, float]
ROOT = Path(__file__).parents[1]
DECIDING = ("spec", "cost", "search", "serving", "sim", "workload")
"""Packages by whose code a simulation runs."""


def _code(benches: Iterable[str]) -> str:
    packages = (ROOT / "src" / "plait" / name for name in DECIDING)
    files = sorted(path for package in packages for path in package.rglob("*.py"))
    files += [ROOT / "bench" / name for name in benches]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


class Kept:
    """Figures of one bench."""

    def __init__(self, name: str, *benches: str) -> None:
        """`benches`: files in bench/ that decide the result."""
        self.folder = ROOT / "runs" / name / _code(benches)

    def map(
        self, pool: ProcessPoolExecutor, find: Callable[[Item], Found], items: Sequence[Item]
    ) -> list[Found]:
        """`find` of each item, in their order; computed are those that were not before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = {pool.submit(find, item): item for item in items if not self._path(item).exists()}
        for future in as_completed(begun):
            self._write(begun[future], future.result())
        return [self._read(item) for item in items]

    def _write(self, item: object, found: Found) -> None:
        """Whole or not at all: a run may be stopped at any time."""
        pairs = list(found.items()) if isinstance(found, dict) else found
        draft = self._path(item).with_suffix(".draft")
        draft.write_text(json.dumps({"item": repr(item), "found": pairs}))
        draft.replace(self._path(item))

    def _path(self, item: object) -> Path:
        return self.folder / f"{hashlib.sha256(repr(item).encode()).hexdigest()[:16]}.json"

    def _read(self, item: object) -> Found:
        found = json.loads(self._path(item).read_text())["found"]
        return {float(key): value for key, value in found} if isinstance(found, list) else found
