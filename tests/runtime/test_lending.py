"""An instance that is lent sends off what it has, and no token changes for it."""

import asyncio
from dataclasses import replace

import pytest

from plait.runtime.ask import Ask
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.spec.cluster import Role
from plait.spec.sampling import SamplingParams
from tests.runtime.test_engine import collect, prompt

SAMPLED = SamplingParams(max_tokens=120, temperature=1.0, ignore_eos=True)


async def answers(folder, lend: bool) -> tuple[list[list[int]], int]:
    """What 8 requests draw on two instances, and how many moved."""
    fleet = FleetConfig(instances=2, pause_ns=1_000_000, silence_ns=3_000_000_000)
    engine = open_engine(ServeConfig(model=str(folder), kv_tokens=2048, exact=True, fleet=fleet))
    await engine.start()
    try:
        streams = [engine.submit(Ask(prompt(n), replace(SAMPLED, seed=n))) for n in range(8)]
        there = [stream for stream in streams if stream.id in engine.core.seats[1].lives]
        # Lent as soon as it has drawn a token: the other one may be a step or a whole answer ahead or behind.
        begun = [asyncio.ensure_future(anext(aiter(stream))) for stream in there]
        await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        if lend:
            engine.reassign(1, Role.LENT)
        first = {stream.id: (await piece).tokens for stream, piece in zip(there, begun, strict=True)}
        rest = await asyncio.gather(*(collect(stream) for stream in streams))
        assert not lend or not engine.core.seats[1].lives
        drawn = [
            [*first.get(stream.id, ()), *tokens] for stream, (_, tokens, _) in zip(streams, rest, strict=True)
        ]
        return drawn, engine.core.counts.moves
    finally:
        await engine.close()


@pytest.mark.usefixtures("quick_workers")
async def test_lending_moves_requests_and_changes_no_token(tiny_llama):
    wanted, none = await answers(tiny_llama, lend=False)
    got, moves = await answers(tiny_llama, lend=True)
    assert got == wanted
    assert none == 0
    assert moves > 0
