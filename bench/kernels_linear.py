"""Packed linear layers at M tokens on two threads: share of the read bandwidth, and speed against torch.

Ours are called as a step does it natively, torch's through `F.linear`; torch has one thread or two, whichever
is faster.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from claim import Claim, at_least, reported
from torch import Tensor

from plait.kernels.choice import choose

ROTATED_BYTES = 208 << 20
"""Weights that a measurement goes through: more than any cache here holds."""
THREADS = 2
QUIET_S = 0.01
"""Pause after torch, whose threads watch for more work for a while and take our cores meanwhile."""
ONE_GROUP = 1 << 40
"""A group longer than any row, for weights without groups."""
FAMILIES = {
    "SmolLM2-135M": {(960, 576): 30, (576, 576): 30, (3072, 576): 30, (576, 1536): 30, (49152, 576): 1},
    "7B": {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32},
}
"""Outputs and inputs of a model's products, and how many of them a token goes through. SmolLM2's query, key
and value are one product, and so are gate and up, as we run them."""
TORCH_BAR = {"SmolLM2-135M": 2.5, "7B": 1.6}
READ_BAR = {1: 0.85, 2: 0.85, 4: 0.75, 8: 0.75}
INT8_BAR = 1.7
PREFILL_TOKENS = (32, 128, 512)


@dataclass(frozen=True)
class Times:
    """Seconds for one weight of a shape, one figure a round; places of the lists belong together."""

    read: list[float] = field(default_factory=list)
    """To read as many bytes as the bf16 weight has."""
    bf16: list[float] = field(default_factory=list)
    int8: list[float] = field(default_factory=list)
    int4: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)

    def ratio(self, of: str, to: str) -> float:
        """Median of the rounds' own ratios."""
        return median(a / b for a, b in zip(getattr(self, of), getattr(self, to), strict=True))


