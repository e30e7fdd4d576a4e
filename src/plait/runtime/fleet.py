"""`WorkerFleet`: starts, watches and replaces workers, and turns their answers into one per step.

A worker's life, once per epoch:

    launched --Hello--> up --exit, silence--> lost --after a pause, epoch + 1--> launched ...
        `--Refusal--> given up (starting again would end the same way)

An instance of tp x pp has so many processes. They live and die together: it is up when all are, and lost when
one is, and the next epoch starts all anew. All get every step; one of them answers for all.

`LocalFleet` and `RayFleet` are this with different launchers.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from plait.model.config import ModelConfig, Rank
from plait.runtime.adapting import Adapting
from plait.runtime.driver import Sink
from plait.runtime.gather import Gather
from plait.runtime.hub import Hub
from plait.runtime.launch import Launcher, Started
from plait.runtime.transfers import Transfers
from plait.spec.adapter import Adapter
from plait.spec.cluster import Instance, Placement
from plait.spec.errors import EngineFailure, PlaitError, Unsupported
from plait.spec.event import MoveFailed, StepFailed, WorkerLost, WorkerUp
from plait.spec.move import Move
from plait.spec.sampling import Opened
from plait.spec.step import Step
from plait.worker.config import LinkConfig, WorkerConfig
from plait.worker.wire import (
    Answer,
    Fault,
    HasAdapter,
    Hello,
    LacksAdapter,
    Load,
    Loaded,
    LoadFault,
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
    """Each holds all weights."""
    placement: Placement = field(default_factory=Placement)
    """How many processes (tp x pp) each instance has; those that are not named have one."""
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
class Process:
    """One process of an instance, in one epoch."""

    config: WorkerConfig
    heard_ns: int
    """When it last gave a sign of life."""
    hello: Hello | None = None
    """What it said when it was ready."""
    process: Started | None = None
    adapters: set[int] = field(default_factory=set)
    """Numbers of those that it said it has."""

    @property
    def pid(self) -> int | None:
        """Its process id, where the launcher knows one."""
        return getattr(self.process, "pid", None)


@dataclass(slots=True)
class Member:
    """One instance: what is known of its present worker."""

    instance: int
    tp: int = 1
    pp: int = 1
    epoch: int = 0
    up: bool = False
    parts: list[Process] = field(default_factory=list)
    """Its processes, in the order of their ranks."""
    kernels: str = ""
    failed_starts: int = 0
    refusal: str | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """It is up for the first time, or given up."""
    loaded: dict[bytes, Loaded | LoadFault] = field(default_factory=dict)
    """What its processes said of the last weights."""

    @property
    def pid(self) -> int | None:
        """Of its first process."""
        return self.parts[0].pid if self.parts else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where others pull from it; none while it is not up."""
        if not self.up:
            return ()
        told = [(part.config.identity, part.hello) for part in self.parts if part.hello is not None]
        return tuple(Source(identity, hello.address, hello.shard) for identity, hello in told)

    async def kill(self) -> None:
        """End all its processes."""
        for part in self.parts:
            if part.process is not None:
                await part.process.kill()


