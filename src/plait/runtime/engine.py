"""`Engine`: a model behind one door. Fronts submit asks and read streams; they see nothing else."""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait import __version__
from plait.model.wishes import check as check_sampling
from plait.runtime.adapters import AdapterCard, Adapters, AdapterStats
from plait.runtime.ask import Ask, ModelCard
from plait.runtime.driver import Driver, Fleet
from plait.runtime.hashing import block_hashes
from plait.runtime.stream import Stream
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.adapter import Adapter
from plait.spec.cluster import Role, incomplete
from plait.spec.command import Command
from plait.spec.errors import TooLong, Unsupported, UserError
from plait.spec.event import Drain, Event, Reassign
from plait.spec.request import Request
from plait.spec.shape import ModelShape
from plait.text.matcher import Grammars
from plait.text.tokenizer import Tokenizer
from plait.workload.journal import Core, Journal, Observer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What is served, and what is written down about it."""

    folder: Path
    """Model folder: config.json, tokenizer.json, safetensors."""
    name: str
    """Name that clients use."""
    max_len: int
    """Longest prompt with output, in tokens."""
    manager: ManagerConfig = field(default_factory=ManagerConfig)
    journal: Path | None = None
    """File for the journal; None: none is written."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Noted in the journal's header."""
    chat_template: Path | None = None
    """Jinja file in the place of the folder's own; None: its own."""
    no_groups: str | None = None
    """Why its instances cannot be elastic; None: they can."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Name -> folder of adapters that it begins with."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the engine can take work."""

    ready: bool
    draining: bool
    dead: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InstanceStats:
    """One instance, now."""

    id: int
    role: str
    state: str
    """up or down."""
    running: int
    kv_used: int
    """Slots held by requests."""
    kv_slots: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine, now; counters since its start."""

    running: int
    waiting: int
    kv_used_slots: int
    kv_slots: int
    instances: tuple[InstanceStats, ...]
    preemptions: int
    recomputations: int
    moves: int
    """Requests whose KV went from one instance to another."""
    moved_tokens: int
    move_retries: int
    """Moves that failed and were tried again."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int
    prompt_tokens: int
    generation_tokens: int
    finished: Mapping[str, int]
    """Requests that ended, by reason."""
    adapters: tuple[AdapterStats, ...] = ()


def max_len_of(folder: Path, wanted: int | None = None) -> int:
    """Longest context of a model folder in tokens, or `wanted` if that is shorter.

    Raises:
        UserError: the folder has no readable config.json, or `wanted` exceeds the model's limit.
    """
    limit = shape_of(folder).max_tokens
    if wanted is not None and not 1 <= wanted <= limit:
        raise UserError(f"--max-model-len {wanted} is not in 1..{limit}, the model's own limit")
    return wanted or limit


def shape_of(folder: Path) -> ModelShape:
    """Sizes of a model folder's model. Raises UserError where config.json does not tell them."""
    path = folder / "config.json"
    try:
        return ModelShape.from_config(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a model's config.json: {error}; pull or copy the model again"
        ) from error


