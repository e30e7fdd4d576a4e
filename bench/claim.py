"""What every bench script shares: `--quick`, a table, one JSON object as the last line, results kept.

A claim is `{"claim", "value", "bar", "holds", "parts"}`; a script exits 0 exactly when its claim holds. Full
runs are kept in bench/results as NAME-FINGERPRINT.json and .md, with what is needed to make them again.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("plait", "torch", "transformers", "numpy", "msgspec")
"""Their versions are part of a machine's fingerprint."""


@dataclass(frozen=True)
class Claim:
    """One figure and the bar that it is held against, or several of them."""

    claim: str
    value: float
    bar: float | None
    """None: the figure is reported, with its interval, and no threshold is set."""
    holds: bool
    interval: tuple[float, float] | None = None
    """Lowest and highest of the repetitions whose median `value` is."""
    parts: tuple["Claim", ...] = field(default=())
    stored: bool = False
    """Held against figures of the full run that is kept for this machine."""

    def json(self) -> dict[str, Any]:
        """The object of the last line."""
        found = asdict(self) | {"parts": [part.json() for part in self.parts]}
        if self.interval is None:
            del found["interval"]
        if not self.stored:
            del found["stored"]
        return found


def at_most(claim: str, value: float, bar: float) -> Claim:
    """Holds when the figure is not above its bar."""
    return Claim(claim, value, bar, value <= bar)


def at_least(claim: str, value: float, bar: float) -> Claim:
    """Holds when the figure is not below its bar."""
    return Claim(claim, value, bar, value >= bar)


def reported(claim: str, value: float, interval: tuple[float, float]) -> Claim:
    """A figure without a bar; it holds because it was produced."""
    return Claim(claim, value, None, True, interval)


def together(claim: str, parts: Sequence[Claim]) -> Claim:
    """Holds when all parts hold; its value is how many do."""
    held = sum(part.holds for part in parts)
    return Claim(claim, held, len(parts), bool(parts) and held == len(parts), parts=tuple(parts))


def highest(holds: Callable[[float], bool], low: float, high: float, step: float) -> float:
    """The highest value that holds, to a factor of `step`, by bisection of the logarithm.

    `low` is taken to hold.
    """
    while high / low > step:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse `--quick` and `--seed`; the script's docstring is its help."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a smaller sample of the same work, under 60 s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What a result depends on besides the code."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def fingerprint() -> str:
    """Eight hex digits that are equal exactly where `machine()` is."""
    return hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:8]


def stored(name: str) -> dict[str, Any] | None:
    """The full run of `name` that is kept for this machine, or None."""
    path = RESULTS / f"{name}-{fingerprint()}.json"
    return json.loads(path.read_text()) if path.exists() else None


def finish(name: str, claim: Claim, options: argparse.Namespace) -> NoReturn:
    """Print the table and the JSON line, keep a full run, exit with 0 if the claim holds and 1 if not."""
    Console(width=110).print(_table(claim))
    if not options.quick:
        _keep(name, claim, options.seed)
    print(json.dumps(claim.json()))
    sys.exit(0 if claim.holds else 1)


def _table(claim: Claim) -> Table:
    table = Table("part", "value", "bar", "holds", title=claim.claim, title_justify="left")
    for part in claim.parts or (claim,):
        spread = f" ({part.interval[0]:,.5g} .. {part.interval[1]:,.5g})" if part.interval else ""
        bar = "reported" if part.bar is None else f"{part.bar:,.5g}"
        table.add_row(part.claim, f"{part.value:,.5g}{spread}", bar, "yes" if part.holds else "NO")
    return table


def _keep(name: str, claim: Claim, seed: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{fingerprint()}.json"
    recipe = {
        "commit": _commit(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "seed": seed,
        "machine": machine(),
    }
    path.write_text(json.dumps(recipe | {"result": claim.json()}, indent=2) + "\n")
    lines = [f"# {claim.claim}", "", "| part | value | bar | holds |", "|---|---|---|---|"]
    for part in claim.parts or (claim,):
        bar = "reported" if part.bar is None else f"{part.bar:,.5g}"
        lines.append(f"| {part.claim} | {part.value:,.5g} | {bar} | {'yes' if part.holds else 'no'} |")
    lines += ["", *(f"- {key}: {value}" for key, value in recipe.items())]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _commit() -> str:
    """The commit that was measured, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no git repository"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    wanted = ("model name", "cpu family", "model", "stepping")
    return " ".join(named[key] for key in wanted if key in named) or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
