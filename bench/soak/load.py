"""A mixed load at a steady pace: whole answers, streams, callers that leave midway, and what is refused.

The same plan (times, kinds, lengths) is sent again in every stretch, with other tokens, so that latencies of
two stretches differ by what the server became, not by what it was asked.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp
from chaos.served import NAME
from tests.tiny import VOCAB

PATIENCE_S = 30.0
FAMILY_TOKENS = 64
"""Of the beginning that many prompts share."""


class Kind(StrEnum):
    """What a caller does."""

    WHOLE = "whole answer"
    STREAM = "stream"
    CHAT = "chat stream"
    LEAVES = "leaves a stream"
    ABANDONS = "leaves before an answer"
    WRONG = "asks what is refused"


SHARES = {Kind.WHOLE: 6, Kind.STREAM: 6, Kind.CHAT: 2, Kind.LEAVES: 3, Kind.ABANDONS: 2, Kind.WRONG: 1}
TIMED = (Kind.WHOLE, Kind.STREAM, Kind.CHAT)


@dataclass(frozen=True)
class Planned:
    """One request of a stretch."""

    at_s: float
    kind: Kind
    prompt_tokens: int
    output_tokens: int
    family: int | None
    """Its prompt begins as others of this family do; None: as no other does."""


def plan_of(seconds: float, rate_hz: float, seed: int) -> list[Planned]:
    """Poisson arrivals of a stretch."""
    rng, at_s, plan = random.Random(seed), 0.0, []
    kinds, shares = list(SHARES), list(SHARES.values())
    while (at_s := at_s + rng.expovariate(rate_hz)) < seconds:
        [kind] = rng.choices(kinds, shares)
        family = rng.randrange(4) if rng.random() < 0.5 else None
        plan.append(Planned(at_s, kind, rng.randint(16, 240), rng.randint(4, 48), family))
    return plan


@dataclass
class Sent:
    """What came of it."""

    latencies_s: list[list[float]] = field(default_factory=list)
    """Of each stretch, from when a request was due to the end of its answer, in the order of the plan."""
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that were not what was asked for."""


class Load:
    """Sends stretches to a server."""

    def __init__(self, url: str, seed: int) -> None:
        self.sent = Sent()
        self._url, self._seed = url, seed

    async def stretch(self, plan: list[Planned], number: int) -> None:
        """Send a plan once; returns when all is answered and every connection closed."""
        took_s: dict[int, float] = {}
        began_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(
                self._url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for index, planned in enumerate(plan):
                due_s = began_s + planned.at_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                tasks.create_task(self._send(client, planned, (number, index), due_s, took_s))
        self.sent.latencies_s.append([took_s[index] for index in sorted(took_s)])

    async def _send(
        self,
        client: aiohttp.ClientSession,
        planned: Planned,
        place: tuple[int, int],
        due_s: float,
        took_s: dict[int, float],
    ) -> None:
        self.sent.kinds[planned.kind] += 1
        try:
            wrong = await self._ask(client, planned, self._prompt(planned, place))
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError) as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None:
            self.sent.wrong.append(f"request {place} ({planned.kind}): {wrong}")
        elif planned.kind in TIMED:
            took_s[place[1]] = time.monotonic() - due_s

    def _prompt(self, planned: Planned, place: tuple[int, int]) -> list[int]:
        own = random.Random(f"{self._seed} {place}")
        shared = random.Random(f"{self._seed} {planned.family}")
        begin = [] if planned.family is None else [shared.randrange(256) for _ in range(FAMILY_TOKENS)]
        return (begin + [own.randrange(256) for _ in range(planned.prompt_tokens)])[: planned.prompt_tokens]

    async def _ask(self, client: aiohttp.ClientSession, planned: Planned, prompt: list[int]) -> str | None:
        """What was wrong with the answer; None: nothing."""
        path, body = _request(planned, prompt)
        if planned.kind is Kind.ABANDONS:
            try:
                async with asyncio.timeout(0.005 + planned.output_tokens / 1000):
                    async with client.post(path, json=body) as reply:
                        await reply.read()
            except TimeoutError:
                return None
            return None if reply.status == 200 else f"status {reply.status}"
        async with client.post(path, json=body) as reply:
            if planned.kind is Kind.WRONG:
                return None if reply.status == 400 else f"status {reply.status}"
            if reply.status != 200:
                return f"status {reply.status}: {await reply.text()}"
            if planned.kind is Kind.WHOLE:
                drawn = (await reply.json())["usage"]["completion_tokens"]
                return (
                    None if drawn == planned.output_tokens else f"{drawn} tokens of {planned.output_tokens}"
                )
            return await _read(reply, planned)


def _request(planned: Planned, prompt: list[int]) -> tuple[str, dict[str, object]]:
    """Path and body."""
    body: dict[str, object] = {
        "model": NAME,
        "max_tokens": planned.output_tokens,
        "temperature": 0.7,
        "ignore_eos": True,
        "stream": planned.kind in (Kind.STREAM, Kind.CHAT, Kind.LEAVES),
    }
    if planned.kind is Kind.WRONG:
        return "/v1/completions", body | {"prompt": [VOCAB + 1]}
    if planned.kind is Kind.CHAT:
        text = bytes(97 + token % 26 for token in prompt).decode()
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}
    return "/v1/completions", body | {"prompt": prompt}


async def _read(reply: aiohttp.ClientResponse, planned: Planned) -> str | None:
    """A stream, to its end or until its caller has enough."""
    finish, ended, count = None, False, 0
    async for data in events(reply):
        if data == "[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return str(chunk["error"]["message"])
        finish = chunk["choices"][0]["finish_reason"] or finish
        count += 1
        if planned.kind is Kind.LEAVES and count > planned.output_tokens // 3:
            reply.close()
            return None
    return None if ended and finish == "length" else f"the stream ends with {finish}, [DONE]: {ended}"


async def events(reply: aiohttp.ClientResponse):  # type: ignore[no-untyped-def]
    """The data of a stream's events."""
    async for line in reply.content:
        if line.startswith(b"data: "):
            yield line[6:].strip().decode()


def thirds(latencies_s: list[list[float]]) -> Iterator[list[float]]:
    """The first and the last."""
    third = max(1, len(latencies_s) // 3)
    yield [each for stretch in latencies_s[:third] for each in stretch]
    yield [each for stretch in latencies_s[-third:] for each in stretch]
