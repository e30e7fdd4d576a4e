"""`Evaluator`: measured performances of policies, each measured once, in parallel, and never lost.

Labels are lines of JSON that are only ever appended and are flushed to disk one by one. A line names the
space, the policy, the fidelity, the seed and a hash of everything else that a measurement depends on (the
protocol); a measurement whose line is there is not made again. So a search is resumed by running it again.
"""

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy

log = logging.getLogger(__name__)

VERSION = 1


class Fidelity(StrEnum):
    """How much a measurement costs, and how near it is to the last one."""

    L0 = "L0"
    """No training: prune, quantise, calibrate, norms anew."""
    L1 = "L1"
    """A short training."""
    L2 = "L2"
    """The whole training."""


class Measurer(Protocol):
    """A task, ready to measure; made once in each process."""

    def measure(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """Metrics by name; `score` is the one that searches maximise."""


class Task(Protocol):
    """What is measured: hashable plain data, so that it can be sent to other processes."""

    @property
    def protocol(self) -> str:
        """A hash that changes with anything, except fidelity and seed, that a measurement depends on."""

    def open(self) -> Measurer:
        """Load what measuring needs."""


@dataclass(frozen=True, slots=True)
class Label:
    """One measurement."""

    space: str
    """The space's digest."""
    policy: CompressionPolicy
    fidelity: Fidelity
    protocol: str
    seed: int
    metric: dict[str, float]
    seconds: float
    """Wall time of the measurement."""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Equal where measuring again would be a repetition."""
        return self.space, self.policy.json(), self.fidelity, self.protocol, self.seed

    def line(self) -> str:
        """Its line of the file."""
        told = asdict(self) | {"v": VERSION, "policy": json.loads(self.policy.json())}
        return json.dumps(told) + "\n"

    @staticmethod
    def parse(line: str) -> "Label":
        """Read a line."""
        told = json.loads(line)
        if told.pop("v") != VERSION:
            raise UserError("the labels are of another version: name another file", "labels")
        policy = CompressionPolicy.parse(json.dumps(told.pop("policy")))
        return Label(policy=policy, fidelity=Fidelity(told.pop("fidelity")), **told)


class Labels:
    """The file of labels."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that was cut off in writing is dropped.

        Raises:
            UserError: a line before the last is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.found: dict[tuple[str, str, str, str, int], Label] = {}
        text = path.read_text()
        whole, _, torn = text.rpartition("\n")
        if torn:
            log.warning("%s ends within a line; it is dropped", path)
            os.truncate(path, len((whole + "\n").encode()) if whole else 0)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                label = Label.parse(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number} is no label: remove it, or name another file", "labels"
                ) from error
            self.found[label.key] = label

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile.

        Raises:
            UserError: another search has the file.
        """
        with self.path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another search writes to {self.path}: wait for it", "labels") from error
            yield

    def add(self, label: Label) -> None:
        """Append a label; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(label.line())
            file.flush()
            os.fsync(file.fileno())
        self.found[label.key] = label


@dataclass(frozen=True, slots=True)
class EvaluatorConfig:
    """How measurements are made."""

    processes: int = 1
    """Measurements at a time, each in a process of its own; 0: in this process."""


class Evaluator:
    """Measures policies of one space for one task."""

    def __init__(self, task: Task, space: str, labels: Labels, config: EvaluatorConfig | None = None) -> None:
        self.task, self.space, self.labels = task, space, labels
        self.config = config or EvaluatorConfig()
        self.made = 0
        """Measurements that this evaluator really made."""

    def measure(self, policies: Sequence[CompressionPolicy], fidelity: Fidelity, seed: int) -> list[Label]:
        """Labels of all policies, in their order; those that are known are not measured.

        Raises:
            UserError: a measurement failed or gave no number. All others are on disk by then.
        """
        keys = [(self.space, p.json(), fidelity, self.task.protocol, seed) for p in policies]
        missing = {key: p for key, p in zip(keys, policies, strict=True) if key not in self.labels.found}
        wrong = []
        with self.labels.alone():
            for policy, metric, seconds in self._run(list(missing.values()), fidelity, seed):
                if not all(math.isfinite(value) for value in metric.values()):
                    wrong.append(policy)
                    continue
                told = (self.space, policy, fidelity, self.task.protocol, seed, metric, seconds)
                self.labels.add(Label(*told))
                self.made += 1
        if wrong:
            raise UserError(
                f"{len(wrong)} of {len(missing)} measurements gave no number, first {wrong[0].json()}: "
                "train with a smaller rate, or take the lowest bits out of the space",
                "labels",
            )
        return [self.labels.found[key] for key in keys]

    def _run(
        self, policies: Sequence[CompressionPolicy], fidelity: Fidelity, seed: int
    ) -> Iterable[tuple[CompressionPolicy, dict[str, float], float]]:
        """Measurements as they come."""
        if not policies:
            return
        if not self.config.processes:
            yield from (_measured(self.measurer, policy, fidelity, seed) for policy in policies)
            return
        running: set[Future[tuple[CompressionPolicy, dict[str, float], float]]] = {
            self._pool.submit(_measure_there, self.task, policy, fidelity, seed) for policy in policies
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    @cached_property
    def measurer(self) -> Measurer:
        """The task, opened in this process."""
        return self.task.open()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """Processes that keep the task open; they end with the evaluator."""
        return ProcessPoolExecutor(self.config.processes, get_context("spawn"))


def _measured(
    measurer: Measurer, policy: CompressionPolicy, fidelity: Fidelity, seed: int
) -> tuple[CompressionPolicy, dict[str, float], float]:
    begin = time.perf_counter()
    metric = measurer.measure(policy, fidelity, seed)
    return policy, metric, time.perf_counter() - begin


@lru_cache(maxsize=1)
def _opened(task: Task) -> Measurer:
    """Once in each measuring process."""
    os.nice(10)  # the process that decides stays quick
    return task.open()


def _measure_there(
    task: Task, policy: CompressionPolicy, fidelity: Fidelity, seed: int
) -> tuple[CompressionPolicy, dict[str, float], float]:
    return _measured(_opened(task), policy, fidelity, seed)
