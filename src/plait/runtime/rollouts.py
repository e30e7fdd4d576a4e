"""`Rollouts`: samples drawn by the engine, and read by the models as soon as the core says so."""

import asyncio
import time
from collections.abc import Sequence

from plait.cost.reading import StatedReading
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.prompts import Prompt
from plait.runtime.recipe import Recipe
from plait.runtime.retune import Retuner
from plait.runtime.stream import Stream
from plait.runtime.trainer import Trainer
from plait.sim.rollout import SampleLength
from plait.spec.command import Score
from plait.spec.errors import UserError
from plait.spec.event import Rollout, Scored
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams
from plait.training.batch import Sample
from plait.training.orders import Rows


class Rollouts:
    """Draws the samples of an iteration. Sample i continues prompt i // samples per prompt."""

    def __init__(
        self,
        engine: Engine,
        trainer: Trainer,
        recipe: Recipe,
        models: Sequence[str],
        pace: StatedReading | None = None,
    ) -> None:
        """
        Args:
            engine: started; its driver's core is an `RlhfCore`.
            models: that read every sample.
            pace: of a paced engine: a `Score` is answered no earlier than this says, and each model is a
                reader of its own, with a share. None: one crew reads for all instances, all models at once.

        Raises:
            UserError: `pace` does not have a share for each model.
        """
        if pace is not None and len(pace.shares) != len(models):
            raise UserError(f"give a share of the reading to each of {', '.join(models)}", "shares")
        self.engine, self.trainer, self.recipe, self.models = engine, trainer, recipe, tuple(models)
        self.drawn_s = 0.0
        """When the last sample of the last iteration ended, by the host's clock."""
        self.tail = recipe.rollout.tail.tail(recipe.samples)
        """Of the next iteration."""
        self.why = "as the recipe says"
        """What `tail` follows from."""
        self.limits: Sequence[int] | None = None
        """Longest response of each sample; None: the recipe's. For measurements of given lengths."""
        self._pace = pace
        self._retuner: Retuner | None = None
        if recipe.rollout.tail.tune:
            self._retuner = Retuner(recipe.rollout.instances, recipe.seed)
            engine.watch(self._retuner.see)
        self._samples: list[asyncio.Task[Sample]] = []
        self._asked: list[Score] = []
        """What is to be scored and nobody reads yet."""
        self._owing: dict[int, float] = {}
        """Score that is not answered -> when it was asked for, in the loop's time."""
        self._reader: asyncio.Task[None] | None = None
        self._unread: set[tuple[int, int]] = set()
        """(batch, reader) that the core was not told of."""
        self._over: asyncio.Future[None] | None = None
        """All batches are scored, or a reading failed."""
        self._found: dict[str, dict[int, tuple[float, ...]]] = {}
        engine.driver.score = self._score

    async def draw(self, iteration: int, prompts: Sequence[Prompt]) -> tuple[list[Sample], dict[str, Rows]]:
        """All samples with what each model says of them, in the order of their ids, whenever they end.

        Raises:
            PlaitError: a prompt does not fit, or a process is gone.
        """
        each = self.recipe.rollout.samples
        count = len(prompts) * each
        loop = asyncio.get_running_loop()
        self._found = {name: {} for name in self.models}
        batch, readers = self.trainer.micro_batch, 1 if self._pace is None else len(self.models)
        self._unread = {(at, reader) for at in range(-(-count // batch)) for reader in range(readers)}
        self._over = loop.create_future()
        first = self.engine.next_request
        tail = self.tail
        requests = tuple(range(first, first + count))
        loads = 0 if self._pace is None else self._pace.load_tokens
        self.engine.driver.post(Rollout(requests, batch, tail.left, tail.kept, readers, loads, self.why))
        streams = [
            self.engine.submit(Ask(prompts[id // each].tokens, self._sampling(iteration, id), whole=True))
            for id in range(count)
        ]
        self._samples = [
            loop.create_task(self._collect(id, id // each, stream)) for id, stream in enumerate(streams)
        ]
        samples = list(await asyncio.gather(*self._samples))
        self.drawn_s = time.monotonic()
        await self._over
        if self._retuner is not None:
            self._retune(self._retuner, samples)
        found = {name: tuple(rows[id] for id in range(count)) for name, rows in self._found.items()}
        return samples, found

    def _retune(self, retuner: Retuner, samples: Sequence[Sample]) -> None:
        slots = max(each.kv_slots for each in self.engine.stats().instances)
        tuned = retuner.tune([SampleLength(len(each.prompt), len(each.response)) for each in samples], slots)
        if tuned is not None:
            self.tail, self.why = tuned.tail, str(tuned)

    def _score(self, command: Score) -> None:
        """One crew reads for all instances: what several of them are to score meanwhile is read together."""
        loop = asyncio.get_running_loop()
        self._asked.append(command)
        self._owing[command.id] = loop.time()
        if self._reader is None:
            self._begin_reading()

    def _begin_reading(self) -> None:
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self._reader.add_done_callback(self._read_out)

    async def _read(self) -> None:
        """The samples of a batch have ended, though their last pieces may still be on their way here."""
        loop = asyncio.get_running_loop()
        while self._asked:
            readers = self._asked[0].readers
            commands = [command for command in self._asked if command.readers == readers]
            self._asked = [command for command in self._asked if command.readers != readers]
            await self._read_together(sorted(batch for each in commands for batch in each.batches), readers)
            for command in commands:
                due_s = self._owing[command.id]
                due_s += 0.0 if self._pace is None else self._pace.read_ns(command) / 1e9
                loop.call_at(due_s, self._answer, command)

    async def _read_together(self, batches: Sequence[int], readers: Sequence[int]) -> None:
        size = self.trainer.micro_batch
        tasks = [task for batch in batches for task in self._samples[batch * size : (batch + 1) * size]]
        samples = await asyncio.gather(*tasks)
        models = self.models if self._pace is None else [self.models[reader] for reader in readers]
        for name, rows in (await self.trainer.read(models, samples)).items():
            self._found[name] |= {sample.id: row for sample, row in zip(samples, rows, strict=True)}

    def _read_out(self, reader: asyncio.Task[None]) -> None:
        """Nothing more is asked for, or a rank is gone."""
        self._reader = None
        if not reader.cancelled() and (fault := reader.exception()) and self._over and not self._over.done():
            self._over.set_exception(fault)
        elif self._asked:
            self._begin_reading()

    def _answer(self, command: Score) -> None:
        del self._owing[command.id]
        self.engine.driver.post(Scored(command.id))
        self._unread -= {(batch, reader) for batch in command.batches for reader in command.readers}
        if not (self._unread or self._owing) and self._over and not self._over.done():
            self._over.set_result(None)

    def _sampling(self, iteration: int, id: int) -> SamplingParams:
        rollout, temperature = self.recipe.rollout, self.recipe.policy.temperature
        return SamplingParams(
            max_tokens=rollout.max_tokens if self.limits is None else self.limits[id],
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
