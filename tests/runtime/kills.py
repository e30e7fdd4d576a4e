"""Engines whose workers die: what was lost is recomputed, or a request ends with an error that says so."""

import asyncio
import random
from pathlib import Path

import pytest

from plait.runtime.engine import Engine
from plait.runtime.launch import LocalLauncher
from plait.spec.errors import EngineFailure
from plait.spec.event import WorkerLost
from tests.runtime.test_parallel import asks, check, tokens_of


async def outlive(
    engine: Engine, folder: Path, losses: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve until so many workers have died in the midst of groups' steps; nothing may be left behind."""
    monkeypatch.setenv("PLAIT_TEST_DOOM", str(rng.random()))
    engine.fleet._launcher = LocalLauncher("tests.runtime.doomed")
    lost: list[WorkerLost] = []
    engine.watch(lambda _, event, commands: lost.append(event) if isinstance(event, WorkerLost) else None)
    failed = done = 0
    await engine.start()
    try:
        while len(lost) < losses:
            work = asks(rng, 8)
            async with asyncio.timeout(120):
                rows = await asyncio.gather(
                    *(tokens_of(engine, [ask]) for ask in work), return_exceptions=True
                )
            drawn = [(ask, row[0]) for ask, row in zip(work, rows, strict=True) if isinstance(row, list)]
            errors = [row for row in rows if not isinstance(row, list)]
            assert all(isinstance(error, EngineFailure) and "lost" in str(error) for error in errors), errors
            assert check(folder, [ask for ask, _ in drawn], [row for _, row in drawn]) <= 1
            failed, done = failed + len(errors), done + len(drawn)
            assert (engine.stats().running, engine.stats().waiting, engine.stats().kv_used_slots) == (0, 0, 0)
            engine.core.ledger.check()
    finally:
        await engine.close()
    print(f"{len(lost)} losses, {done} requests done, {failed} failed")
    assert done > failed
