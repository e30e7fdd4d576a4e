"""Weights that change under a running engine: tokens are those of an engine that began with them."""

import asyncio
from pathlib import Path

import pytest

from plait.model.weights_file import checksum, read
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.spec.errors import EngineFailure
from tests.runtime.test_engine import answers
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two models that differ in their weights alone."""
    root = tmp_path_factory.mktemp("versions")
    return tiny_folder(root, "qwen2", seed=0), tiny_folder(root, "qwen2", seed=1)


def sums(folder: Path) -> dict[str, str]:
    return {path.name: checksum(read(path)) for path in folder.glob("*.safetensors")}


def engine_on(folder: Path, exact: bool):
    fleet = FleetConfig(instances=2, pause_ns=1_000_000)
    return open_engine(
        ServeConfig(model=str(folder), kv_tokens=1024, exact=exact, dtype="float32", fleet=fleet)
    )


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("exact", [True, False])
async def test_loaded_weights_are_those_that_draw(folders, exact):
    old, new = folders
    fresh = engine_on(new, exact)
    await fresh.start()
    wanted = await answers(fresh, 4)
    await fresh.close()
    engine = engine_on(old, exact)
    await engine.start()
    try:
        before = await answers(engine, 4)
        await engine.load(7, new, sums(new))
        after = await answers(engine, 4)
        assert engine.version == 7
        assert (before != wanted, after == wanted) == (True, True)
        await engine.load(8, old, sums(old))
        assert await answers(engine, 4) == before
    finally:
        await engine.close()


@pytest.mark.usefixtures("quick_workers")
async def test_weights_that_are_not_what_was_written_are_refused(folders):
    old, new = folders
    engine = engine_on(old, True)
    await engine.start()
    try:
        before = await answers(engine, 2)
        with pytest.raises(EngineFailure, match="does not hold the weights"):
            await engine.load(1, new, dict.fromkeys(sums(new), "0" * 32))
        assert engine.version == 0
        assert await answers(engine, 2) == before
    finally:
        await engine.close()


@pytest.mark.usefixtures("quick_workers")
async def test_a_worker_that_starts_later_has_the_new_weights(folders):
    old, new = folders
    engine = engine_on(old, True)
    await engine.start()
    try:
        await engine.load(1, new, sums(new))
        wanted = await answers(engine, 4)
        victim = engine.fleet.members[0]
        epoch = victim.epoch
        await victim.kill()
        up = asyncio.Event()
        engine.watch(lambda *_: up.set() if victim.epoch > epoch and victim.up else None)
        assert await answers(engine, 4) == wanted
        await up.wait()
        assert await answers(engine, 4) == wanted
    finally:
        await engine.close()
