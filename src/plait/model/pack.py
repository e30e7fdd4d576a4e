"""Linear layers for serving: parameters stay parameters, and training's forward comes back with `remove`.

Siblings (query, key, value; gate, up) are computed in one product: whichever is called first computes
for all, the others take their share.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plait.kernels import ops
from plait.kernels.memory import on_large_pages
from plait.model.quantised import QuantisedWeight
from plait.spec.schemes import GROUPED

log = logging.getLogger(__name__)

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
LARGEST_GROUP = 128
"""Inputs that share a scale at most, in 4-bit weights."""
Product = Callable[[Tensor], Tensor]
"""Takes [..., I] and gives [..., N]."""


class PackedProduct:
    """A float32 product by our own kernel: a fixed-order sum for each element, whatever the batch.

    It reads a reordered copy of the weights.
    """

    __slots__ = ("bias_N", "members", "outputs", "packed", "threads")

    def __init__(self, members: list[nn.Module], threads: int) -> None:
        weights_NI = [_weight(member).detach() for member in members]
        self.packed, self.bias_N = ops.pack(weights_NI), _bias(members)
        self.outputs, self.threads = sum(len(weight) for weight in weights_NI), threads
        self.members = members

    def repack(self) -> None:
        """Take what the members' parameters are now, into the same memory: tapes know its address."""
        self.packed.copy_(ops.pack([_weight(member).detach() for member in self.members]))
        if self.bias_N is not None:
            self.bias_N.copy_(_bias(self.members))

    def __call__(self, x: Tensor) -> Tensor:
        out_TN = ops.linear(x.reshape(-1, x.shape[-1]), self.packed, self.bias_N, self.outputs, self.threads)
        return out_TN.view(*x.shape[:-1], self.outputs)


