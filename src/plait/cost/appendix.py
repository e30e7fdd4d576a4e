"""`Appendix`: DistServe's analytic latency model (arXiv 2401.09670, appendix A), carried from one model to
another.

    prefill   T1 = C1 (4 t h^2 + 2 t h m) + T2 = C2 3 h t2 / b + C3       t tokens, t2 their squared lengths
    decode    T3 = C4 (4 h^2 + 2 h m)     + T4 = C5 3 h t                 t tokens of context

a layer, with hidden size h and FFN width m; tp divides both terms, and pp puts layers one after another. The
constants are per element; b, the tokens of a FlashAttention block, is part of C2. The paper's form has no
term for the rows of a decode batch, though measurements show one: C6 h, per row and layer, extends it. A step
with both phases does not pay the smaller of C3 and T3's weights, as in `Coefficients`.
"""

from dataclasses import dataclass, replace

from plait.cost.coefficients import Coefficients, on_a100
from plait.cost.cost import Load
from plait.spec.errors import UserError
from plait.spec.shape import LayerShape, ModelShape
from plait.spec.step import Step

MS = 1e6


@dataclass(frozen=True, slots=True)
class Constants:
    """Milliseconds an element of work."""

    gemm: float
    """C1."""
    attention: float
    """C2 / b."""
    fixed: float
    """C3 a layer: launches, Python, exchanges."""
    weights: float
    """C4."""
    cache: float
    """C5."""
    row: float
    """C6: not in the paper."""

    @staticmethod
    def of(measured: Coefficients, shape: ModelShape, tp: int) -> "Constants":
        """The constants that reproduce a table (its small batches) on the shape that it was measured on."""
        gemm, width = _work(shape)
        a, b, c = measured.prefill
        fixed, context, row = measured.small
        hidden = 3 * width / tp
        return Constants(
            gemm=b / (gemm / tp),
            attention=c / hidden,
            fixed=a / len(shape.layers),
            weights=fixed / (gemm / tp),
            cache=context / hidden,
            row=row / width,
        )


@dataclass(frozen=True, slots=True)
class Appendix:
    """A model of `shape` on `tp` devices a stage and `pp` stages."""

    constants: Constants
    shape: ModelShape
    tp: int = 1
    pp: int = 1
    hop_ms: float = 1.0
    """Between stages; also the table's fixed addition to a prefill."""

    def __post_init__(self) -> None:
        layers = len(self.shape.layers)
        if self.tp < 1 or self.pp < 1:
            raise UserError(f"tp is {self.tp} and pp {self.pp}; both are at least 1", param="tp")
        if self.pp > layers:
            raise UserError(f"{layers} layers cannot be cut into {self.pp} stages", param="pp")

    def step_ns(self, step: Step) -> int:
        """All stages; see `Cost`."""
        return sum(self.stages_ns(step))

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        """See `Staged`."""
        load, found = Load.of(step), self.constants
        if load.members > 1:
            raise UserError(
                "the analytic form is of one instance; for groups take `ByGroup` or a roofline", "group"
            )
        gemm, width = _work(self.shape)
        hidden, layers = 3 * width / self.tp, len(self.shape.layers)
        total = 0.0
        if load.chunk_tokens:
            squares = 2 * load.chunk_pairs - load.chunk_tokens
            total += found.gemm * load.chunk_tokens * gemm / self.tp
            total += found.attention * hidden * squares + found.fixed * layers + self.hop_ms * self.pp**2
        if load.decodes:
            total += found.weights * gemm / self.tp + found.cache * hidden * load.context_tokens
            total += found.row * width * load.decodes
        if load.chunk_tokens and load.decodes:
            total -= min(found.fixed * layers, found.weights * gemm / self.tp)
        return (max(1, round(total / self.pp * MS)),) * self.pp


def opt_175b(shape: ModelShape, tp: int, pp: int) -> Appendix:
    """OPT-175B on A100, of which no times were published: the constants of OPT-66B.

    They are taken from the table with the nearest measured tp that is not larger (2, 3, 4 or 8).

    Raises:
        UserError: the shape is not that of OPT-175B (96 layers of 12,288).
    """
    if (len(shape.layers), shape.hidden) != (96, 12288):
        raise UserError("opt_175b needs the shape of OPT-175B: 96 layers of 12,288", param="model")
    near = max((each for each in (2, 3, 4, 8) if each <= tp), default=2)
    sized = replace(shape, layers=(_opt_66b_layer(shape),) * 64, hidden=9216)
    return Appendix(Constants.of(on_a100("opt-66b", near), sized, near), shape, tp, pp)


def _opt_66b_layer(shape: ModelShape) -> LayerShape:
    return replace(shape.layers[0], heads=72, kv_heads=72, head_dim=128, hidden=9216, ffn=36864)


def _work(shape: ModelShape) -> tuple[float, float]:
    """Sums over the layers: 4 h^2 + 2 h m, and h."""
    gemm = sum(layer.weights for layer in shape.layers)
    return float(gemm), float(sum(layer.heads * layer.head_dim for layer in shape.layers))
