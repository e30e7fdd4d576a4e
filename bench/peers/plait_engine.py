"""Our engine behind a door: `plait_engine.py FOLDER THREADS INSTANCES DTYPE`."""

import asyncio
import sys
import time
from pathlib import Path

KV_BYTES = 2 << 30
"""As much as vLLM gets; and no cache of prefixes, as there."""


async def main() -> None:
    from door import Door, Work

    door = Door()
    folder, threads, instances, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    from plait.runtime.ask import Ask
    from plait.runtime.engine import Engine, shape_of
    from plait.runtime.fleet import FleetConfig
    from plait.runtime.setup import ServeConfig, open_engine
    from plait.serving.batcher import BatcherConfig
    from plait.serving.manager import ManagerConfig
    from plait.spec.sampling import SamplingParams

    async def answer(engine: Engine, prompt: list[int], output: int) -> list[int]:
        wish = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        stream = engine.submit(Ask(tuple(prompt), wish))
        return [token async for piece in stream for token in piece.tokens]

    async def run(engine: Engine, work: Work) -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, prompt, work.output) for prompt in work.prompts))

    config = ServeConfig(
        folder,
        threads=threads,
        dtype=dtype,
        kv_tokens=KV_BYTES // shape_of(Path(folder)).kv_bytes_per_token // instances,
        manager=ManagerConfig(batcher=BatcherConfig(prefix_cache=False)),
        fleet=FleetConfig(instances=instances),
    )
    engine = open_engine(config)
    await engine.start()
    door.ready()
    while (work := await asyncio.to_thread(door.next)) is not None:
        begin = time.perf_counter()
        drawn = await run(engine, work)
        door.answer(time.perf_counter() - begin, drawn)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