class Bf16Product:
    """A bf16 product by our own kernel: sums in float32 in a fixed order, rounded to bf16 once.

    It reads a reordered copy of the weights at the speed of memory. Torch's own product may round
    the sum before it adds a bias, and sums in another order: the two differ by a rounding of bf16.
    """

    __slots__ = ("bias_N", "outputs", "packed", "threads", "wide")

    def __init__(self, members: list[nn.Module], threads: int, wide: bool) -> None:
        """`wide`: give the float32 sums as they are."""
        weights_NI, bias_N = [_weight(member).detach() for member in members], _bias(members)
        self.wide = wide
        self.packed, self.bias_N = ops.pack_bf16(weights_NI), None if bias_N is None else bias_N.float()
        self.outputs, self.threads = sum(len(weight) for weight in weights_NI), threads

    def __call__(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        out_TN = ops.linear_bf16(x_TI, self.packed, self.bias_N, self.outputs, self.wide, self.threads)
        return out_TN.view(*x.shape[:-1], self.outputs)


class GatedProduct:
    """Both projections of a gated layer and its activation in one: `silu(x @ gate.T) * (x @ up.T)`."""

    __slots__ = ("packed", "threads", "width")

    def __init__(self, gate_NI: Tensor, up_NI: Tensor, threads: int) -> None:
        self.packed, self.width, self.threads = ops.pack_gated(gate_NI, up_NI), len(gate_NI), threads

    def __call__(self, x: Tensor) -> Tensor:
        out_TN = ops.gated_bf16(x.reshape(-1, x.shape[-1]), self.packed, self.width, self.threads)
        return out_TN.view(*x.shape[:-1], self.width)

    def halves(self, x_TI: Tensor) -> Tensor:
        """Both projections before the activation: float32 [T, 2, width]."""
        return ops.gated_halves(x_TI, self.packed, self.width, self.threads)


class QuantisedProduct:
    """A bf16 product with quantised weights, each times its scale; sums are float32, rounded once.

    Whole numbers of up to 4 bits are kept in 4, others in 8.

    4-bit weights with one scale an output have that scale in each group of inputs.
    """

    __slots__ = ("bias_N", "group", "outputs", "packed", "scales", "threads", "wide")

    def __init__(
        self, members: list[nn.Module], weights: list[QuantisedWeight], threads: int, wide: bool
    ) -> None:
        """`wide`: give the float32 sums as they are."""
        scheme, bias_N, codes = weights[0].scheme, _bias(members), [weight.codes_NI for weight in weights]
        scales_NG = torch.cat([weight.scales_NG for weight in weights])
        self.group = None if scheme.bits > GROUPED else scheme.group or LARGEST_GROUP
        if self.group and not scheme.group:
            scales_NG = scales_NG.expand(-1, -(-codes[0].shape[1] // LARGEST_GROUP))
        self.packed = ops.pack_int4(codes) if self.group else ops.pack_int8(codes)
        self.scales = ops.pack_scales(scales_NG)
        self.bias_N = None if bias_N is None else bias_N.float()
        self.outputs, self.threads, self.wide = len(scales_NG), threads, wide

    def __call__(self, x: Tensor) -> Tensor:
        x_TI, rest = x.reshape(-1, x.shape[-1]), (self.wide, self.threads)
        if self.group is None:
            out_TN = ops.linear_int8(x_TI, self.packed, self.scales, self.bias_N, self.outputs, *rest)
        else:
            out_TN = ops.linear_int4(
                x_TI, self.packed, self.scales, self.bias_N, self.outputs, self.group, *rest
            )
        return out_TN.view(*x.shape[:-1], self.outputs)


class TorchProduct:
    """The same by torch: any type, and sums whose order follows the batch.

    The weights of several layers move into one buffer, and the layers' parameters become its rows.
    """

    __slots__ = ("bias_N", "weight_NI")

    def __init__(self, members: list[nn.Module]) -> None:
        self.bias_N = _bias(members)
        if len(members) == 1:
            self.weight_NI = _weight(members[0]).detach()
            return
        self.weight_NI = torch.cat([member.weight.detach() for member in members])
        ends = accumulate(len(member.weight) for member in members)
        for member, end in zip(members, ends, strict=True):
            member.weight.data = self.weight_NI[end - len(member.weight) : end]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_NI, self.bias_N)


class Siblings:
    """One product for layers that get the same input, kept until each has taken its share."""

    __slots__ = ("input", "left", "product", "shares", "sizes")

    def __init__(self, product: Product, sizes: list[int]) -> None:
        self.product, self.sizes = product, sizes
        self.input: Tensor | None = None
        self.shares: tuple[Tensor, ...] = ()
        self.left = 0

    def share(self, x: Tensor, index: int) -> Tensor:
        """The share of sibling `index`; computes all shares if `x` is not the last input."""
        if x is not self.input:
            self.shares, self.input, self.left = self.product(x).split(self.sizes, -1), x, len(self.sizes)
        share = self.shares[index]
        self.left -= 1
        if not self.left:
            self.shares, self.input = (), None
        return share


class Share:
    """The forward of one sibling."""

    __slots__ = ("group", "index")

    def __init__(self, group: Siblings, index: int) -> None:
        self.group, self.index = group, index

    def __call__(self, x: Tensor) -> Tensor:
        return self.group.share(x, self.index)


def install(
    module: nn.Module, packed: bool, threads: int, quantised: Mapping[str, QuantisedWeight] | None = None
) -> int:
    """Give every linear layer its serving forward; returns how many products a forward makes.

    Args:
        packed: by our kernels for float32 and bf16, else by torch.
        quantised: layers by name that use these weights instead, always by our kernels.
    """
    weights = {id(module.get_submodule(name)): weight for name, weight in (quantised or {}).items()}

    def product(members: list[nn.Module]) -> Product:
        if id(members[0]) in weights:
            kept = [weights[id(member)] for member in members]
            return QuantisedProduct(members, kept, threads, wide=members[0] is head)
        if not packed:
            return TorchProduct(members)
        if members[0].weight.dtype == torch.float32:
            return PackedProduct(members, threads)
        return Bf16Product(members, threads, wide=members[0] is head)

    head = module.get_output_embeddings()
    taken: set[int] = set()
    count = 0
    for parent in module.modules():
        for names in SIBLINGS:
            members = [getattr(parent, name, None) for name in names]
            if _alike(members) and _same_form([weights.get(id(member)) for member in members]):
                _join(members, product(members))
                taken.update(id(member) for member in members)
                count += 1
    for part in module.modules():
        if isinstance(part, nn.Linear | Conv1D) and id(part) not in taken:
            part.forward = product([part])
            count += 1
    log.info("%d products a step, %s", count, "packed" if packed else "by torch")
    return count


def gated(layer: nn.Module, threads: int) -> GatedProduct | None:
    """One product for gate and values of a feed-forward layer, where they are packed bf16 without bias."""
    parts = [getattr(layer, name, None) for name in ("gate_up_proj", "gate_proj", "up_proj")]
    parts = [part for part in parts if part is not None]
    if not all(isinstance(_product(part), Bf16Product) and part.bias is None for part in parts):
        return None
    halves = (
        [part.weight.detach() for part in parts] if len(parts) == 2 else parts[0].weight.detach().chunk(2)
    )
    return GatedProduct(*halves, threads)


def unpack(layer: nn.Module) -> None:
    """Let the gate and the values of a feed-forward layer go: `gated` computes them."""
    for name in ("gate_up_proj", "gate_proj", "up_proj"):
        if part := getattr(layer, name, None):
            part.__dict__.pop("forward", None)


def gather(module: nn.Module) -> int:
    """Move all packed weights into one buffer on large pages, in the order of the module's parts, which is
    that of a step: reads run on over the borders of pages and products. Returns its size in bytes."""
    products = {id(p): p for part in module.modules() if hasattr(p := _product(part), "packed")}
    line = 64
    sizes = [-(-product.packed.nbytes // line) * line for product in products.values()]
    buffer = on_large_pages((sum(sizes),), torch.uint8)
    for product, size, past in zip(products.values(), sizes, accumulate(sizes), strict=True):
        was = product.packed
        product.packed = buffer[past - size : past - size + was.nbytes].view(was.dtype).view(was.shape)
        product.packed.copy_(was)
    return len(buffer)


def repack(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Give an installed module other parameters and its products copies of them.

    False, and nothing is changed, where it has other parameters than these by name, or products that cannot
    be made anew in place: those of bf16 and quantised weights.
    """
    parameters = dict(module.named_parameters())
    products = {id(p): p for part in module.modules() if hasattr(p := _product(part), "packed")}
    plain = all(isinstance(product, PackedProduct) for product in products.values())
    if not plain or not products or parameters.keys() != weights.keys():
        return False
    if any(weights[name].shape != parameter.shape for name, parameter in parameters.items()):
        return False
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for product in products.values():
        product.repack()
    return True


def _product(part: nn.Module) -> Product | None:
    """What computes a layer's output: its own product, that of its siblings, or its gate's."""
    forward = part.__dict__.get("forward")
    if isinstance(forward, Share):
        return forward.group.product
    return getattr(forward, "product", forward)


def give_up(module: nn.Module, names: Iterable[str]) -> None:
    """Free the parameters of quantised layers, whose products have their own weights."""
    for name in names:
        weight = module.get_submodule(name).weight
        weight.data = weight.new_empty(0)


def remove(module: nn.Module) -> None:
    """Give every linear layer its own forward back, as for training."""
    for part in module.modules():
        if isinstance(part, nn.Linear | Conv1D):
            part.__dict__.pop("forward", None)


def _alike(members: list[nn.Module | None]) -> bool:
    """Whether these are linear layers with equal inputs, all with or all without bias."""
    if not all(type(member) is nn.Linear for member in members):
        return False
    return len({(m.in_features, m.bias is None, m.weight.dtype) for m in members}) == 1


def _same_form(weights: list[QuantisedWeight | None]) -> bool:
    """Whether these weights, None for those that are not quantised, go into one product."""

    def form(weight: QuantisedWeight | None) -> tuple[object, ...] | None:
        if weight is None:
            return None
        scheme, scales_NG = weight.scheme, weight.scales_NG
        return scheme.bits > GROUPED, scheme.group, scales_NG.shape[1], scales_NG.dtype

    return len({form(weight) for weight in weights}) == 1


def _join(members: list[nn.Module], product: Product) -> None:
    """Give the members one product, of which each takes its share."""
    group = Siblings(product, [member.out_features for member in members])
    for index, member in enumerate(members):
        member.forward = Share(group, index)


def _weight(member: nn.Module) -> Tensor:
    """The weight as [outputs, inputs]; GPT-2's Conv1D keeps it the other way round."""
    return member.weight.T if isinstance(member, Conv1D) else member.weight


def _bias(members: list[nn.Module]) -> Tensor | None:
    return None if members[0].bias is None else torch.cat([member.bias.detach() for member in members])