class Bench:
    """A stretch of memory that serves as weights of every shape and type: times do not depend on values."""

    def __init__(self) -> None:
        choice = choose()
        assert choice.native is not None, f"nothing to measure: {choice.why}"
        self.native, self.isa = choice.native, choice.isa
        largest = max(outputs * inputs * 2 for shapes in FAMILIES.values() for outputs, inputs in shapes)
        self.memory = torch.randn((ROTATED_BYTES + largest) // 2).bfloat16()
        self.scales = torch.rand(1 << 23)

    def read(self, size: int, threads: int) -> float:
        """Seconds to read `size` bytes."""
        return _seconds(lambda: self.native.read(self.isa, self.memory.data_ptr(), size, threads))

    def ours(self, form: str, x_TI: Tensor, outputs: int, threads: int, copies: int) -> float:
        """Seconds of one product with each of `copies` weights that lie side by side."""
        tokens, inputs = x_TI.shape
        bits, group = {"bf16": (16, ONE_GROUP), "int8": (8, ONE_GROUP), "int4": (4, 128)}[form]
        size = outputs * inputs * bits // 8
        out_TN = torch.empty((tokens, outputs), dtype=torch.bfloat16)
        sides = (self.scales.data_ptr(), False, 0, out_TN.data_ptr(), False)
        rest = (*sides, tokens, inputs, outputs, group, 0, threads)
        start = (self.isa, form, x_TI.data_ptr(), inputs)
        weights = [self.memory.data_ptr() + i * size for i in range(copies)]

        def run() -> None:
            for weight in weights:
                self.native.packed_linear(*start, weight, *rest)

        return _seconds(run)

    def torch(self, x_TI: Tensor, outputs: int, copies: int) -> float:
        """The same by torch, on one thread or on `THREADS`, whichever is faster."""
        size = outputs * x_TI.shape[1]
        weights_NI = [self.memory[i * size : (i + 1) * size].view(outputs, -1) for i in range(copies)]

        def run() -> None:
            for weight_NI in weights_NI:
                F.linear(x_TI, weight_NI)

        found = []
        for threads in (1, THREADS):
            torch.set_num_threads(threads)
            found.append(_seconds(run))
        torch.set_num_threads(1)
        time.sleep(QUIET_S)
        return min(found)

    def times(self, tokens: int, shape: tuple[int, int], rounds: int, threads: int) -> Times:
        """All in turns; the first round only warms up."""
        outputs, inputs = shape
        x_TI, size = torch.randn(tokens, inputs).bfloat16(), outputs * inputs * 2
        copies = -(-ROTATED_BYTES // size)
        found = Times()
        for turn in range(rounds + 1):
            self.read(copies * size, threads)  # wakes the threads: what follows starts alike
            seconds = (
                self.read(copies * size, threads),
                self.ours("bf16", x_TI, outputs, threads, copies),
                self.ours("int8", x_TI, outputs, threads, 2 * copies) / 2,
                self.ours("int4", x_TI, outputs, threads, 4 * copies) / 4,
                self.torch(x_TI, outputs, copies),
            )
            if turn:
                lists = (found.read, found.bf16, found.int8, found.int4, found.torch)
                for times, value in zip(lists, seconds, strict=True):
                    times.append(value / copies)
        return found


def parts(quick: bool) -> list[Claim]:
    """Decode-size products of both families, then prefill-size products."""
    bench, rounds = Bench(), 3 if quick else 9
    with torch.inference_mode():
        return [*_decode(bench, rounds, quick), *_prefill(bench, rounds)]


def _decode(bench: Bench, rounds: int, quick: bool) -> Iterator[Claim]:
    for name, counts in FAMILIES.items():
        shapes = list(counts)[1::2] if quick else list(counts)
        for tokens, bar in READ_BAR.items():
            of_shape = {shape: bench.times(tokens, shape, rounds, THREADS) for shape in shapes}
            title = f"{name}, M = {tokens}"
            share = min(times.ratio("read", "bf16") for times in of_shape.values())
            yield at_least(f"{title}: bf16, share of read bandwidth, worst shape", share, bar)
            gains = [times.ratio("torch", "bf16") for times in of_shape.values()]
            title_torch = f"{title}: bf16, times as fast as torch, all products"
            yield at_least(title_torch, _whole(of_shape, counts), TORCH_BAR[name])
            yield reported(f"{title}: the same, by shape", median(gains), (min(gains), max(gains)))
            if tokens == 1:
                gain = min(times.ratio("bf16", "int8") for times in of_shape.values())
                yield at_least(f"{title}: int8 over bf16, worst shape", gain, INT8_BAR)
                gains = [times.ratio("bf16", "int4") for times in of_shape.values()]
                yield reported(f"{title}: int4 over bf16, by shape", median(gains), (min(gains), max(gains)))


def _prefill(bench: Bench, rounds: int) -> Iterator[Claim]:
    for name, shape in (("SmolLM2-135M", (3072, 576)), ("7B", (4096, 4096))):
        for tokens in PREFILL_TOKENS:
            x_TI = torch.randn(tokens, shape[1]).bfloat16()
            work = 2e-9 * tokens * shape[0] * shape[1]
            rates = sorted(work / bench.ours("bf16", x_TI, shape[0], 1, 1) for _ in range(rounds))
            title = f"{name}, M = {tokens}: bf16 on 1 thread, GFLOP/s"
            yield reported(title, median(rates), (rates[0], rates[-1]))


def _whole(of_shape: dict[tuple[int, int], Times], counts: dict[tuple[int, int], int]) -> float:
    """Torch's time over ours for all products of a token: the shapes' ratios, weighted by our time."""
    ours_s = {shape: counts[shape] * median(times.bf16) for shape, times in of_shape.items()}
    theirs_s = sum(ours_s[shape] * times.ratio("torch", "bf16") for shape, times in of_shape.items())
    return theirs_s / sum(ours_s.values())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
