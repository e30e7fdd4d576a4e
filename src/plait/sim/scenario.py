"""`Scenario`: the serving core on virtual instances under a workload."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from plait.cost.cost import Cost
from plait.rlhf.core import RlhfCore
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Copies, Network
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Placement, Role, incomplete
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event, WorkerUp
from plait.spec.request import Request
from plait.workload.journal import Observer
from plait.workload.trace import TraceRow

PARTED = (Role.PREFILL, Role.DECODE, Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE)
"""Roles that take one phase: requests are moved between their instances."""


def core_from(config: Mapping[str, Any]) -> RlhfCore:
    """A fresh core from the configuration in a journal's header. Where no `Rollout` comes it is its manager.

    Raises:
        UserError: it is not a serving core's.
    """
    try:
        return RlhfCore(GlobalManager(msgspec.convert(dict(config), ManagerConfig)))
    except msgspec.ValidationError as error:
        raise UserError(f"the journal's header does not configure a serving core: {error}") from error


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated, without the requests."""

    placement: Placement
    """Its instances are ready, with empty pools and in their roles, before anything arrives."""
    cost: Cost
    """Of a step, whose `group` says which instance runs it: `ByInstance` where plans differ. If it is
    `Staged`, steps follow each other through the stages."""
    slots: int | Mapping[int, int]
    """KV token slots of each instance: one figure for all, or one by id."""
    config: ManagerConfig = field(default_factory=ManagerConfig)
    """Its placement becomes the scenario's."""
    network: Network | None = None
    """What requests are moved on; needed where some instances only prefill or only decode."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", replace(self.config, placement=self.placement))
        roles = [each.role for each in self.placement.instances]
        if lack := incomplete(roles):
            raise UserError(f"a placement needs {lack}", "placement")
        if self.network is None and any(role in PARTED for role in roles):
            raise UserError("prefill and decode are on different instances: name the network between them")

    def run(
        self,
        rows: Sequence[TraceRow],
        observers: Iterable[Observer] = (),
        *,
        max_tokens: int | None = None,
        faults: Iterable[tuple[int, Event]] = (),
    ) -> int:
        """Serve a trace in virtual time; returns the number of events handled.

        Args:
            rows: the requests; row i is request i.
            observers: see every call of the core: a `Recorder`, a `Timeline`, a `Journal`.
            max_tokens: what callers ask for, which is all that the core knows of output lengths (longer
                outputs are cut to it); None: exactly the output length of each row.
            faults: (time, event) of what else happens.
        """
        instances = self.placement.instances
        ups = [(0, WorkerUp(each.id, 0, self.slots_of(each.id))) for each in instances]
        arrivals = [self._arrival(i, row, max_tokens) for i, row in enumerate(rows)]
        nodes = {each.id: each.node for each in instances}
        copies = None if self.network is None else Copies(self.network, nodes)
        hands = VirtualWorkers(self.cost, arrivals, copies)
        inputs = [*ups, *faults, *((each.at_ns, Arrived(each.request)) for each in arrivals)]
        return World(GlobalManager(self.config), hands, tuple(observers)).run(inputs)

    def slots_of(self, instance: int) -> int:
        """KV token slots of one instance."""
        return self.slots if isinstance(self.slots, int) else self.slots[instance]

    def _arrival(self, number: int, row: TraceRow, max_tokens: int | None) -> Arrival:
        hashes = row.hashes(self.config.page)
        limit = row.output_tokens if max_tokens is None else max_tokens
        request = Request(number, row.prompt_tokens, limit, hashes, model=self.config.model)
        return Arrival(row.arrival_ns, request, row.output_tokens)
