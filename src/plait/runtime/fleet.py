"""`WorkerFleet`: starts, watches and replaces workers, and turns their answers into one per step.

A worker's life, once per epoch:

    launched --Hello--> up --exit, silence--> lost --after a pause, epoch + 1--> launched ...
        `--Refusal--> given up (starting again would end the same way)

`LocalFleet` and `RayFleet` are this with different launchers.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plait.model.config import ModelConfig
from plait.runtime.driver import Sink
from plait.runtime.hub import Hub
from plait.runtime.launch import Launcher, Started
from plait.runtime.transfers import Transfers
from plait.spec.errors import EngineFailure, PlaitError, Unsupported
from plait.spec.event import StepFailed, WorkerLost, WorkerUp
from plait.spec.move import Move
from plait.spec.sampling import Opened
from plait.spec.step import Step
from plait.worker.config import LinkConfig, WorkerConfig
from plait.worker.wire import (
    Answer,
    Fault,
    Hello,
    Message,
    Order,
    Pulled,
    PullFault,
    Quit,
    Refusal,
    Source,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """How many workers there are, and when they count as lost."""

    instances: int = 1
    """Worker processes; each holds all weights."""
    interface: str = "127.0.0.1"
    """Address that the driver listens on for its workers."""
    silence_ns: int = 10_000_000_000
    """A worker that gives no sign of life for this long is killed and counts as lost."""
    start_ns: int = 300_000_000_000
    """A worker that is not ready after this long is killed."""
    restarts: int = 5
    """Starts in a row that may end before the worker is up, before it is given up."""
    pause_ns: int = 500_000_000
    """Wait before a restart, doubled with each failed start."""
    quit_ns: int = 5_000_000_000
    """Workers that were told to leave and are still there after this long are killed."""
    links: LinkConfig = field(default_factory=LinkConfig)
    """How keys and values travel between workers."""


@dataclass(slots=True)
class Member:
    """One instance: what is known of its present worker."""

    instance: int
    epoch: int = 0
    up: bool = False
    pid: int | None = None
    heard_ns: int = 0
    """When it last gave a sign of life."""
    kernels: str = ""
    failed_starts: int = 0
    refusal: str | None = None
    steps: dict[int, None] = field(default_factory=dict)
    """Steps sent to this epoch and not answered."""
    source: Source | None = None
    """Where others pull from it, while it is up."""
    process: Started | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """It is up for the first time, or given up."""


class WorkerFleet:
    """See the module. Everything runs in the driver's event loop."""

    def __init__(self, config: FleetConfig, model: ModelConfig, launcher: Launcher) -> None:
        self.config = config
        self.members = {i: Member(i) for i in range(config.instances)}
        self.watchers: list[Callable[[int, Answer | Pulled], None]] = []
        """Are told every answer to a step, and every move that was completed, with the instance."""
        self._model = model
        self._launcher = launcher
        self._secret = secrets.token_bytes(32)
        self._hub: Hub | None = None
        self._sink: Sink | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._close = asyncio.Event()
        self._transfers = Transfers(self._tell)

    @property
    def _closing(self) -> bool:
        return self._close.is_set()

    # ---- for the driver --------------------------------------------------------------------------

    async def start(self, sink: Sink) -> None:
        """Start all workers and wait until each is up or given up. See `Fleet`."""
        self._sink = sink
        self._hub = Hub(self._secret, self.config.interface)
        self._hub.start(self._heard)
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(member)) for member in self.members.values()]
        for member in self.members.values():
            await member.settled.wait()
        if not any(member.up for member in self.members.values()):
            raise self._hopeless()

    def submit(self, step: Step, opened: tuple[Opened, ...]) -> None:
        """See `Fleet`."""
        (instance,) = step.group
        self.members[instance].steps[step.id] = None
        self._tell(instance, Order(step, opened))

    def move(self, move: Move) -> None:
        """See `Fleet`."""
        assert self._sink is not None
        if self.members[move.target.instance].up:
            failed = self._transfers.begin(move, self.members[move.source.instance].source)
            if failed is not None:
                self._sink.post(failed)

    def cancel(self, move: int) -> None:
        """See `Fleet`."""
        self._transfers.cancel(move)

    def _tell(self, instance: int, message: Message) -> None:
        assert self._hub is not None
        self._hub.send(self._config_of(self.members[instance]).identity, message)

    async def close(self) -> None:
        """See `Fleet`."""
        self._close.set()
        if self._hub is None:
            return
        for member in self.members.values():
            if member.up:
                self._hub.send(self._config_of(member).identity, Quit())
            elif member.process is not None:
                await member.process.kill()
        await self._leave()
        await self._hub.close()
        await self._launcher.close()

    async def _leave(self) -> None:
        """Until every worker is gone: asked first, killed when they take too long."""
        if not self._keepers:
            return
        _, late = await asyncio.wait(self._keepers, timeout=self.config.quit_ns / 1e9)
        for member in self.members.values():
            if late and member.process is not None:
                await member.process.kill()
        if late:
            await asyncio.wait(late)

    # ---- a worker's life -------------------------------------------------------------------------

    async def _keep(self, member: Member) -> None:
        """Run worker after worker of one instance until it is given up or the fleet closes."""
        while not self._closing:
            await self._run_epoch(member)
            if self._closing or member.refusal or member.failed_starts > self.config.restarts:
                break
            pause_s = self.config.pause_ns / 1e9 * 2 ** max(0, member.failed_starts - 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._close.wait(), pause_s)
        started = member.settled.is_set()
        member.settled.set()
        if started and not self._closing and not any(other.up for other in self.members.values()):
            assert self._sink is not None
            self._sink.fail(self._hopeless())

    async def _run_epoch(self, member: Member) -> None:
        assert self._hub is not None
        member.epoch += 1
        config = self._config_of(member)
        self._hub.expect(config.identity)
        member.heard_ns = time.monotonic_ns()
        try:
            member.process = await self._launcher.launch(config)
            member.pid = getattr(member.process, "pid", None)
            status = await self._watch(member, member.process)
        finally:
            self._hub.forget(config.identity)
        if member.up:
            self._lost(member, status)
        elif not self._closing:
            member.failed_starts += 1
            log.warning("worker %s did not start (status %s)", config.identity.decode(), status)

    async def _watch(self, member: Member, process: Started) -> int:
        """Until the process is gone; kills it when it is silent for too long."""
        began_ns = time.monotonic_ns()
        waiting = asyncio.get_running_loop().create_task(process.wait())
        while not waiting.done():
            await asyncio.wait([waiting], timeout=0.5)
            now_ns = time.monotonic_ns()
            silent = now_ns - member.heard_ns > self.config.silence_ns and member.up
            late = now_ns - began_ns > self.config.start_ns and not member.up
            if silent or late:
                log.warning("worker %d gives no sign of life; killing it", member.instance)
                await process.kill()
        return waiting.result()

    def _lost(self, member: Member, status: int) -> None:
        member.up, member.source = False, None
        member.steps.clear()
        self._transfers.lost(member.instance)
        if self._sink is not None and not self._closing:
            log.warning("worker %d.%d was lost (status %d)", member.instance, member.epoch, status)
            self._sink.post(WorkerLost(member.instance, member.epoch))

    def _hopeless(self) -> PlaitError:
        """Why no worker runs."""
        for member in self.members.values():
            if member.refusal:
                return Unsupported(member.refusal)
        return EngineFailure("no worker stays up; their reasons are in the log above")

    # ---- what workers say ------------------------------------------------------------------------

    def _heard(self, identity: bytes, message: Message) -> None:
        instance, epoch = (int(part) for part in identity.split(b"."))
        member = self.members[instance]
        if epoch != member.epoch or self._sink is None:
            return
        member.heard_ns = time.monotonic_ns()
        match message:
            case Hello():
                member.up, member.failed_starts, member.kernels = True, 0, message.kernels
                member.source = Source(identity, message.address, message.shard)
                member.settled.set()
                self._sink.post(WorkerUp(instance, epoch, message.slots))
            case Refusal():
                member.refusal = message.reason
            case Answer():
                for watch in self.watchers:
                    watch(instance, message)
                if message.step in member.steps:
                    del member.steps[message.step]
                    self._sink.answered(message.step, message.draws)
            case Pulled() | PullFault():
                self._moved(instance, message)
            case Fault():
                if message.step in member.steps:
                    del member.steps[message.step]
                    self._sink.post(StepFailed(message.step, message.reason))

    def _moved(self, instance: int, message: Pulled | PullFault) -> None:
        assert self._sink is not None
        event = self._transfers.answered(instance, message)
        if event is None:
            return
        if isinstance(message, Pulled):
            for watch in self.watchers:
                watch(instance, message)
        else:
            log.info("move %d into instance %d failed: %s", message.move, instance, message.reason)
        self._sink.post(event)

    def _config_of(self, member: Member) -> WorkerConfig:
        assert self._hub is not None
        return WorkerConfig(
            instance=member.instance,
            epoch=member.epoch,
            address=self._hub.address,
            secret=self._secret.hex(),
            model=self._model,
            links=self.config.links,
        )
