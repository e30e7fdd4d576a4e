"""`TailTuner`: when the tail of an iteration moves together, and how many instances go on (R_t and m).

Both are chosen jointly, by simulation on lengths that were seen before: a batch of them is drawn again and
again, and every candidate is timed on the same batches. What times a candidate here is a forecast in closed
form, a few hundred microseconds long: between two ends the rows of an instance do not change, so its steps
add up to a sum over its samples; reading is a fluid that drains as fast as lent instances allow. It knows
the same rules as `RlhfCore`, which has the last word: bench/interstage.py holds its choices against the core.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.cost.cost import Cost
from plait.cost.fitted import Fitted, Timing
from plait.cost.reading import StatedReading
from plait.rlhf.core import SERIAL, Tail
from plait.sim.rollout import SampleLength
from plait.spec.step import Row, Step

Floats = NDArray[np.float64]
SHARES = (0.02, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95)
"""Of the samples: what is tried as R_t."""
PARTS = (0.03, 0.06, 0.125, 0.19, 0.25, 0.31, 0.375, 0.44, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Of the instances: what is tried as m."""
PIECES = 4
"""Pieces of work that an instance is given in the end: each has a fixed part."""
SAME = 1e-3
"""Forecasts that differ by a smaller share are alike; the earlier tail is taken: one that comes too late
overlaps nothing, one that comes too early costs little."""


