"""`Errand`: a search for roles as one JSON object, so that a process of its own can run it.

stdin: an errand --> `python -m plait.planner` --> stdout: `Answer`
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from plait.cost.catalog import shape_named
from plait.cost.measured import measured_named
from plait.planner.cluster import read_cluster
from plait.planner.placed import placed
from plait.planner.plans import Plans
from plait.planner.roles import Roles, RolesConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Placement
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow

POLITENESS = 10
"""Niceness of the process: those that serve go first."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What stays the same from one search to the next."""

    model: str
    """A model folder, or a shape known by name."""
    cluster: str
    """A cluster file."""
    slo: Slo
    cost: str = "roofline"
    """As `plait plan --cost`."""
    manager: ManagerConfig = field(default_factory=ManagerConfig)
    """Of the core that serves; its placement has the instances."""
    slots: int | None = None
    """KV tokens of each instance; None: what its devices have room for."""
    search: RolesConfig = field(default_factory=RolesConfig)

    def roles(self) -> Roles:
        """The search.

        Raises:
            UserError: the cluster or the costs cannot be read, or the cluster cannot have these instances, or
                some of them form groups: those follow the workload by themselves.
        """
        if any(each.role.elastic for each in self.manager.placement.instances):
            raise UserError("elastic instances follow the workload already: leave out --replan", "replan")
        cluster = read_cluster(Path(self.cluster))
        measured = measured_named(self.cost, self.model, cluster.device.name)
        plans = Plans(shape_named(self.model), cluster, measured)
        placed(self.manager.placement, plans)
        return Roles(plans, self.slo, self.manager, self.slots, self.search)


@dataclass(frozen=True, slots=True)
class Question:
    """One search."""

    errand: Errand
    present: Placement
    rows: tuple[TraceRow, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it."""

    placement: Placement | None
    """None: `error` says why there is none."""
    error: str = ""


def main() -> int:
    """Answer one question."""
    os.nice(POLITENESS)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    try:
        answer = Answer(question.errand.roles().best(question.rows, question.present))
    except UserError as error:
        answer = Answer(None, str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0
