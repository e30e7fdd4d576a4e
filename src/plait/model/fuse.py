"""Fused norms and gates in transformers' modules, found by their structure and trusted by their results.

Each is compared with the module's own forward on random input when it is installed; where they differ the
module keeps its own, and the log says so. With gradients on, the module's own forward runs.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from plait.kernels import pointwise
from plait.model import pack

log = logging.getLogger(__name__)

SLACK = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest difference allowed, as a share of the largest value."""
Fused = Callable[[Tensor], Tensor]


class Norm:
    """A root-mean-square norm over the last dimension."""

    __slots__ = ("eps", "module", "offset", "threads")

    def __init__(self, module: nn.Module, eps: float, offset: float, threads: int) -> None:
        self.module, self.eps, self.offset, self.threads = module, eps, offset, threads

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return type(self.module).forward(self.module, hidden_states)
        x_TN, weight_N = hidden_states.flatten(0, -2), self.module.weight
        return pointwise.rms_norm(x_TN, weight_N, self.offset, self.eps, self.threads).view(
            hidden_states.shape
        )


class Gate:
    """A feed-forward layer whose up-projection is gated by the SiLU of another."""

    __slots__ = ("module", "product", "threads")

    def __init__(self, module: nn.Module, threads: int, product: pack.GatedProduct | None = None) -> None:
        """`product`: computes all but the last projection."""
        self.module, self.threads, self.product = module, threads, product

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        if torch.is_grad_enabled():
            return type(module).forward(module, x)
        if self.product is not None:
            return module.down_proj(self.product(x))
        if hasattr(module, "gate_up_proj"):
            gate, up = module.gate_up_proj(x).chunk(2, -1)
        else:
            gate, up = module.gate_proj(x), module.up_proj(x)
        inner_TN = pointwise.silu_mul(gate.flatten(0, -2), up.flatten(0, -2), self.threads)
        return module.down_proj(inner_TN.view(*x.shape[:-1], inner_TN.shape[-1]))


def install(module: nn.Module, dtype: torch.dtype, threads: int) -> int:
    """Fuse what can be fused; returns how many modules run fused."""
    count = 0
    for name, part in module.named_modules():
        width, candidates = _candidates(part, threads)
        if not candidates:
            continue
        fused = next((each for each in candidates if _equal(part, each, width, dtype)), None)
        if fused is None:
            log.warning("%s (%s) differs from its fused form: left as it is", name, type(part).__name__)
            continue
        part.forward = fused
        if isinstance(fused, Gate) and fused.product is not None:
            pack.unpack(part)
        count += 1
    log.info("%d modules run fused", count)
    return count


def remove(module: nn.Module) -> None:
    """Give every fused module its own forward back."""
    for part in module.modules():
        if isinstance(part.__dict__.get("forward"), Norm | Gate):
            del part.forward


def _candidates(part: nn.Module, threads: int) -> tuple[int, list[Fused]]:
    """(width of the input, fused forms that may equal the module's)."""
    children = {name for name, _ in part.named_children()}
    if "RMSNorm" in type(part).__name__ and not children:
        eps, weight = getattr(part, "variance_epsilon", getattr(part, "eps", None)), part._parameters
        if eps is not None and list(weight) == ["weight"]:
            return len(part.weight), [Norm(part, float(eps), offset, threads) for offset in (0.0, 1.0)]
    products = children - {"act_fn", "activation_fn"}
    if products in ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}):
        product = pack.gated(part, threads)
        whole = [] if product is None else [Gate(part, threads, product)]
        return part.down_proj.out_features, [*whole, Gate(part, threads)]
    return 0, []


def _equal(part: nn.Module, fused: Fused, width: int, dtype: torch.dtype) -> bool:
    """Whether both give the same on random input, for one token and for several."""
    generator, device = torch.Generator().manual_seed(0), next(part.parameters()).device
    with torch.inference_mode():
        for tokens, size in ((1, 1.0), (5, 0.01), (3, 30.0)):
            x = (torch.randn(1, tokens, width, generator=generator, device="cpu") * size).to(device, dtype)
            own = type(part).forward(part, x)
            got = fused(x)
            slack = SLACK[dtype] * max(float(own.abs().max()), 1e-6)
            if got.dtype != own.dtype or got.shape != own.shape:
                return False
            if not float((got.float() - own.float()).abs().max()) <= slack:
                return False
    return True
