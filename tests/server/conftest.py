"""A real server on a real socket, in front of an engine, on the test's own event loop."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from plait.runtime.ask import Ask, ModelCard, Piece
from plait.server.config import ServerConfig
from plait.server.lifespan import Server, make_server
from plait.spec.errors import DeadlineExceeded, EngineFailure, Overloaded
from plait.spec.request import EndReason
from plait.spec.sampling import TokenLogprob
from plait.text.detokenizer import Detokenizer
from plait.text.stop import StopSearch
from plait.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with an end token and a chat template."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["hello there, what is the time?"],
        trainers.BpeTrainer(vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet),
    )
    return Tokenizer(raw, special_tokens={"eos_token": "<|end|>"}, chat_template=TEMPLATE)


@dataclass(frozen=True)
class Health:
    ready: bool = True
    draining: bool = False
    dead: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Stats:
    running: int
    waiting: int
    kv_used_slots: int
    kv_slots: int
    instances: tuple = ()
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    finished: dict = field(default_factory=dict)


class CountingEngine:
    """A small engine of its own: the token after t is t + 1, drawn when `tick` allows.

    It stands where the runtime's engine stands, so that the HTTP side can be tested for what it does
    when tokens are late, the queue is full, or the engine dies at a chosen moment.
    """

    def __init__(self, queue: int = 64, kv_slots: int = 100_000) -> None:
        self.card = ModelCard("tiny", "models/tiny", max_model_len=512, created=1_700_000_000)
        self.tokenizer = make_tokenizer()
        self.state = Health()
        self.running: list[CountingStream] = []
        self.queue = queue
        self.kv_slots = kv_slots
        self.hold_after: int | None = None
        """Streams wait after this many tokens until `go` is set."""
        self.go = asyncio.Event()
        self.finished: dict[str, int] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.arrivals: asyncio.Queue[CountingStream] = asyncio.Queue()

    def submit(self, ask: Ask) -> "CountingStream":
        stream = CountingStream(self, ask)
        stream.refused = len(self.running) >= self.queue
        if not stream.refused:
            self.running.append(stream)
            self.idle.clear()
            self.arrivals.put_nowait(stream)
        return stream

    def health(self) -> Health:
        return self.state

    def stats(self) -> Stats:
        used = sum(stream.kv for stream in self.running)
        instances = ((0, "mixed", "up", len(self.running), used, self.kv_slots),)
        return Stats(len(self.running), 0, used, self.kv_slots, instances, finished=dict(self.finished))

    def die(self) -> None:
        """Every running request fails, and no more are taken."""
        self.state = Health(ready=False, dead=True, reason="the last worker died")
        self.go.set()

    def end(self, stream: "CountingStream", reason: EndReason) -> None:
        if stream in self.running:
            self.running.remove(stream)
            self.finished[reason] = self.finished.get(reason, 0) + 1
        if not self.running:
            self.idle.set()


class CountingStream:
    id = 0

    def __init__(self, engine: CountingEngine, ask: Ask) -> None:
        self.engine = engine
        self.ask = ask
        self.prompt_tokens = len(ask.prompt)
        self.cached_tokens = 0
        self.kv = len(ask.prompt)
        self.refused = False
        timeout_ns = ask.timeout_ns
        self.deadline = None if timeout_ns is None else asyncio.get_running_loop().time() + timeout_ns / 1e9

    def abort(self) -> None:
        self.engine.end(self, EndReason.ABORTED)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self.refused:
            raise Overloaded("the queue is full")
        ask, size = self.ask, self.engine.tokenizer.vocab_size
        text = Detokenizer(self.engine.tokenizer, ask.skip_special_tokens)
        search = StopSearch(ask.sampling.stop, ask.sampling.include_stop)
        token, drawn = ask.prompt[-1], 0
        scores = self.scores(ask.prompt[1:], ask.sampling.prompt_logprobs)
        while True:
            await self.turn(drawn)
            if self.engine.state.dead:
                self.engine.end(self, EndReason.FAILED)
                raise EngineFailure("its workers died")
            token, drawn = (token + 1) % size, drawn + 1
            self.kv += 1
            said, stop = search.push(text.push([token]))
            eos = token in self.engine.tokenizer.eos_ids and not ask.sampling.ignore_eos
            finish = EndReason.STOP if stop is not None or eos else None
            if finish is None and drawn == ask.sampling.max_tokens:
                finish = EndReason.LENGTH
            if finish and stop is None:
                rest, stop = search.push(text.flush())
                said += rest + ("" if stop else search.flush())
            if finish:
                self.engine.end(self, finish)
            yield Piece(said, (token,), self.scores([token], ask.sampling.logprobs), scores, finish, stop)
            scores = ()
            if finish:
                return

    async def turn(self, drawn: int) -> None:
        """Returns when the next token may be drawn."""
        held = self.engine.hold_after is not None and drawn >= self.engine.hold_after
        try:
            async with asyncio.timeout_at(self.deadline):
                await (self.engine.go.wait() if held else asyncio.sleep(0))
        except TimeoutError:
            self.engine.end(self, EndReason.DEADLINE)
            raise DeadlineExceeded("the request's deadline passed") from None

    def scores(self, tokens, top: int | None) -> tuple[TokenLogprob, ...]:
        if top is None:
            return ()
        return tuple(
            TokenLogprob(t, -0.5, tuple(((t + i) % 256, -0.5 - i) for i in range(top))) for t in tokens
        )


@dataclass
class Site:
    """A running server and a client of it."""

    server: Server
    engine: CountingEngine
    client: aiohttp.ClientSession
    url: str

    @property
    def front(self):
        return self.server._front

    async def post(self, path: str, body=None, **options) -> tuple[int, dict]:
        async with self.client.post(self.url + path, json=body, **options) as reply:
            return reply.status, await reply.json()

    async def get(self, path: str, **options) -> tuple[int, str]:
        async with self.client.get(self.url + path, **options) as reply:
            return reply.status, await reply.text()

    async def idle(self) -> None:
        """Returns when the engine runs nothing."""
        async with asyncio.timeout(30):
            await self.engine.idle.wait()
            await self.front.idle.wait()

    async def arrived(self, count: int) -> None:
        """Returns when so many more requests reached the engine."""
        for _ in range(count):
            await asyncio.wait_for(self.engine.arrivals.get(), 30)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


Open = Callable[..., Awaitable[Site]]


@asynccontextmanager
async def opened(engine: CountingEngine, config: ServerConfig) -> AsyncIterator[Site]:
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = make_server(engine, dataclasses.replace(config, port=0), listening.set_result)
    serving = asyncio.ensure_future(server._serve())
    async with aiohttp.ClientSession() as client:
        url = await listening
        yield Site(server, engine, client, url)
    server.should_exit = True
    await serving


@pytest.fixture
async def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
async def open_site(engine) -> AsyncIterator[Open]:
    """Opens sites with other settings; they are closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(engine=engine, **settings) -> Site:
            return await stack.enter_async_context(opened(engine, ServerConfig(**settings)))

        yield open_one


@pytest.fixture
async def site(open_site: Open) -> Site:
    return await open_site()
