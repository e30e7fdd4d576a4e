"""`ByGroup`: elastic sequence parallelism, one set of coefficients for each degree of parallelism.

    prefill   alpha + beta * sum(len) + gamma * sum(len^2)          for each (sp, tp)

which is LoongServe's scaling information base (arXiv 2404.09526, section 5). Its own file of coefficients was
never published; the tables here are raw measurements that were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from plait.cost.fitted import Fitted, Timing
from plait.search.batching import Width
from plait.spec.errors import UserError
from plait.spec.step import Row, Step

MS, S = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class ByGroup:
    """Groups of instances of one tp. A size that was not measured counts as the next smaller one."""

    models: Mapping[int, Fitted]
    """Members of a group -> what the group as a whole takes."""

    def __post_init__(self) -> None:
        if 1 not in self.models:
            raise UserError(
                "a cost by group needs at least the coefficients of one instance alone", param="cost"
            )

    @property
    def widths(self) -> tuple[Width, ...]:
        """Times of prompts, as the batching programme takes them."""
        models = self.models.items()
        return tuple(Width(n, m.prefill_ns, m.prefill_token_ns, m.prefill_square_ns) for n, m in models)

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        size = max(each for each in self.models if each <= max(len(step.group), 1))
        return self.models[size].step_ns(replace(step, group=step.group[:1]))


# LoongServe's figure 3 (LWM-1M-Text, a Llama-2-7B, on 8 A800-80G): ms of a prefill and of a decode step, by
# (sp, tp) and (batch, length); and one device alone with one request.
LWM_7B: Mapping[tuple[int, int], Mapping[tuple[int, int], tuple[float, float]]] = MappingProxyType(
    {
        (1, 8): MappingProxyType(
            {(512, 1000): (7757, 38.9), (128, 5000): (10157, 37.8), (64, 10_000): (10792, 36.4),
             (16, 50_000): (19506, 42.9), (4, 100_000): (13546, 26.4), (1, 500_000): (51135, 37.6)}
        ),
        (2, 4): MappingProxyType(
            {(512, 1000): (5776, 42.5), (128, 5000): (7694, 40.3), (64, 10_000): (8306, 38.1),
             (16, 50_000): (16597, 44.9), (4, 100_000): (12147, 28.0), (1, 500_000): (51700, 41.6)}
        ),
        (4, 2): MappingProxyType(
            {(512, 1000): (5267, 42.3), (128, 5000): (7072, 41.4), (64, 10_000): (7701, 40.1),
             (16, 50_000): (15744, 45.9), (4, 100_000): (11798, 28.9), (1, 500_000): (53606, 37.8)}
        ),
        (1, 1): MappingProxyType({(1, 10): (18.58, 11.38), (1, 1000): (68.89, 13.01)}),
    }
)  # fmt: skip

# Tetris' table I (LLaMA3-8B, A100, tp 1): seconds of one prompt's prefill, by sp and prompt length in 1,024
# tokens.
LLAMA_8B: Mapping[int, Mapping[int, float]] = MappingProxyType(
    {
        1: MappingProxyType({4: 0.28, 8: 0.57, 16: 1.29, 32: 3.22, 64: 9.05, 128: 29.2}),
        2: MappingProxyType({4: 0.16, 8: 0.31, 16: 0.69, 32: 1.67, 64: 4.61, 128: 14.3, 256: 50.07}),
        4: MappingProxyType({4: 0.13, 8: 0.20, 16: 0.39, 32: 0.92, 64: 2.43, 128: 7.32, 256: 24.77}),
        8: MappingProxyType({4: 0.21, 8: 0.24, 16: 0.31, 32: 0.58, 64: 1.37, 128: 3.96, 256: 12.81}),
        16: MappingProxyType({4: 0.39, 8: 0.43, 16: 0.46, 32: 0.53, 64: 0.96, 128: 2.31, 256: 7.02}),
    }
)


def lwm_7b(sp: int, tp: int) -> Fitted:
    """LWM-7B on a whole group of sp x tp A800, fitted to figure 3.

    Raises:
        UserError: this pair was not measured.
    """
    if (sp, tp) not in LWM_7B:
        raise UserError(f"sp {sp} with tp {tp} was not measured; there are {list(LWM_7B)}", param="sp")
    timings = []
    for (batch, length), (prefill_ms, decode_ms) in LWM_7B[sp, tp].items():
        timings.append(Timing(_prompts(batch, length), prefill_ms * MS))
        timings.append(Timing(_decodes(batch, length), decode_ms * MS))
    return Fitted.fit(timings)


def lwm_7b_groups() -> ByGroup:
    """LWM-7B on groups of 1 to 4 instances of tp 2, derived: only the group of four was measured.

    Fewer instances share its work without being spared what it spends on its ring, so they are shown too
    slow. The fixed part of a prefill grows evenly from that of one device to that of the four.
    """
    four, one = lwm_7b(4, 2), lwm_7b(1, 1)
    step_ns = (four.prefill_ns - one.prefill_ns) / 3
    return ByGroup({sp: _shared(four, 4 / sp, one.prefill_ns + (sp - 1) * step_ns) for sp in (1, 2, 3, 4)})


def lwm_7b_alone(tp: int) -> Fitted:
    """LWM-7B on one instance of tp 2, 4 or 8, derived as `lwm_7b_groups` is from groups that fill a node.

    The fixed part of a prefill is that of one device: what was measured with tp 8 were batches of half a
    million tokens, which say nothing about a chunk of 256.
    """
    return _shared(lwm_7b(8 // tp, tp), 8 // tp, lwm_7b(1, 1).prefill_ns)


def _shared(whole: Fitted, share: float, prefill_ns: float) -> Fitted:
    return replace(
        whole,
        prefill_ns=prefill_ns,
        prefill_token_ns=whole.prefill_token_ns * share,
        prefill_square_ns=whole.prefill_square_ns * share,
        decode_context_ns=whole.decode_context_ns * share,
        decode_row_ns=whole.decode_row_ns * share,
    )


def llama_8b(decode: Fitted) -> ByGroup:
    """LLaMA3-8B, tp 1, on groups of 1 to 16 A100, fitted to Tetris' table.

    The table has no decode times, so those of `decode` are taken for every group: LoongServe found that a
    group decodes 0 to 10 % slower than one tensor-parallel instance of as many devices.
    """
    models = {}
    for sp, points in LLAMA_8B.items():
        timings = [Timing(_prompts(1, 1024 * k), seconds * S) for k, seconds in points.items()]
        prefill = Fitted.fit([*timings, Timing(_decodes(1, 1), 1.0)])
        models[sp] = replace(
            decode,
            prefill_ns=prefill.prefill_ns,
            prefill_token_ns=prefill.prefill_token_ns,
            prefill_square_ns=prefill.prefill_square_ns,
            prefill_cached_ns=0.0,
        )
    return ByGroup(models)


def _prompts(batch: int, length: int) -> Step:
    return Step(0, (0,), tuple(Row(i, 0, length, draws=True) for i in range(batch)))


def _decodes(batch: int, length: int) -> Step:
    return Step(0, (0,), (), again=tuple(range(batch)), context_tokens=batch * length)
