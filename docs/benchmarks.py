"""Writes docs/benchmarks.md from bench/results: `python docs/benchmarks.py`, or `make docs`.

No figure in it is written by hand: each comes from a full run of a script in bench/, which is kept with the
command, the commit and the machine that it ran on.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made from [bench/results](../bench/results) by `python docs/benchmarks.py`. Each line is one full run, kept
with its command, commit and machine; `--quick` runs a smaller sample of the same. A bar is what was set out
to be reached before anything was measured; those that are missed stay here. Figures are ratios where they can
be, since machines are noisy. Simulated means the core itself in virtual time, on a stated cost model; paced
means real workers whose answers come at the times of such a model.
"""


@dataclass(frozen=True)
class Run:
    """A full run that is kept."""

    path: Path
    kept: Mapping[str, Any]

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """Its figures."""
        result = self.kept["result"]
        return list(result["parts"] or [result])

    @property
    def about(self) -> str:
        """First line of the script's docstring."""
        script = next(word for word in self.kept["command"].split() if word.endswith(".py"))
        source = (ROOT / script).read_text()
        return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]

    @property
    def machine(self) -> str:
        """In words."""
        found = self.kept["machine"]
        return f"{found['cores']} cores of {found['cpu']}, torch {found['packages'].get('torch', 'absent')}"


def runs() -> list[Run]:
    """All of them, by name; of data sets and other files that lie there, none."""
    found = [(path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return [Run(path, kept) for path, kept in found if isinstance(kept, dict) and "result" in kept]


def page(found: list[Run]) -> str:
    """The page."""
    return "\n".join([HEAD, *_overview(found), *(line for run in found for line in _section(run))]) + "\n"


def _overview(found: list[Run]) -> Iterator[str]:
    yield "| bench | what it measures | bars that hold |"
    yield "|---|---|---|"
    for run in found:
        barred = [part for part in run.parts if part["bar"] is not None]
        held = f"{sum(part['holds'] for part in barred)} of {len(barred)}" if barred else "reported"
        yield f"| [{run.path.stem}](#{run.path.stem.replace('.', '')}) | {run.about} | {held} |"
    yield ""


def _section(run: Run) -> Iterator[str]:
    yield f"## {run.path.stem}\n"
    yield f"`{run.kept['command']}`, commit {run.kept['commit']}, {run.machine}.\n"
    yield "| figure | value | bar | |"
    yield "|---|---|---|---|"
    for part in run.parts:
        bar = "" if part["bar"] is None else f"{part['bar']:,.5g}"
        said = "" if part["bar"] is None else "holds" if part["holds"] else "**missed**"
        between = part.get("interval")
        spread = f" ({between[0]:,.4g} to {between[1]:,.4g})" if between and between[0] != between[1] else ""
        yield f"| {part['claim'].replace('|', '/')} | {part['value']:,.5g}{spread} | {bar} | {said} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(runs()))
