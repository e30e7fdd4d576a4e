"""`Rollouts`: samples drawn by the engine, and read by the models as soon as the core says so."""

import asyncio
import time
from collections.abc import Sequence

from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.prompts import Prompt
from plait.runtime.recipe import Recipe
from plait.runtime.stream import Stream
from plait.runtime.trainer import Trainer
from plait.spec.command import Score
from plait.spec.event import Rollout, Scored
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams
from plait.training.batch import Sample
from plait.training.orders import Rows


class Rollouts:
    """Draws the samples of an iteration. Sample i continues prompt i // samples per prompt."""

    def __init__(self, engine: Engine, trainer: Trainer, recipe: Recipe, models: Sequence[str]) -> None:
        """
        Args:
            engine: started; its driver's core is an `RlhfCore`.
            models: that read every sample.
        """
        self.engine, self.trainer, self.recipe, self.models = engine, trainer, recipe, tuple(models)
        self.drawn_s = 0.0
        """When the last sample of the last iteration ended, by the host's clock."""
        self._samples: list[asyncio.Task[Sample]] = []
        self._readings: list[asyncio.Task[None]] = []
        self._read_out: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
        """Readings that have ended, well or not."""
        self._found: dict[str, dict[int, tuple[float, ...]]] = {}
        engine.driver.score = self._score

    async def draw(self, iteration: int, prompts: Sequence[Prompt]) -> tuple[list[Sample], dict[str, Rows]]:
        """All samples with what each model says of them, in the order of their ids, whenever they end.

        Raises:
            PlaitError: a prompt does not fit, or a process is gone.
        """
        each = self.recipe.rollout.samples
        count = len(prompts) * each
        self._found = {name: {} for name in self.models}
        self._readings.clear()
        self._read_out = asyncio.Queue()
        first = self.engine.next_request
        self.engine.driver.post(Rollout(tuple(range(first, first + count)), self.trainer.micro_batch))
        streams = [
            self.engine.submit(Ask(prompts[id // each].tokens, self._sampling(iteration, id), whole=True))
            for id in range(count)
        ]
        loop = asyncio.get_running_loop()
        self._samples = [
            loop.create_task(self._collect(id, id // each, stream)) for id, stream in enumerate(streams)
        ]
        samples = list(await asyncio.gather(*self._samples))
        self.drawn_s = time.monotonic()
        while sum(map(len, self._found.values())) < count * len(self.models):
            (await self._read_out.get()).result()
        found = {name: tuple(rows[id] for id in range(count)) for name, rows in self._found.items()}
        return samples, found

    def _score(self, command: Score) -> None:
        reading = asyncio.get_running_loop().create_task(self._read(command))
        reading.add_done_callback(self._read_out.put_nowait)
        self._readings.append(reading)

    async def _read(self, command: Score) -> None:
        """The samples of a batch have ended, though their last pieces may still be on their way here."""
        size = self.trainer.micro_batch
        tasks = [task for b in command.batches for task in self._samples[b * size : (b + 1) * size]]
        samples = await asyncio.gather(*tasks)
        found = await self.trainer.read(self.models, samples)
        for name, rows in found.items():
            self._found[name] |= {sample.id: row for sample, row in zip(samples, rows, strict=True)}
        self.engine.driver.post(Scored(command.batches))

    def _sampling(self, iteration: int, id: int) -> SamplingParams:
        rollout, temperature = self.recipe.rollout, self.recipe.policy.temperature
        return SamplingParams(
            max_tokens=rollout.max_tokens,
            temperature=temperature,
            ignore_eos=rollout.ignore_eos,
            logprobs=0 if temperature == 1 else None,  # the engine's are those of temperature 1
            seed=(self.recipe.seed * 1_000_003 + iteration) * 1_000_003 + id,
        )

    async def _collect(self, id: int, group: int, stream: Stream) -> Sample:
        tokens: list[int] = []
        logprobs: list[float] = []
        finish: EndReason | None = None
        async for piece in stream:
            tokens += piece.tokens
            logprobs += [entry.logprob for entry in piece.logprobs]
            finish = piece.finish
        prompt = tuple(stream.ask.prompt)
        ended = finish is EndReason.STOP
        return Sample(id, group, prompt, tuple(tokens), ended, self.engine.version, tuple(logprobs))
