"""Packed linear layers: share of the read bandwidth, and speed against torch's bf16 linear."""

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
    "SmolLM2-135M": ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    "7B": ((4096, 4096), (11008, 4096), (4096, 11008)),
}
"""Outputs and inputs of a model's products: query, key and value together, gate and up together."""
TORCH_BAR = {"SmolLM2-135M": 2.5, "7B": 1.6}
READ_BAR = {1: 0.85, 2: 0.85, 4: 0.75, 8: 0.75}
INT8_BAR = 1.7
PREFILL_TOKENS = (32, 128, 512)


@dataclass(frozen=True)
class Shares:
    """What the rounds of one shape and number of tokens gave."""

    of_read: list[float] = field(default_factory=list)
    """Our bytes a second over those of plain reads."""
    of_torch: list[float] = field(default_factory=list)
    """Torch's seconds over ours."""
    int8: list[float] = field(default_factory=list)
    """Our bf16 seconds over our int8 seconds."""
    int4: list[float] = field(default_factory=list)


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
        rest = (*sides, tokens, inputs, outputs, group, threads)
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

    def shares(self, tokens: int, shape: tuple[int, int], rounds: int, threads: int) -> Shares:
        """All in turns; the first round only warms up."""
        outputs, inputs = shape
        x_TI, size = torch.randn(tokens, inputs).bfloat16(), outputs * inputs * 2
        copies = -(-ROTATED_BYTES // size)
        found = Shares()
        for turn in range(rounds + 1):
            read_s = self.read(copies * size, threads)
            bf16_s = self.ours("bf16", x_TI, outputs, threads, copies)
            int8_s = self.ours("int8", x_TI, outputs, threads, 2 * copies) / 2
            int4_s = self.ours("int4", x_TI, outputs, threads, 4 * copies) / 4
            torch_s = self.torch(x_TI, outputs, copies)
            if turn:
                found.of_read.append(read_s / bf16_s)
                found.of_torch.append(torch_s / bf16_s)
                found.int8.append(bf16_s / int8_s)
                found.int4.append(bf16_s / int4_s)
        return found


def parts(quick: bool) -> list[Claim]:
    """Decode-size products of both families, then prefill-size products."""
    bench, rounds = Bench(), 3 if quick else 9
    with torch.inference_mode():
        return [*_decode(bench, rounds, quick), *_prefill(bench, rounds)]


def _decode(bench: Bench, rounds: int, quick: bool) -> Iterator[Claim]:
    for name, shapes in FAMILIES.items():
        chosen = shapes[1::2] if quick else shapes
        for tokens, bar in READ_BAR.items():
            of_shape = [bench.shares(tokens, shape, rounds, THREADS) for shape in chosen]
            title = f"{name}, {tokens} tokens, {THREADS} threads"
            share, gain = _worst(of_shape, "of_read"), _worst(of_shape, "of_torch")
            yield at_least(f"{title}: bf16, share of read bandwidth", share, bar)
            yield at_least(f"{title}: bf16, times as fast as torch", gain, TORCH_BAR[name])
            if tokens == 1:
                yield at_least(f"{title}: int8 over bf16", _worst(of_shape, "int8"), INT8_BAR)
                values = [median(shares.int4) for shares in of_shape]
                yield reported(f"{title}: int4 over bf16", min(values), (min(values), max(values)))


def _prefill(bench: Bench, rounds: int) -> Iterator[Claim]:
    for name, shape in (("SmolLM2-135M", (3072, 576)), ("7B", (4096, 4096))):
        for tokens in PREFILL_TOKENS:
            x_TI = torch.randn(tokens, shape[1]).bfloat16()
            work = 2e-9 * tokens * shape[0] * shape[1]
            rates = sorted(work / bench.ours("bf16", x_TI, shape[0], 1, 1) for _ in range(rounds))
            title = f"{name}, {tokens} tokens, 1 thread: bf16, GFLOP/s"
            yield reported(title, median(rates), (rates[0], rates[-1]))


def _worst(of_shape: list[Shares], figure: str) -> float:
    """The least of the shapes' medians."""
    return min(median(getattr(shares, figure)) for shares in of_shape)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
