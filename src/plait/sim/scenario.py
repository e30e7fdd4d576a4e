"""`Scenario`: the serving core on virtual instances under a workload."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from plait.cost.cost import Cost
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.workers import Arrival, run
from plait.spec.cluster import Placement
from plait.spec.errors import UserError
from plait.spec.event import Event, WorkerUp
from plait.spec.request import Request
from plait.workload.journal import Observer
from plait.workload.trace import TraceRow


def core_from(config: Mapping[str, Any]) -> GlobalManager:
    """A fresh core from the configuration in a journal's header.

    Raises:
        UserError: it is not a serving core's.
    """
    try:
        return GlobalManager(msgspec.convert(dict(config), ManagerConfig))
    except msgspec.ValidationError as error:
        raise UserError(f"the journal's header does not configure a serving core: {error}") from error


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated, without the requests."""

    placement: Placement
    """Its instances are ready, with empty pools, before anything arrives."""
    cost: Cost
    slots: int
    """KV token slots of each instance."""
    config: ManagerConfig = field(default_factory=ManagerConfig)

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
        ups = [(0, WorkerUp(each.id, 0, self.slots)) for each in self.placement.instances]
        arrivals = [self._arrival(i, row, max_tokens) for i, row in enumerate(rows)]
        core = GlobalManager(self.config)
        return run(core, arrivals, self.cost, events=[*ups, *faults], observers=observers)

    def _arrival(self, number: int, row: TraceRow, max_tokens: int | None) -> Arrival:
        hashes = row.hashes(self.config.page)
        limit = row.output_tokens if max_tokens is None else max_tokens
        request = Request(number, row.prompt_tokens, limit, hashes, model=self.config.model)
        return Arrival(row.arrival_ns, request, row.output_tokens)
