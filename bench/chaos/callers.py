"""Callers of a server over HTTP: what they get is held against the tokens that they must get.

A caller may read slowly, leave midway, or send half a request. One that stays gets all its tokens, a refusal
that says when to come back, an error that says so, or, where the server itself died, a broken connection; and
what came before is a beginning of what was to come.
"""

import asyncio
import json
import random
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.served import NAME
from chaos.verdict import BOUND_S, Verdict
from plait.runtime.ask import Ask

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that closing sends RST."""
FULL_AGAIN_S = 0.02
"""A refused caller asks again after so long."""
BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError)


def body_of(ask: Ask, *, stream: bool, **more: Any) -> dict[str, Any]:
    """Of a request for completions."""
    wish = ask.sampling
    asked = {"model": NAME, "prompt": list(ask.prompt), "max_tokens": wish.max_tokens, "temperature": 0}
    return asked | {"ignore_eos": True, "return_token_ids": True, "stream": stream} | more


def client() -> aiohttp.ClientSession:
    """With a connection for each request, as callers of their own have."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


@dataclass
class Answer:
    """What a caller got."""

    tokens: list[int] = field(default_factory=list)
    how: str = ""
    """length, or what it ended with instead."""
    comes_back: bool = True
    """A refusal said when to ask again."""

    def take(self, data: bytes) -> None:
        """An event of a stream."""
        if data == b"[DONE]":
            self.how = self.how or "no end"
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.how = chunk["error"]["type"]
            return
        for choice in chunk["choices"]:
            self.tokens += choice["token_ids"]
            self.how = choice["finish_reason"] or self.how


@dataclass
class Callers:
    """Of one server, which may be another one after a while."""

    client: aiohttp.ClientSession
    url: str
    asks: list[Ask]
    expected: list[list[int]]
    found: Verdict = field(default_factory=Verdict)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Not while the server was killed and the next one does not listen yet: connections break."""
    enough: bool = False

    def __post_init__(self) -> None:
        self.up.set()

    async def go_on(self, seed: int) -> None:
        """Ask again and again, until there were enough faults."""
        rng = random.Random(seed)
        while not self.enough:
            await self.up.wait()
            how = await self.call(rng.randrange(len(self.asks)), stream=rng.random() < 0.7)
            if how != "length":
                await asyncio.sleep(FULL_AGAIN_S)

    async def call(self, at: int, *, stream: bool) -> str:
        """Ask once; how it ended."""
        began_s, answer, well = time.monotonic(), Answer(), self.up.is_set()
        try:
            async with asyncio.timeout(BOUND_S):
                await self._ask(at, stream, answer)
        except TimeoutError:
            answer.how = "no end"
        except BROKEN:
            answer.how = "broken"
        self._judge(at, answer, fell=not (well and self.up.is_set()))
        self.found.longest_s = max(self.found.longest_s, time.monotonic() - began_s)
        return answer.how

    async def _ask(self, at: int, stream: bool, answer: Answer) -> None:
        body = body_of(self.asks[at], stream=stream)
        async with self.client.post(f"{self.url}/v1/completions", json=body) as reply:
            if reply.status != 200:
                answer.how = f"HTTP {reply.status}"
                answer.comes_back = reply.status == 500 or "retry-after" in reply.headers
                await reply.read()
            elif stream:
                async for line in reply.content:
                    if line.startswith(b"data: "):
                        answer.take(line[6:].strip())
            else:
                answer.take(await reply.read())

    def _judge(self, at: int, answer: Answer, *, fell: bool) -> None:
        """`fell`: the server was killed meanwhile, or was not there yet."""
        self.found.ends[answer.how] += 1
        wanted = self.expected[at]
        due = wanted if answer.how == "length" else wanted[: len(answer.tokens)]
        allowed = {"length", "HTTP 500", "HTTP 503", "InternalServerError"} | ({"broken"} if fell else set())
        if answer.how not in allowed or answer.tokens != due or not answer.comes_back:
            self.found.wrong.append(f"ask {at}: {answer}, not {wanted}")

    # ---- callers that are a fault --------------------------------------------------------------------

    async def read_slowly(self, at: int, pause_s: float) -> None:
        """Take nothing for a while although much is sent, then all of it."""
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        opened.setblocking(False)
        answer, well = Answer(), self.up.is_set()
        try:
            async with asyncio.timeout(BOUND_S):
                await asyncio.get_running_loop().sock_connect(opened, self._address)
                reader, writer = await asyncio.open_connection(sock=opened, limit=1 << 16)
                writer.write(posted(body_of(self.asks[at], stream=True, logprobs=20)))
                await asyncio.sleep(pause_s)
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 200"):
                    await self._chunks(reader, answer)
                else:
                    answer.how = f"HTTP {head[9:12].decode()}"
                writer.close()
        except TimeoutError:
            answer.how = "no end"
        except (*BROKEN, OSError):
            answer.how = "broken"
        finally:
            opened.close()
        self._judge(at, answer, fell=not (well and self.up.is_set()))

    async def _chunks(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        """The events in a chunked body."""
        rest = b""
        while count := int((await reader.readline()).strip(), 16):
            rest += await reader.readexactly(count + 2)
            rest = rest[:-2]
            *events, rest = rest.split(b"\n\n")
            for event in events:
                answer.take(event.removeprefix(b"data: "))

    async def storm(self, count: int, rng: random.Random) -> None:
        """So many at once ask, and are gone soon: some at once, some in the midst of their answers."""
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection(*self._address)
            at = rng.randrange(len(self.asks))
            writer.write(posted(body_of(self.asks[at], stream=rng.random() < 0.5, n=2)))
            writers.append(writer)
        for writer in rng.sample(writers, count):
            if rng.random() < 0.5:
                await asyncio.sleep(rng.uniform(0, 0.02))
            _reset(writer)

    async def send_half(self, at: int) -> None:
        """A body that is cut off."""
        data = posted(body_of(self.asks[at], stream=True))
        _, writer = await asyncio.open_connection(*self._address)
        writer.write(data[: len(data) - 20])
        await writer.drain()
        _reset(writer)

    @property
    def _address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


def posted(body: dict[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + data


def _reset(writer: asyncio.StreamWriter) -> None:
    opened: Any = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
