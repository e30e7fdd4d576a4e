"""`Published`: the coefficient form of DistServe's simulator, its cliff between 94 and 95 rows repaired."""

from dataclasses import dataclass, replace

from plait.cost.cost import Load
from plait.spec.step import Step

Triple = tuple[float, float, float]
MS = 1e6
SMALL, LARGE = 94, 128
"""Rows up to which the coefficients of small batches hold, and from which those of large ones do."""


@dataclass(frozen=True, slots=True)
class Published:
    """Prefill: a + b * sum(len) + c * sum(len^2). Decode: a + b * sum(context) + c * rows, with one set of
    coefficients below 95 rows and another from there on. Milliseconds.

    At 95 rows the second set is up to 24 % below or 26 % above the first. Repaired, the time goes in a
    straight line from the first set at 94 rows to the second at 128 (where it was measured again), at equal
    context per row, and never falls; a negative coefficient of the square, which one published plan has, is
    taken as 0. `repaired` False is the published form, to compare with its simulator. A pipeline of `pp`
    stages divides the time and adds 1 ms a stage to a prefill.
    """

    prefill: Triple
    decode_small: Triple
    decode_large: Triple
    pp: int = 1
    repaired: bool = True

    def staged(self, pp: int) -> "Published":
        """The same instance cut into `pp` pipeline stages."""
        return replace(self, pp=pp)

    def step_ns(self, step: Step) -> int:
        """See `Cost`. A step with both phases pays the larger fixed part and the rest of both."""
        load = Load.of(step)
        ms, fixed = 0.0, []
        if load.chunk_tokens:
            squares = 2 * load.chunk_pairs - load.chunk_tokens
            ms += self.prefill_ms(load.chunk_tokens, squares)
            fixed.append(self.prefill[0] / self.pp)
        if load.decodes:
            ms += self.decode_ms(load.decodes, load.context_tokens)
            fixed.append(self.decode_small[0] / self.pp)
        return max(1, round((ms - (min(fixed) if len(fixed) > 1 else 0.0)) * MS))

    def prefill_ms(self, tokens: float, squares: float) -> float:
        """Milliseconds of prompts whose lengths, and whose squared lengths, sum to this."""
        a, b, c = self.prefill
        return (a + b * tokens + (max(c, 0.0) if self.repaired else c) * squares) / self.pp + self.pp

    def decode_ms(self, rows: int, context: float) -> float:
        """Milliseconds of one token for each of `rows` rows that attend to `context` tokens together."""
        if not self.repaired:
            return _affine(self.decode_small if rows <= SMALL else self.decode_large, rows, context) / self.pp
        if rows <= SMALL:
            return _affine(self.decode_small, rows, context) / self.pp
        each = context / rows
        low = _affine(self.decode_small, SMALL, SMALL * each)
        if rows >= LARGE:
            return max(low, _affine(self.decode_large, rows, context)) / self.pp
        high = max(low, _affine(self.decode_large, LARGE, LARGE * each))
        return (low + (high - low) * (rows - SMALL) / (LARGE - SMALL)) / self.pp


def _affine(coefficients: Triple, rows: float, context: float) -> float:
    a, b, c = coefficients
    return a + b * context + c * rows