class Engine:
    """Owns the core, the driver and the fleet of one model. Lives in one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        fleet: Fleet,
        instances: int,
        owner: Callable[[GlobalManager], Core] | None = None,
    ) -> None:
        """
        Args:
            fleet: not started yet.
            instances: how many workers it has.
            owner: makes the core that owns the manager and hears of everything in its place; None: none does.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        self.config = config
        self.tokenizer = Tokenizer.load(config.folder, config.chat_template)
        self.card = ModelCard(config.name, str(config.folder), config.max_len, int(time.time()))
        self.core = GlobalManager(config.manager)
        self._instances = instances
        self._journal: Journal | None = None
        if config.journal is not None:
            config.journal.parent.mkdir(parents=True, exist_ok=True)
            settings = dataclasses.asdict(config.manager)
            meta = {"world": "live", "plait": __version__, "model": config.name, **config.meta}
            self._journal = Journal(config.journal, settings, meta)
        self.fleet = fleet
        heard = self.core if owner is None else owner(self.core)
        self.adapters = Adapters(fleet, (config.name, str(config.folder)))
        """Those that asks may name."""
        self.driver = Driver(heard, fleet, [self._note] if self._journal else [])
        self.version = 0
        """Of the weights."""
        self._salt = f"{config.folder}|{self.version}|{config.manager.page}"
        self._vocab = min(self.tokenizer.vocab_size, shape_of(config.folder).vocab)
        self._ids = 0
        self._prompt_tokens = 0
        self._grammars: Grammars | None = None
        """Made for the first request that has one."""
        self._compiling = threading.Lock()

    async def start(self) -> None:
        """Returns when one instance is up; the others follow.

        Raises:
            PlaitError: none will ever be, or an adapter cannot be had, and why.
        """
        try:
            named = self.config.adapters.items()
            adapters = {name: await self.adapters.read(name, folder) for name, folder in named}
            await self.fleet.start(self.driver)
            for name, adapter in adapters.items():
                await self._adapt(name, adapter)
        except BaseException:
            await self.close()
            raise
        gc.collect()
        gc.freeze()  # each look through what stays would hold all answers up for a tenth of a second

    @property
    def next_request(self) -> int:
        """Id of the request that the next ask becomes; later ones count on."""
        return self._ids + 1

    def submit(self, ask: Ask) -> Stream:
        """Begin to continue a prompt.

        Raises:
            UserError: the prompt is empty or names tokens that the model does not have, or no draw
                can honour the sampling parameters.
            NotFound: there is no such adapter.
            TooLong: prompt and max_tokens exceed the context.
            EngineFailure: no worker will ever come back.
        """
        self._validate(ask)
        adapter = self.adapters.number(ask.adapter)
        if self.driver.failure is not None:
            raise self.driver.failure
        self._ids += 1
        stream = Stream(self._ids, ask, self.tokenizer, self.driver.abort, adapter)
        timeout_ns = ask.timeout_ns
        # A prompt whose log-probabilities are wanted is computed whole.
        sharable = ask.sampling.prompt_logprobs is None and self.config.manager.batcher.prefix_cache
        request = Request(
            id=stream.id,
            prompt_tokens=len(ask.prompt),
            max_tokens=ask.sampling.max_tokens,
            block_hashes=self._hashes(ask.prompt, adapter) if sharable else (),
            deadline_ns=None if timeout_ns is None else self.driver.now_ns() + timeout_ns,
            model=self.config.name,
            priority=ask.priority,
            adapter=ask.adapter,
        )
        self.adapters.begin(stream.id, adapter)
        self._prompt_tokens += len(ask.prompt)
        self.driver.submit(request, stream)
        return stream

    def _hashes(self, prompt: Sequence[int], adapter: int) -> tuple[int, ...]:
        """Of a prompt's blocks. No two adapters, not even two of one name after each other, share any."""
        salt = f"{self._salt}|{adapter}" if adapter else self._salt
        return block_hashes(prompt, self.config.manager.page, salt)

    def check_grammar(self, grammar: str) -> None:
        """Compile a grammar, unless it was among the last ones; from any thread.

        Raises:
            UserError: it cannot be used, and why.
        """
        with self._compiling:
            if not self.tokenizer.eos_ids:
                raise Unsupported("this model names no end token, so no form of an answer can be prescribed")
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer)
            self._grammars.check(grammar)

    def _validate(self, ask: Ask) -> None:
        if not ask.prompt:
            raise UserError("the prompt is empty; send at least one token", "prompt")
        vocab = self._vocab
        if not 0 <= min(ask.prompt) <= max(ask.prompt) < vocab:
            raise UserError(f"the prompt has a token id outside 0..{vocab - 1}", "prompt")
        check_sampling(ask.sampling, vocab)
        if ask.sampling.grammar:
            self.check_grammar(ask.sampling.grammar)
        if ask.priority and not self.config.manager.admission.priority_ns:
            raise UserError(
                "this server takes requests in the order of their arrival: start it with --priority SECONDS, "
                "or leave out priority",
                "priority",
            )
        if ask.whole and ask.sampling.stop:
            raise UserError("stop strings are searched in text, and an answer in one piece has none", "stop")
        total = len(ask.prompt) + ask.sampling.max_tokens
        if total > self.card.max_model_len:
            raise TooLong(
                f"this model's context is {self.card.max_model_len} tokens, but the prompt has "
                f"{len(ask.prompt)} and max_tokens asks for {ask.sampling.max_tokens}",
                "prompt",
            )

    def health(self) -> Health:
        """Whether work can be taken now."""
        failure = self.driver.failure
        ready = bool(self.core.seats) and failure is None and not self.core.draining
        return Health(ready, self.core.draining, failure is not None, str(failure or ""))

    def stats(self) -> Stats:
        """A snapshot, for metrics and pages."""
        ledger, seats, counts = self.core.ledger, self.core.seats, self.core.counts
        instances = tuple(
            InstanceStats(
                id=i,
                role=self.core.roster.role(i).value,
                state="up" if i in seats else "down",
                running=len(seats[i].lives) if i in seats else 0,
                kv_used=ledger.used(i) if i in seats else 0,
                kv_slots=ledger.capacity(i) if i in seats else 0,
            )
            for i in range(self._instances)
        )
        return Stats(
            # One that is being moved sits on two instances.
            running=len({request for seat in seats.values() for request in seat.lives}),
            waiting=len(self.core.admission),
            kv_used_slots=sum(instance.kv_used for instance in instances),
            kv_slots=sum(instance.kv_slots for instance in instances),
            instances=instances,
            preemptions=counts.preemptions,
            recomputations=counts.recomputations,
            moves=counts.moves,
            moved_tokens=counts.moved_tokens,
            move_retries=counts.move_retries,
            prefix_queries=counts.prefix_queries,
            prefix_hits=counts.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self.driver.drawn_tokens,
            finished=dict(self.driver.ends),
            adapters=self.adapters.stats(),
        )

    def _note(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Write the journal. Where that fails, it ends there, and requests go on."""
        if self._journal is not None:
            try:
                self._journal.append(now_ns, event, commands)
            except OSError as error:
                self._give_up_journal(error)

    def _give_up_journal(self, error: OSError) -> None:
        """What it has not written yet cannot be written either."""
        log.error("the journal %s ends here: %s; make room and start anew", self.config.journal, error)
        journal, self._journal = self._journal, None
        with contextlib.suppress(OSError):
            if journal is not None:
                journal.close()

    def watch(self, observer: Observer) -> None:
        """Call `observer` after every call of the core."""
        self.driver.observers.append(observer)

    def reassign(self, instance: int, role: Role) -> None:
        """From now on an instance takes the phases of another role; what it has, it finishes.

        Raises:
            UserError: there is no such instance, or nobody would be left for a phase.
            Unsupported: workers cannot play this role.
        """
        if role.elastic and self.config.no_groups is not None:
            raise Unsupported(self.config.no_groups, "role")
        if not 0 <= instance < self._instances:
            raise UserError(f"there is no instance {instance} of {self._instances}", "instance")
        roles = [self.core.roster.role(i) for i in range(self._instances)]
        roles[instance] = role
        if lack := incomplete(roles):
            raise UserError(
                f"with instance {instance} as {role.value} the engine needs {lack}: change another one first",
                "role",
            )
        self.driver.post(Reassign(instance, role))

    async def kill(self, instance: int) -> None:
        """End an instance's processes at once, as a crash would. What it held is computed anew."""
        await self.fleet.kill(instance)

    async def load_adapter(self, name: str, folder: Path) -> AdapterCard:
        """Answer with an adapter from now on, while others are answered.

        Raises:
            UserError: the name cannot be used, or the adapter cannot, and why.
        """
        return await self._adapt(name, await self.adapters.read(name, folder))

    async def _adapt(self, name: str, adapter: Adapter) -> AdapterCard:
        card = await self.adapters.load(name, adapter)
        if self.adapters.see not in self.driver.observers:
            self.watch(self.adapters.see)
        return card

    async def load(self, version: int, folder: Path, files: Mapping[str, str]) -> None:
        """Continue with other weights of the same model: no cached KV of the old ones is used any more.

        Args:
            files: checksum of the weights in each of the folder's files.

        Raises:
            UserError: requests are still open.
            EngineFailure: a worker cannot use them.
        """
        if self.driver.streams:
            raise UserError("weights are loaded between requests: wait until all have ended")
        if self.adapters.cards:
            raise UserError("adapters belong to the weights that there are: unload them first")
        await self._quiet()
        await self.fleet.load(version, str(folder), dict(files))
        self.version = version
        self._salt = f"{self.config.folder}|{version}|{self.config.manager.page}"

    async def _quiet(self) -> None:
        """Void steps may be in flight after the last request has ended."""
        quiet = asyncio.Event()

        def look(*_: Any) -> None:
            if self.core.quiet:
                quiet.set()

        self.driver.observers.append(look)
        try:
            look()
            await quiet.wait()
        finally:
            self.driver.observers.remove(look)

    def drain(self) -> None:
        """Take no new requests; those that were accepted go on."""
        self.driver.post(Drain())

    async def close(self) -> None:
        """End everything that is left and let the workers go."""
        gc.unfreeze()
        self.driver.close()
        await self.fleet.close()
        if self._journal is not None:
            try:
                self._journal.close()
            except OSError as error:
                self._give_up_journal(error)
