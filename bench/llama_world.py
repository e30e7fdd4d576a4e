"""What convoy.py and unified_goodput.py simulate: LLaMA3-8B on 16 A100. Not a bench of its own.

Prompts take what Tetris' table says of groups of 1 to 16 instances; decoding and the memory for KV come from
the A100 roofline, fitted to the same few coefficients. What tensor parallelism saves of a prompt is the
roofline's share of what the table says of one device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import heappop, heappush
from itertools import product

import numpy as np

from plait.cost.by_group import LLAMA_8B, ByGroup, llama_8b
from plait.cost.catalog import device_named, shape_named
from plait.cost.fitted import Fitted, Timing
from plait.cost.roofline import Roofline
from plait.search.batching import Width
from plait.serving.allocation import fastest_ns
from plait.spec.cluster import Link
from plait.spec.command import Command
from plait.spec.event import Arrived, Event
from plait.spec.step import Row, Step
from plait.workload.result import Recorder, RequestRecord

INSTANCES = 16
NVLINK, NETWORK = Link(300e9, 20_000), Link(25e9, 30_000)
TIMES = 5
"""An objective is so many times what a request takes alone."""
SHARE = 0.9
"""Of the requests, those that must meet both objectives."""
SHAPE = shape_named("llama-3-8b")


def roofline(tp: int = 1) -> Roofline:
    """Of one instance."""
    return Roofline(device_named("a100-80g"), SHAPE, tp, NVLINK)


@cache
def decode(tp: int = 1) -> Fitted:
    """The roofline's steps of decoding rows as coefficients; prompts are left to the table."""
    timings = [Timing(Step(0, (0,), (Row(0, 0, 1000, draws=True),)), 1e9)]
    for rows, context in product((1, 8, 32, 128), (500, 4000, 30_000)):
        step = Step(0, (0,), (), again=tuple(range(rows)), context_tokens=rows * context)
        timings.append(Timing(step, roofline(tp).step_ns(step)))
    return Fitted.fit(timings)


@cache
def alone(tp: int = 1) -> Fitted:
    """One instance by itself."""
    one = llama_8b(decode()).models[1]
    if tp == 1:
        return one
    timings = [Timing(Step(0, (0,), (), again=(0,), context_tokens=1), 1.0)]
    for tokens in LLAMA_8B[1]:
        step = Step(0, (0,), (Row(0, 0, 1024 * tokens, draws=True),))
        timings.append(
            Timing(step, one.step_ns(step) * roofline(tp).step_ns(step) / roofline().step_ns(step))
        )
    prompts, rows = Fitted.fit(timings), decode(tp)
    return replace(
        prompts,
        decode_ns=rows.decode_ns,
        decode_context_ns=rows.decode_context_ns,
        decode_row_ns=rows.decode_row_ns,
    )


@cache
def groups(tp: int = 1) -> ByGroup:
    """Elastic groups of instances of this tp, at most all devices. A ring costs what it costs with tp 1."""
    whole, one = llama_8b(decode()), alone(tp)
    if tp == 1:
        return whole
    by_token, by_square = (
        getattr(one, name) / getattr(whole.models[1], name)
        for name in ("prefill_token_ns", "prefill_square_ns")
    )
    models = {1: one}
    for size, model in whole.models.items():
        if 1 < size <= INSTANCES // tp:
            models[size] = replace(
                one,
                prefill_ns=model.prefill_ns,
                prefill_token_ns=model.prefill_token_ns * by_token,
                prefill_square_ns=model.prefill_square_ns * by_square,
            )
    return ByGroup(models)


@cache
def widths() -> tuple[Width, ...]:
    """Their times, as decisions take them."""
    return groups().widths


def slots(tp: int = 1) -> int:
    """KV of an instance."""
    return roofline(tp).kv_slots()


def alone_ns(prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
    """TTFT and TPOT of a request that has all 16 instances to itself."""
    first_ns = fastest_ns(widths(), INSTANCES, prompt_tokens, prompt_tokens**2)
    model = decode()
    return first_ns, model.decode_ns + model.decode_row_ns + model.decode_context_ns * (
        prompt_tokens + output_tokens / 2
    )


def scale(record: RequestRecord) -> float:
    """The multiple of its latencies alone that a request would just have met; infinite if it was refused."""
    if not record.completed:
        return float("inf")
    first_ns, next_ns = alone_ns(record.prompt_tokens, record.output_tokens)
    return max(record.ttft_ns / first_ns, record.tpot_ns / next_ns)


def scales(records: Sequence[RequestRecord]) -> np.ndarray:
    """Those of all requests."""
    return np.array([scale(record) for record in records])


class Hopeless(Exception):
    """More requests have missed a multiple than may."""


@dataclass(slots=True)
class Misses:
    """Ends a run as soon as too many of its requests have missed a multiple, whatever the others do."""

    recorder: Recorder
    times: float
    most: int
    """Requests that may miss it."""
    missed: set[int] = field(default_factory=set)
    _due: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (when the first token has to be there, request)."""
    _seen: int = 0
    """Records that were looked at."""

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`, after the recorder has.

        Raises:
            Hopeless: too many have missed.
        """
        if isinstance(event, Arrived):
            first_ns, _ = alone_ns(event.request.prompt_tokens, 1)
            heappush(self._due, (now_ns + self.times * first_ns, event.request.id))
        for record in self.recorder.records[self._seen :]:
            if scale(record) > self.times:
                self.missed.add(record.id)
        self._seen = len(self.recorder.records)
        while self._due and self._due[0][0] < now_ns:
            request = heappop(self._due)[1]
            if self.recorder.waiting(request):
                self.missed.add(request)
        if len(self.missed) > self.most:
            raise Hopeless
