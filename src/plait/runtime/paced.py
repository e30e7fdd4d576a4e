"""`PacedFleet`: real workers, stated time.

Several instances on a few cores are not several devices. Here workers compute each step for real,
and its answer is delivered no earlier than a cost model says a device of its own would have taken:
tokens real, time stated. Results obtained this way are labelled "paced".
"""

import asyncio
from collections.abc import Callable, Mapping

from plait.cost.cost import Cost
from plait.runtime.alarms import Alarm, Alarms
from plait.runtime.driver import Fleet, Sink
from plait.runtime.paced_moves import PacedMoves
from plait.sim.copies import Network
from plait.sim.lanes import Lanes
from plait.spec.adapter import Adapter
from plait.spec.errors import PlaitError
from plait.spec.event import Event, Moved, MoveFailed, StepFailed, WorkerLost
from plait.spec.move import Move
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Step


class PacedFleet:
    """Wraps a fleet. Steps end when they would in a simulation: see `Lanes`."""

    def __init__(
        self, inner: Fleet, cost: Cost, network: Network | None = None, nodes: Mapping[int, int] | None = None
    ) -> None:
        """`network`: what moves travel on; None: they take as long as they do. `nodes`: instance -> node."""
        self.inner = inner
        self._lanes = Lanes.of(cost)
        self._sink: Sink | None = None
        self._due: dict[int, tuple[float, tuple[int, ...]]] = {}
        """Step -> when it may be answered, and its group."""
        self._alarms = Alarms()
        self._late: dict[int, tuple[Alarm, tuple[int, ...]]] = {}
        self._spans_ns: dict[int, tuple[int, int]] = {}
        """Step that is not answered -> its start and end, in the event loop's time."""
        self._moves: PacedMoves | None = None
        if network is not None:
            self._moves = PacedMoves(network, nodes or {}, self._alarms, self._deliver)

    async def start(self, sink: Sink) -> None:
        """See `Fleet`."""
        self._sink = sink
        await self.inner.start(self)

    def submit(self, step: Step, opened: tuple[Opened, ...]) -> None:
        """See `Fleet`."""
        start_ns, end_ns = self._lanes.take(step, int(asyncio.get_running_loop().time() * 1e9))
        self._due[step.id] = (end_ns / 1e9, step.group)
        self._spans_ns[step.id] = start_ns, end_ns
        self.inner.submit(step, opened)

    def move(self, move: Move) -> None:
        """See `Fleet`."""
        if self._moves is not None:
            self._moves.begin(move, self._spans_ns.get(max(move.after, default=-1)))
        self.inner.move(move)

    def cancel(self, move: int) -> None:
        """See `Fleet`."""
        if self._moves is not None:
            self._moves.cancel(move)
        self.inner.cancel(move)

    async def load(self, version: int, folder: str, files: dict[str, str]) -> None:
        """See `Fleet`; it is not paced."""
        await self.inner.load(version, folder, files)

    async def adapt(self, adapter: Adapter) -> None:
        """See `Fleet`."""
        await self.inner.adapt(adapter)

    def unadapt(self, number: int) -> None:
        """See `Fleet`."""
        self.inner.unadapt(number)

    async def kill(self, instance: int) -> None:
        """See `Fleet`."""
        await self.inner.kill(instance)

    async def close(self) -> None:
        """See `Fleet`."""
        for timer, _ in self._late.values():
            timer.cancel()
        self._late.clear()
        if self._moves is not None:
            self._moves.close()
        self._alarms.close()
        await self.inner.close()

    # ---- what the inner fleet says ---------------------------------------------------------------

    def answered(self, step: int, draws: tuple[Draw, ...]) -> None:
        """See `Sink`."""
        assert self._sink is not None
        sink = self._sink
        self._hold(step, lambda: sink.answered(step, draws))

    def post(self, event: Event) -> None:
        """See `Sink`."""
        assert self._sink is not None
        sink = self._sink
        if isinstance(event, StepFailed):
            self._hold(event.step, lambda: sink.post(event))
            return
        if isinstance(event, Moved | MoveFailed) and self._moves is not None:
            self._moves.answered(event)
            return
        if isinstance(event, WorkerLost):
            self._forget(event.instance)
        sink.post(event)

    def fail(self, error: PlaitError) -> None:
        """See `Sink`."""
        assert self._sink is not None
        self._sink.fail(error)

    def _deliver(self, event: Event) -> None:
        assert self._sink is not None
        self._sink.post(event)

    def _hold(self, step: int, deliver: Callable[[], None]) -> None:
        """Deliver when the step is due. Steps of a lane are due in order, so answers stay in order."""
        due_s, group = self._due.pop(step)

        def now() -> None:
            del self._late[step]
            self._spans_ns.pop(step, None)
            deliver()

        self._late[step] = (self._alarms.at(due_s, now), group)

    def _forget(self, instance: int) -> None:
        """A lost instance's answers that were still held back are lost with it."""
        for step, (timer, group) in list(self._late.items()):
            if instance in group:
                timer.cancel()
                del self._late[step]
                self._spans_ns.pop(step, None)
        for step in [step for step, (_, group) in self._due.items() if instance in group]:
            self._spans_ns.pop(step, None)
        if self._moves is not None:
            self._moves.lost(instance)
        self._due = {step: due for step, due in self._due.items() if instance not in due[1]}
        self._lanes.lost(instance)