class WorkerFleet:
    """See the module. Everything runs in the driver's event loop."""

    def __init__(self, config: FleetConfig, model: ModelConfig, launcher: Launcher) -> None:
        self.config = config
        named = {each.id: each for each in config.placement.instances}
        shapes = [named.get(i, Instance(i)) for i in range(config.instances)]
        self.members = {each.id: Member(each.id, each.tp, each.pp) for each in shapes}
        self.watchers: list[Callable[[int, Answer | Pulled], None]] = []
        """Are told every answer to a step, and every share of a move that was copied, with the instance."""
        self._model = model
        self._launcher = launcher
        self._secret = secrets.token_bytes(32)
        self._hub: Hub | None = None
        self._sink: Sink | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._close = asyncio.Event()
        self._transfers = Transfers(self._send)
        self._steps: dict[int, Gather] = {}
        """Steps that were sent, and not answered by all members."""
        self._load_news = asyncio.Event()
        self._adapting = Adapting(self.members, self._tell)

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
        members = self.members.values()
        if any(member.refusal for member in members) or not any(member.up for member in members):
            raise self._hopeless()

    def submit(self, step: Step, opened: tuple[Opened, ...]) -> None:
        """See `Fleet`."""
        members = [self.members[instance] for instance in step.group]
        gather = self._steps[step.id] = Gather(step)
        several = len(step.group) > 1
        sources = tuple(source for member in members for source in member.sources) if several else ()
        for member in members:
            if member.up:  # where another one of its group was lost, it must forget the step's rows
                self._tell(member, Order(step, opened, sources))
            else:
                gather.lose(member.instance)

    def move(self, move: Move) -> None:
        """See `Fleet`."""
        assert self._sink is not None
        target, source = self.members[move.target.instance], self.members[move.source.instance]
        if target.up:
            pullers = [part.config.identity for part in target.parts]
            failed = self._transfers.begin(move, pullers, source.sources)
            if failed is not None:
                self._sink.post(failed)

    def cancel(self, move: int) -> None:
        """See `Fleet`."""
        self._transfers.cancel(move)

    async def load(self, version: int, folder: str, files: dict[str, str]) -> None:
        """Give all workers other weights; returns when all have them. Nothing may be in flight. Workers that
        are started later begin with them.

        Args:
            files: checksum of the weights in each file, as they were in the memory of who wrote them.

        Raises:
            EngineFailure: a worker cannot use them, or does not answer.
        """
        assert not self._steps, "weights are loaded between steps"
        before, self._model = self._model, replace(self._model, folder=folder)
        up = [member for member in self.members.values() if member.up]
        epochs = {member.instance: member.epoch for member in up}
        for member in up:
            member.loaded.clear()
            self._tell(member, Load(version, folder, files))
        for member in up:
            while member.up and member.epoch == epochs[member.instance]:
                if len(member.loaded) == len(member.parts):
                    break
                self._load_news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._load_news.wait(), 1.0)
            for said in member.loaded.values():
                if isinstance(said, LoadFault):
                    self._model = before
                    raise EngineFailure(f"instance {member.instance}: weights {version}: {said.reason}")

    async def adapt(self, adapter: Adapter) -> None:
        """See `Fleet`."""
        await self._adapting.give(adapter)

    def unadapt(self, number: int) -> None:
        """See `Fleet`."""
        self._adapting.take(number)

    def _tell(self, member: Member, message: Message) -> None:
        for part in member.parts:
            self._send(part.config.identity, message)

    def _send(self, identity: bytes, message: Message) -> None:
        assert self._hub is not None
        self._hub.send(identity, message)

    async def kill(self, instance: int) -> None:
        """See `Fleet`."""
        await self.members[instance].kill()

    async def close(self) -> None:
        """See `Fleet`."""
        self._close.set()
        if self._hub is None:
            return
        for member in self.members.values():
            if member.up:
                self._tell(member, Quit())
            else:
                await member.kill()
        await self._leave()
        self._hub.close()
        await self._launcher.close()

    async def _leave(self) -> None:
        """Until every worker is gone: asked first, killed when they take too long."""
        if not self._keepers:
            return
        _, late = await asyncio.wait(self._keepers, timeout=self.config.quit_ns / 1e9)
        for keeper in late:  # its worker takes too long, or waits for a node that may never come
            keeper.cancel()
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
        ranks = (Rank(member.tp, member.pp, index) for index in range(member.tp * member.pp))
        member.parts = [Process(self._config_of(member, rank), time.monotonic_ns()) for rank in ranks]
        for part in member.parts:
            self._hub.expect(part.config.identity)
        try:
            for part in member.parts:
                part.process = await self._launcher.launch(part.config)
            status = await self._watch(member)
        except asyncio.CancelledError:  # nobody looks after these any more
            member.up = False
            await member.kill()
            await asyncio.gather(*(part.process.wait() for part in member.parts if part.process))
            raise
        finally:
            for part in member.parts:
                self._hub.forget(part.config.identity)
        if member.up:
            await self._lost(member, status)
        elif not self._closing:
            member.failed_starts += 1
            log.warning("worker %d.%d did not start (status %d)", member.instance, member.epoch, status)

    async def _watch(self, member: Member) -> int:
        """Until all processes are gone; kills them when one is silent for too long or gone. Returns the exit
        status of the first that went."""
        began_ns, loop = time.monotonic_ns(), asyncio.get_running_loop()
        processes = [part.process for part in member.parts if part.process is not None]
        waiting = [loop.create_task(process.wait()) for process in processes]
        first: int | None = None
        while left := [task for task in waiting if not task.done()]:
            done, _ = await asyncio.wait(left, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if done and first is None:
                first = next(task.result() for task in waiting if task in done)
            now_ns = time.monotonic_ns()
            silent = member.up and any(
                now_ns - part.heard_ns > self.config.silence_ns
                for part, task in zip(member.parts, waiting, strict=True)
                if not task.done()
            )
            late = now_ns - began_ns > self.config.start_ns and not member.up
            if silent or late:
                log.warning("worker %d gives no sign of life; killing it", member.instance)
            if silent or late or (done and not self._closing):
                await member.kill()
        return waiting[0].result() if first is None else first

    async def _lost(self, member: Member, status: int) -> None:
        """The others of its groups notice it at their next exchange; then what they wrote to is free."""
        member.up = False
        self._transfers.lost(member.instance)
        for gather in self._steps_of(member):
            gather.lose(member.instance)
        while waiting := [each for each in self._steps_of(member) if not each.done.is_set()]:
            await waiting[0].done.wait()
        for gather in self._steps_of(member):
            del self._steps[gather.step.id]
        if self._sink is not None and not self._closing:
            log.warning("worker %d.%d was lost (status %d)", member.instance, member.epoch, status)
            self._sink.post(WorkerLost(member.instance, member.epoch))
            self._answer()

    def _steps_of(self, member: Member) -> list[Gather]:
        return [each for each in self._steps.values() if member.instance in each.step.group]

    def _hopeless(self) -> PlaitError:
        """Why no worker runs."""
        for member in self.members.values():
            if member.refusal:
                return Unsupported(member.refusal)
        return EngineFailure("no worker stays up; their reasons are in the log above")

    # ---- what workers say ------------------------------------------------------------------------

    def _heard(self, identity: bytes, message: Message) -> None:
        instance, epoch, rank = (int(part) for part in identity.split(b"."))
        member = self.members[instance]
        if epoch != member.epoch or self._sink is None:
            return
        part = member.parts[rank]
        part.heard_ns = time.monotonic_ns()
        match message:
            case Hello():
                part.hello, member.kernels = message, message.kernels
                self._up(member)
            case Refusal():
                member.refusal = message.reason
            case Answer():
                for watch in self.watchers:
                    watch(instance, message)
                if (gather := self._steps.get(message.step)) is not None:
                    gather.drew(instance, message.draws)
                    self._answer()
            case Pulled() | PullFault():
                self._moved(instance, identity, message)
            case HasAdapter() | LacksAdapter():
                self._adapting.heard(member, part, message)
            case Loaded() | LoadFault():
                member.loaded[identity] = message
                self._load_news.set()
            case Fault():
                if (gather := self._steps.get(message.step)) is not None:
                    gather.failed(instance, message.reason)
                    self._answer()

    def _answer(self) -> None:
        """Answer the steps that are done. A member may be ahead of its group, but the steps of each instance
        are answered in their order; those of a lost one stand in the way until its loss is told."""
        assert self._sink is not None
        behind: set[int] = set()
        for gather in tuple(self._steps.values()):
            step = gather.step
            if step.id not in self._steps:
                continue  # answered while an earlier one was
            if not gather.done.is_set() or gather.lost or not behind.isdisjoint(step.group):
                behind.update(step.group)
                continue
            del self._steps[step.id]
            if gather.faults:
                self._sink.post(StepFailed(step.id, next(iter(gather.faults.values()))))
            else:
                self._sink.answered(step.id, gather.merged)

    def _up(self, member: Member) -> None:
        """The instance is up once all its processes are; it has as many slots as each of them."""
        hellos = [part.hello for part in member.parts if part.hello is not None]
        if len(hellos) < len(member.parts) or self._sink is None:
            return
        member.up, member.failed_starts = True, 0
        member.settled.set()
        self._adapting.joined(member)
        self._sink.post(WorkerUp(member.instance, member.epoch, min(hello.slots for hello in hellos)))

    def _moved(self, instance: int, identity: bytes, message: Pulled | PullFault) -> None:
        assert self._sink is not None
        if isinstance(message, Pulled):
            for watch in self.watchers:
                watch(instance, message)
        event = self._transfers.answered(identity, message)
        if isinstance(event, MoveFailed):
            log.info("move %d into instance %d failed: %s", event.move, instance, event.reason)
        if event is not None:
            self._sink.post(event)

    def _config_of(self, member: Member, rank: Rank) -> WorkerConfig:
        assert self._hub is not None
        return WorkerConfig(
            instance=member.instance,
            epoch=member.epoch,
            address=self._hub.address,
            secret=self._secret.hex(),
            model=replace(self._model, rank=rank),
            links=self.config.links,
            adapters=tuple(self._adapting.wanted.values()),
        )
