"""`Rollouts`: samples drawn by the engine."""

import asyncio
from collections.abc import Sequence

from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.prompts import Prompt
from plait.runtime.recipe import Recipe
from plait.runtime.stream import Stream
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams
from plait.training.batch import Sample


class Rollouts:
    """Draws the samples of an iteration. Sample i continues prompt i // samples per prompt."""

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        """`engine` is started."""
        self.engine, self.recipe = engine, recipe

    async def draw(self, iteration: int, prompts: Sequence[Prompt]) -> list[Sample]:
        """All samples, in the order of their ids, whenever they end.

        Raises:
            PlaitError: a prompt does not fit, or the engine is gone.
        """
        each = self.recipe.rollout.samples
        streams = [
            self.engine.submit(Ask(prompts[id // each].tokens, self._sampling(iteration, id)))
            for id in range(len(prompts) * each)
        ]
        return list(await asyncio.gather(*(self._collect(id, id // each, s) for id, s in enumerate(streams))))

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