@dataclass(frozen=True, slots=True)
class TailModel:
    """What draws and reads, in a few figures."""

    instances: int
    steps: Fitted
    """Times of steps of one instance."""
    reading: StatedReading
    slots: int
    """KV of an instance, in tokens."""
    move_token_ns: float = 0.0
    """Moving the KV of one token to an instance."""

    def candidates(self, samples: int) -> list[Tail]:
        """Earlier tails before later ones, serial stages last. Where nothing moves an early tail is best."""
        lefts = sorted({max(1, round(share * samples)) for share in SHARES}, reverse=True)
        kepts = sorted({max(1, round(part * self.instances)) for part in PARTS})
        some = [Tail(left, kept) for left in lefts for kept in kepts if kept < self.instances]
        return [Tail(lefts[0], self.instances), *some, SERIAL]

    def forecast_ns(self, samples: Sequence[SampleLength], tails: Sequence[Tail]) -> list[float]:
        """Nanoseconds until all samples are drawn and scored, for each tail; infinite where KV lacks room."""
        drawing = _Drawing.of(self, samples)
        return [drawing.scored_ns(tail) for tail in tails]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A choice and what is expected of it."""

    tail: Tail
    ns: float
    """Of generation and inference."""
    serial_ns: float
    """Of serial stages."""
    lengths: int
    """From which it follows."""

    @property
    def gain(self) -> float:
        """Serial stages take so many times as long."""
        return self.serial_ns / self.ns

    def __str__(self) -> str:
        return (
            f"R_t {self.tail.left}, m {self.tail.kept}: {self.gain:.3f}x of serial stages foreseen "
            f"from {self.lengths} lengths"
        )


@dataclass(frozen=True, slots=True)
class TailTuner:
    """See the module."""

    model: TailModel
    draws: int = 8
    """Batches that finalists are timed on."""
    first_draws: int = 2
    """Batches that all candidates are timed on."""
    finalists: int = 16

    def tune(self, seen: Sequence[SampleLength], samples: int, rng: Generator) -> Tuned:
        """The tail with the least mean forecast.

        Args:
            seen: samples of earlier iterations, or of the distribution that is expected.
            samples: of the coming iteration.
        """
        batches = [
            [seen[at] for at in rng.integers(len(seen), size=samples)]
            for _ in range(max(self.draws, self.first_draws))
        ]
        tails = self.model.candidates(samples)
        rough = self._mean_ns(batches[: self.first_draws], tails)
        order = sorted(range(len(tails) - 1), key=lambda at: (rough[at], at))[: self.finalists]
        finalists = [*(tails[at] for at in sorted(order)), SERIAL]
        means = self._mean_ns(batches[: self.draws], finalists)
        least = min(means)
        best = next(at for at, mean in enumerate(means) if mean <= least * (1 + SAME))
        return Tuned(finalists[best], means[best], means[-1], len(seen))

    def _mean_ns(self, batches: Sequence[Sequence[SampleLength]], tails: Sequence[Tail]) -> list[float]:
        found = np.array([self.model.forecast_ns(batch, tails) for batch in batches])
        return [float(mean) for mean in found.mean(0)]


def fitted_steps(cost: Cost, prompt: int, response: int, rows: int) -> Fitted:
    """Coefficients of any cost, from steps such as an iteration has.

    Args:
        prompt, response: tokens of usual samples.
        rows: most samples of an instance at a time.
    """
    timings = []
    for count in sorted({1, max(2, rows // 4), max(2, rows // 2), max(2, rows)}):
        for context in (prompt + 1, prompt + response // 2, prompt + 2 * response):
            step = Step(0, (0,), (), tuple(range(count)), context_tokens=count * context)
            timings.append(Timing(step, cost.step_ns(step)))
    for count in (1, 4, 16):
        step = Step(0, (0,), tuple(Row(i, 0, prompt, draws=True) for i in range(count)))
        timings.append(Timing(step, cost.step_ns(step)))
    return Fitted.fit(timings)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """All samples on all instances, until a tail begins. I instances, n samples of the fullest, N in all."""

    model: TailModel
    prompt_In: Floats
    response_In: Floats
    """Rising; 0 where an instance has fewer samples."""
    end_In: Floats
    """When each sample ends if nothing moves."""
    end_N: Floats
    """The same, in order."""

    @staticmethod
    def of(model: TailModel, samples: Sequence[SampleLength]) -> "_Drawing":
        """Dealt out evenly, as prompts that are all there at once are."""
        I = model.instances  # noqa: E741
        prompt_In, response_In = (np.zeros((I, -(-len(samples) // I))) for _ in range(2))
        for number, sample in enumerate(samples):
            prompt_In[number % I, number // I] = sample.prompt
            response_In[number % I, number // I] = sample.response
        steps = model.steps
        start_I = steps.prefill_ns + steps.prefill_token_ns * prompt_In.sum(1)
        prompt_In, response_In, end_In = _ends(steps, prompt_In, response_In)
        end_In += start_I[:, None]
        return _Drawing(model, prompt_In, response_In, end_In, np.sort(end_In[response_In > 0]))

    def scored_ns(self, tail: Tail) -> float:
        """When everything is scored."""
        model, real = self.model, self.response_In > 0
        if not tail.left:
            free_I = np.full(model.instances, self.end_N[-1])
            return self._read_ns(free_I, self.end_In[real], (self.prompt_In + self.response_In)[real])
        after = len(self.end_N) - tail.left
        begin_ns = self.end_N[after - 1] if after > 0 else 0.0
        open_In = real & (self.end_In > begin_ns)
        if tail.kept >= model.instances or not open_In.any():
            free_I = np.maximum(self.end_In.max(1), begin_ns)
            return self._read_ns(free_I, self.end_In[real], (self.prompt_In + self.response_In)[real])
        return self._moved_ns(tail, begin_ns, open_In, real & ~open_In)

    def _moved_ns(
        self, tail: Tail, begin_ns: float, open_In: NDArray[np.bool_], done: NDArray[np.bool_]
    ) -> float:
        model = self.model
        drawn_I = np.array(
            [
                np.interp(begin_ns, np.append(0.0, ends), np.append(0.0, responses))
                for ends, responses in zip(self.end_In, self.response_In, strict=True)
            ]
        )
        kept = np.argsort(-open_In.sum(1), kind="stable")[: tail.kept]
        known_In, rest_In = self.prompt_In + drawn_I[:, None], self.response_In - drawn_I[:, None]
        homes = self._gather(kept, open_In, known_In, rest_In)
        m, most = len(homes), max(map(len, homes))
        known_mn, rest_mn = np.zeros((m, most)), np.zeros((m, most))
        for row, home in enumerate(homes):
            for column, (known, rest) in enumerate(home):
                known_mn[row, column], rest_mn[row, column] = known, rest
        if (known_mn + rest_mn).sum(1).max() > model.slots:
            return np.inf
        known_mn, rest_mn, end_mn = _ends(model.steps, known_mn, rest_mn)
        end_mn += begin_ns
        free_I = np.full(model.instances, begin_ns)
        free_I[:m] = end_mn.max(1)
        tail_samples = rest_mn > 0
        ends_N = np.concatenate([self.end_In[done], end_mn[tail_samples]])
        tokens_N = np.concatenate(
            [(self.prompt_In + self.response_In)[done], (known_mn + rest_mn)[tail_samples]]
        )
        return self._read_ns(free_I, ends_N, tokens_N)

    def _gather(
        self, kept: NDArray[np.int64], open_In: NDArray[np.bool_], known_In: Floats, rest_In: Floats
    ) -> list[list[tuple[float, float]]]:
        """(known, rest) of each sample on each instance that goes on: who moves goes where least is held."""
        homes = [
            [
                (float(k), float(r))
                for k, r in zip(known_In[i][open_In[i]], rest_In[i][open_In[i]], strict=True)
            ]
            for i in kept
        ]
        loads = [(sum(known for known, _ in home), at) for at, home in enumerate(homes)]
        heapify(loads)
        steps = self.model.steps
        context_ns = steps.decode_context_ns * float(known_In[open_In].mean())
        step_ns = max(1.0, steps.decode_ns + steps.decode_row_ns + context_ns)
        moving = open_In.copy()
        moving[kept] = False
        late = [0.0] * len(homes)
        for known, rest in zip(known_In[moving], rest_In[moving], strict=True):
            load, at = loads[0]
            late[at] += float(known) * self.model.move_token_ns
            homes[at].append((float(known), float(rest) + late[at] / step_ns))
            heapreplace(loads, (load + float(known), at))
        return homes

    def _read_ns(self, free_I: Floats, ready_N: Floats, tokens_N: Floats) -> float:
        """When instances that are free from then on have read samples that are ready from then on."""
        reading = self.model.reading
        free_I = np.sort(free_I) + reading.load_ns + PIECES * reading.piece_ns
        order = np.argsort(ready_N)
        ready_N, work_N = ready_N[order], reading.token_ns * tokens_N[order]
        rest_N = np.cumsum(work_N[::-1])[::-1]
        before_N = np.maximum(ready_N[:, None] - free_I, 0.0).sum(1)
        wanted = before_N + rest_N
        count = np.arange(1, len(free_I) + 1)
        held_I = np.cumsum(free_I)
        capacity_I = free_I * count - held_I
        active_N = np.searchsorted(capacity_I, wanted, side="right")
        done_N = (wanted + held_I[active_N - 1]) / active_N
        alone_N = ready_N + work_N * max(reading.shares) + reading.piece_ns
        return float(max(done_N.max(), alone_N.max()))


def _ends(steps: Fitted, known_In: Floats, rest_In: Floats) -> tuple[Floats, Floats, Floats]:
    """Samples of each instance by how many tokens they still draw, and when each has drawn them: between two
    ends the same rows take step after step, each with one token of context more."""
    order = np.argsort(rest_In, axis=1, kind="stable")
    rest_In = np.take_along_axis(rest_In, order, 1)
    known_In = np.take_along_axis(known_In, order, 1) * (rest_In > 0)
    rows_n = np.arange(rest_In.shape[1], 0, -1)
    context_In = np.cumsum(known_In[:, ::-1], 1)[:, ::-1]
    last_In = np.concatenate([np.zeros((len(rest_In), 1)), rest_In[:, :-1]], 1)
    count_In = rest_In - last_In
    squares_In = (rest_In * (rest_In + 1) - last_In * (last_In + 1)) / 2
    spent_In = count_In * (steps.decode_ns + steps.decode_row_ns * rows_n)
    spent_In += steps.decode_context_ns * (context_In * count_In + rows_n * squares_In)
    return known_In, rest_In, np.cumsum(spent_In, 1)
