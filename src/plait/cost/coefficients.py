"""`Coefficients`: the form in which DistServe keeps its measurements, and its tables for OPT on A100.

    prefill   (a + b * sum(len) + c * sum(len^2)) / pp + 1 ms * pp      of one pipeline stage
    decode    (a' + b' * sum(context) + c' * batch) / pp                 "

Decode has one set of coefficients for small batches and one for large ones. Where the released simulator goes
from one to the other, time falls by up to a quarter or jumps by as much, which a search for the best batch
will find and exploit. `Coefficients` repairs that; `seed_compatible` keeps it. A step with both phases does
not pay the smaller of their fixed parts, since it reads the weights once (nobody measured such steps).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from plait.cost.cost import Load
from plait.spec.errors import NotFound, UserError
from plait.spec.step import Step

MS = 1e6
THRESHOLD = 95
"""Batches from here on take the large set in the released simulator."""
BLEND = (64, 96)
"""Largest batch of the sweep that the small set was fitted to, and smallest of the large set's: between them
nothing was measured."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One model on `tp` devices a stage and `pp` stages. Coefficients are in ms: fixed, per token, and per
    squared token (prefill) or row (decode)."""

    prefill: tuple[float, float, float]
    small: tuple[float, float, float]
    large: tuple[float, float, float]
    pp: int = 1
    seed_compatible: bool = False
    """Keep the cliff at a batch of 95, and negative coefficients."""
    first_stage: bool = False
    """Add what the released simulator charges for the first stage: 2 ms, and 1 ms for 10,000 tokens that
    were known before the step."""

    def __post_init__(self) -> None:
        if self.pp < 1:
            raise UserError(f"pp is {self.pp}; an instance has at least one stage", param="pp")
        if not self.seed_compatible and min(*self.prefill, *self.small, *self.large) < 0:
            raise UserError("a negative coefficient makes long prompts faster than short ones; measure anew")

    def step_ns(self, step: Step) -> int:
        """All stages; see `Cost`."""
        return sum(self.stages_ns(step))

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        """See `Staged`."""
        load = Load.of(step)
        if load.members > 1:
            raise UserError(
                "these tables are of one instance; for groups take `ByGroup` or a roofline", "group"
            )
        found_ms = 0.0
        if load.chunk_tokens:
            found_ms += self.prefill_ms(load.chunk_tokens, 2 * load.chunk_pairs - load.chunk_tokens)
        if load.decodes:
            found_ms += self.decode_ms(load.decodes, load.context_tokens)
        if load.chunk_tokens and load.decodes and not self.seed_compatible:
            found_ms -= min(self.prefill[0], self.small[0], self.large[0]) / self.pp
        known = load.chunk_tokens + load.cached_tokens + load.context_tokens - load.decodes
        entry_ms = 2 + 1e-4 * known
        first = found_ms + (entry_ms if self.first_stage else 0.0)
        return tuple(max(1, round(ms * MS)) for ms in (first, *(found_ms,) * (self.pp - 1)))

    def prefill_ms(self, tokens: int, squares: float) -> float:
        """One stage of a prefill of prompts with this sum of lengths and of squared lengths."""
        a, b, c = self.prefill
        return (a + b * tokens + c * squares) / self.pp + self.pp

    def decode_ms(self, batch: int, context_tokens: int) -> float:
        """One stage of a decode step; `context_tokens` counts the tokens being drawn."""
        if self.seed_compatible:
            chosen = self.small if batch < THRESHOLD else self.large
            return _line(chosen, batch, context_tokens) / self.pp
        return self._blended(batch, context_tokens) / self.pp

    def _blended(self, batch: int, context_tokens: int) -> float:
        """The small set up to 64 rows, the large set from 96 on, a straight mixture between; and never less
        than a smaller batch with as much context takes, so that more load is never faster."""
        low, high = BLEND

        def at(rows: float) -> float:
            share = min(max((rows - low) / (high - low), 0.0), 1.0)
            small, large = (_line(each, rows, context_tokens) for each in (self.small, self.large))
            return (1 - share) * small + share * large

        if batch <= low:
            return at(batch)
        # Between the sweeps the mixture is a parabola: it is largest at an end or at its vertex.
        first, middle, last = at(low), at((low + high) / 2), at(high)
        bend, slope = 2 * (first - 2 * middle + last), 4 * middle - 3 * first - last
        vertex = low - slope / (2 * bend) * (high - low) if bend < 0 else low
        tried: list[float] = [low, batch, min(batch, high)]
        if low < vertex < min(batch, high):
            tried.append(vertex)
        return max(at(rows) for rows in tried)


def _line(chosen: tuple[float, float, float], rows: float, context_tokens: int) -> float:
    a, b, c = chosen
    return a + b * context_tokens + c * rows


def _plan(*numbers: float) -> Coefficients:
    a, b, c, d, e, f, g, h, i = numbers
    return Coefficients((a, b, c), (d, e, f), (g, h, i), seed_compatible=True)


# LLMServe/DistServe (Apache-2.0),
# simdistserve/estimators/profile_data/profiler-a100-80g.{distserve,vllm}.json, to nine digits: measured on
# A100-80G, by engine, model and tp.
_MEASURED: Mapping[tuple[str, str, int], Coefficients] = MappingProxyType(
    {
        ("distserve", "opt-13b", 1): _plan(
            18.1025465, 0.101912257, 7.12226431e-06,
            19.9347026, 0.000626935652, 0.0385069774, 7.16618895, 0.00057980004, 0.158310962,
        ),
        ("distserve", "opt-13b", 2): _plan(
            14.7429737, 0.0685772074, 2.44957274e-06,
            13.2947964, 0.000341092197, 0.0629639323, 10.6387419, 0.000311833696, 0.085629136,
        ),
        ("distserve", "opt-13b", 4): _plan(
            12.062297, 0.0380814008, 5.22624973e-07,
            10.2562317, 0.000187867023, 0.0326927363, 10.4835149, 0.000171208886, 0.0456664853,
        ),
        ("distserve", "opt-66b", 2): _plan(
            43.0588135, 0.274229287, 2.24780425e-05,
            48.2880155, 0.000942434354, 0.127550201, 28.727694, 0.000474484755, 0.296177924,
        ),
        ("distserve", "opt-66b", 3): _plan(
            32.99823, 0.195682569, 1.2205249e-05,
            35.801544, 0.000584500479, 0.0952669765, 22.6538616, 0.000535848919, 0.208514444,
        ),
        ("distserve", "opt-66b", 4): _plan(
            29.441636, 0.151352181, 8.31745077e-06,
            30.7602846, 0.000451947604, 0.0632841958, 27.4708214, 0.000404684554, 0.124806677,
        ),
        ("distserve", "opt-66b", 8): _plan(
            25.4906624, 0.106591777, 3.39105025e-06,
            23.1551114, 0.000226914885, 0.048006384, 21.7177278, 0.000375808966, 0.0897861418,
        ),
        ("vllm", "opt-13b", 1): _plan(
            22.0522048, 0.140509239, 8.07658482e-06,
            23.475041, 0.000592934466, 0.0607268613, 20.2063562, 0.000490772704, 0.120003139,
        ),
        ("vllm", "opt-13b", 2): _plan(
            27.4408062, 0.0905453268, 8.45205431e-06,
            24.5405842, 0.000224401454, 0.0871578727, 17.9477695, 0.000457085147, 0.111790758,
        ),
        ("vllm", "opt-13b", 4): _plan(
            30.5363226, 0.0515064494, 4.23247313e-07,
            25.9011444, 7.75363445e-05, 0.0552808716, 23.8838847, 0.000284001641, 0.0627652383,
        ),
        ("vllm", "opt-66b", 2): _plan(
            58.3822026, 0.382640803, -7.11414867e-06,
            57.0734414, 0.00364611388, 0.224937363, 26.9837594, 0.00620013238, 0.448256948,
        ),
        ("vllm", "opt-66b", 3): _plan(
            45.7445342, 0.277812775, 3.64624693e-05,
            44.9395862, 0.000809615255, 0.212879796, 43.6960292, 0.000840256735, 0.240064676,
        ),
        ("vllm", "opt-66b", 4): _plan(
            42.9654894, 0.212865842, 4.6010174e-05,
            39.5817894, 0.000694572169, 0.135808682, 40.859718, 0.000426487126, 0.195083725,
        ),
        ("vllm", "opt-66b", 8): _plan(
            38.9311934, 0.157368223, 4.53167625e-06,
            31.1760419, 0.000275565436, 0.0679770397, 29.0877744, 0.000602772026, 0.138960869,
        ),
    }
)  # fmt: skip

# The same folder's max_num_tokens.csv: KV tokens that an instance of (tp, pp) holds.
KV_TOKENS: Mapping[str, Mapping[tuple[int, int], int]] = MappingProxyType(
    {
        "opt-13b": MappingProxyType(
            {(1, 1): 66144, (1, 2): 163008, (1, 4): 356752, (2, 1): 163008, (2, 2): 356752, (2, 4): 744224,
             (4, 1): 356736, (4, 2): 744224, (4, 4): 1519168, (8, 1): 744208}
        ),
        "opt-66b": MappingProxyType(
            {(1, 2): 11600, (1, 4): 78512, (1, 8): 212320, (2, 1): 11600, (2, 2): 78512, (2, 4): 212320,
             (3, 1): 45056, (3, 2): 145408, (4, 1): 78496, (4, 2): 212320, (4, 4): 479936, (6, 1): 145408,
             (8, 1): 212304, (8, 2): 479936, (8, 4): 1015184}
        ),
        "opt-175b": MappingProxyType(
            {(1, 6): 26208, (1, 8): 59536, (2, 3): 26208, (2, 4): 59536, (2, 6): 126160, (3, 2): 26208,
             (3, 3): 76192, (3, 4): 126160, (4, 2): 59520, (4, 3): 126160, (4, 4): 192800, (6, 1): 26208,
             (6, 2): 126160, (8, 1): 59520, (8, 2): 192784, (8, 4): 459328, (8, 8): 992400}
        ),
    }
)  # fmt: skip


def on_a100(
    model: str, tp: int, pp: int = 1, *, engine: str = "distserve", seed_compatible: bool = False
) -> Coefficients:
    """What was measured for `model` with `tp` devices a stage.

    A negative coefficient (one of the vllm tables has one) counts as 0 unless `seed_compatible`.

    Raises:
        NotFound: it was not measured; says what was.
    """
    found = _MEASURED.get((engine, model, tp))
    if found is None:
        known = ", ".join(f"{e} {m} tp{t}" for e, m, t in _MEASURED)
        raise NotFound(f"no A100 table for {model} with tp {tp} on {engine}; there are {known}", param="tp")
    if not seed_compatible:
        a, b, c = found.prefill
        found = replace(found, prefill=(a, b, max(c, 0.0)), seed_compatible=False)
    return replace(found, pp=pp)


def measured_tps(model: str, engine: str = "distserve") -> tuple[int, ...]:
    """Devices a stage with which a model was measured; none for one of which there is only a form."""
    return tuple(tp for each, name, tp in _MEASURED if (each, name) == (engine, model))
