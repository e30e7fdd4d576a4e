"""`Carver`: what policies make of a decoder: blocks left out, widths and heads cut, weights rounded.

Pieces are made from the reference and its own activations, so they fit together in any combination, and each
is made once. What is cut from a layer's inputs is made up for by the inputs that stay, in closed form.
Legend: N outputs, I inputs, K inputs that are kept.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from plait.compression.calibration import Calibration
from plait.compression.gptq import Rounding, compensated, nearest
from plait.compression.kv_rounding import NAME as ROUNDED_KV
from plait.compression.language import FULL_BITS, Decoder, Linear, Storage
from plait.model.quantised import QuantisedWeight
from plait.model.weights_file import read, write
from plait.spec.policy import CompressionPolicy
from plait.spec.schemes import Scheme

RIDGE = 1e-3
"""Added to the second moments of kept inputs when others are made up for, as a share of their mean."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy in whole blocks, channels and heads."""

    alive: tuple[int, ...]
    """Blocks that stay, in order."""
    widths: dict[int, int]
    """Channels of each block's feed-forward layer."""
    kv_heads: dict[int, int]
    kv_bits: dict[int, float]
    bits: dict[str, float]
    """Of each linear layer of the blocks that stay."""


def plan_of(decoder: Decoder, order: Sequence[int], policy: CompressionPolicy) -> Plan:
    """What a policy says of each block; `order` as in `Calibration.order`."""
    chosen = dict(policy.choices)

    def value(unit: str, knob: str, default: float) -> float:
        found = getattr(chosen[unit], knob) if unit in chosen else None
        return default if found is None else found

    gone = round(value(decoder.blocks, "prune", 0.0) * decoder.count)
    alive = tuple(sorted(order[gone:]))
    cut = {b: (value(decoder.mlp(b), "prune", 0.0), value(decoder.attention(b), "prune", 0.0)) for b in alive}
    return Plan(
        alive=alive,
        widths={b: round(decoder.ffn * (1 - share)) for b, (share, _) in cut.items()},
        kv_heads={b: round(decoder.kv_heads * (1 - share)) for b, (_, share) in cut.items()},
        kv_bits={b: value(decoder.attention(b), "kv_bits", FULL_BITS) for b in alive},
        bits={
            x.name: value(x.name, "weight_bits", FULL_BITS) for x in decoder.linears if x.block in set(alive)
        },
    )


@dataclass(frozen=True, slots=True)
class CarverConfig:
    """How weights are rounded."""

    bits: tuple[float, ...]
    """All that policies may ask for; a layer is rounded to all of them in one pass."""
    storage: Storage
    """How they lie in files."""
    compensate: bool = True
    """GPTQ; else each weight is rounded by itself."""
    dtype: torch.dtype = torch.float32
    """Type in which the compressed decoder computes."""
    cache: Path | None = None
    """Folder, of this calibration and these settings alone, where rounded layers are kept."""


class Carver:
    """The reference's weights, and the pieces that policies ask for."""

    def __init__(
        self, module: nn.Module, decoder: Decoder, calibration: Calibration, config: CarverConfig
    ) -> None:
        """`module` is the reference; it is left as it is."""
        self.decoder, self.calibration, self.config = decoder, calibration, config
        self.order = calibration.order(decoder)
        self.reference = module
        self.module = copy.deepcopy(module).to(config.dtype)
        self._blocks = list(self.module.get_submodule(decoder.blocks))
        self._linear = {x.name: x for x in decoder.linears}
        self._types = getattr(module.config, "layer_types", None)
        self._set: dict[str, tuple[float, ...]] = {}
        self._rounded: dict[tuple[str, int, float], QuantisedWeight] = {}
        self.kept_channels = lru_cache(None)(self._kept_channels)
        self.kept_heads = lru_cache(None)(self._kept_heads)
        self.cut = lru_cache(None)(self._cut)

    def plan(self, policy: CompressionPolicy) -> Plan:
        """The policy in whole blocks, channels and heads."""
        return plan_of(self.decoder, self.order, policy)

    def build(self, policy: CompressionPolicy) -> nn.Module:
        """The compressed decoder, its weights as they will be computed with. Valid until the next `build`."""
        plan = self.plan(policy)
        owner = self.module.get_submodule(self.decoder.blocks.rpartition(".")[0])
        blocks = nn.ModuleList(self._blocks[block] for block in plan.alive)
        setattr(owner, self.decoder.blocks.rpartition(".")[2], blocks)
        if self._types:
            self.module.config.layer_types = [self._types[block] for block in plan.alive]
        for place, block in enumerate(plan.alive):
            for linear in (x for x in self.decoder.linears if x.block == block):
                part = self._blocks[block].get_submodule(self._within(linear))
                self._fill(part, linear, plan)
            for part in blocks[place].modules():
                if hasattr(part, "layer_idx"):
                    part.kv_bits = plan.kv_bits[block]
        rounded = any(bits < FULL_BITS for bits in plan.kv_bits.values())
        self.module.set_attn_implementation(ROUNDED_KV if rounded else "sdpa")
        return self.module

    def quantised(self, linear: Linear, plan: Plan) -> QuantisedWeight | None:
        """A layer's whole numbers, rows and inputs cut; None where it is left at 16 bits."""
        bits = plan.bits[linear.name]
        if bits >= FULL_BITS:
            return None
        columns = self._columns(linear, plan)
        if (linear.name, columns, bits) not in self._rounded:
            self._round(linear, columns)
        whole = self._rounded[linear.name, columns, bits]
        rows = self.rows(linear, plan)
        return QuantisedWeight(whole.codes_NI[rows], whole.scales_NG[rows], whole.scheme)

    def dense(self, linear: Linear, plan: Plan) -> Tensor:
        """A layer's weight [N, I] as it is computed with, float32."""
        rounded = self.quantised(linear, plan)
        if rounded is not None:
            return rounded.dense(torch.float32)
        return self.cut(linear.name, self._columns(linear, plan))[0][self.rows(linear, plan)]

    def rows(self, linear: Linear, plan: Plan) -> Tensor:
        """The outputs that a plan keeps of a layer."""
        if linear.kind in ("gate_proj", "up_proj") and self.decoder.prunable:
            return self.kept_channels(linear.block, plan.widths[linear.block])
        if linear.kind in ("q_proj", "k_proj", "v_proj") and self.decoder.prunable:
            heads = self.kept_heads(linear.block, plan.kv_heads[linear.block])
            wide = self.decoder.head_dim * (self.decoder.group if linear.kind == "q_proj" else 1)
            return (heads[:, None] * wide + torch.arange(wide)).flatten()
        return torch.arange(linear.outputs)

    def cut_error(self, linear: Linear, columns: int) -> float:
        """KL in nats a token, to second order, of having only so many inputs."""
        weight_NK, kept_K = self.cut(linear.name, columns)
        delta_NI = -self._weight(linear.name).clone()
        delta_NI[:, kept_K] += weight_NK
        return self._felt(linear.name, delta_NI)

    def bits_error(self, linear: Linear, bits: float) -> float:
        """The same of rounding a whole layer to so many bits."""
        if bits >= FULL_BITS:
            return 0.0
        key = (linear.name, linear.inputs, bits)
        if key not in self._rounded:
            self._round(linear, linear.inputs)
        return self._felt(linear.name, self._rounded[key].dense(torch.float32) - self._weight(linear.name))

    def output_energy(self, linear: Linear) -> float:
        """The same of losing all that a layer writes."""
        return self._felt(linear.name, self._weight(linear.name))

    def _felt(self, name: str, delta_NI: Tensor) -> float:
        moved_N = ((delta_NI @ self.calibration.moments[name]) * delta_NI).sum(1)
        return float(self.calibration.slopes[name] @ moved_N)

    def _weight(self, name: str) -> Tensor:
        return self.reference.get_submodule(name).weight.detach().float()

    def _within(self, linear: Linear) -> str:
        return linear.name.removeprefix(f"{self.decoder.blocks}.{linear.block}.")

    def _columns(self, linear: Linear, plan: Plan) -> int:
        """How many inputs a plan keeps of a layer."""
        if linear.kind == "down_proj" and self.decoder.prunable:
            return plan.widths[linear.block]
        if linear.kind == "o_proj" and self.decoder.prunable:
            return plan.kv_heads[linear.block] * self.decoder.group * self.decoder.head_dim
        return linear.inputs

    def _fill(self, part: nn.Linear, linear: Linear, plan: Plan) -> None:
        key = (plan.bits[linear.name], len(self.rows(linear, plan)), self._columns(linear, plan))
        if self._set.get(linear.name) == key:
            return
        weight_NI = self.dense(linear, plan).to(part.weight.dtype)
        part.weight = nn.Parameter(weight_NI, requires_grad=False)
        part.out_features, part.in_features = weight_NI.shape
        bias_N = self.reference.get_submodule(linear.name).bias
        if bias_N is not None:
            kept_N = bias_N.detach()[self.rows(linear, plan)].to(part.weight.dtype)
            part.bias = nn.Parameter(kept_N, requires_grad=False)
        self._set[linear.name] = key

    def _round(self, linear: Linear, columns: int) -> None:
        """Round a layer, and those that share its input, to all bits; or read that it was done."""
        moments = self.calibration.moments
        together = [n for n in moments if moments[n] is moments[linear.name]]
        told = [(n, bits) for n in together for bits in self.config.bits if bits < FULL_BITS]
        schemes = [self.config.storage.scheme(bits) for _, bits in told]
        path = self.config.cache and self.config.cache / f"{together[0]}-{columns}.safetensors"
        if path and path.exists():
            found = _read_parts(path, told, schemes)
        else:
            kept_K = self.cut(linear.name, columns)[1]
            moments_KK = moments[linear.name][kept_K][:, kept_K]
            work = [Rounding(self.cut(n, columns)[0], s) for (n, _), s in zip(told, schemes, strict=True)]
            if self.config.compensate:
                found = compensated(work, moments_KK)
            else:
                found = [nearest(each, moments_KK) for each in work]
            if path:
                write(path, _parts(told, found))
        self._rounded |= {(n, columns, bits): got for (n, bits), got in zip(told, found, strict=True)}

    def _cut(self, name: str, columns: int) -> tuple[Tensor, Tensor]:
        """A layer's weight [N, K] with so many inputs, the others made up for; and which inputs they are."""
        weight_NI, linear = self._weight(name), self._linear[name]
        if columns == linear.inputs:
            return weight_NI, torch.arange(columns)
        if linear.kind == "down_proj":
            kept_K = self.kept_channels(linear.block, columns)
        else:
            wide = self.decoder.group * self.decoder.head_dim
            heads = self.kept_heads(linear.block, columns // wide)
            kept_K = (heads[:, None] * wide + torch.arange(wide)).flatten()
        moments_II = self.calibration.moments[name]
        own_KK = moments_II[kept_K][:, kept_K]
        own_KK = own_KK + RIDGE * own_KK.diagonal().mean() * torch.eye(len(kept_K))
        # The least squares of kept inputs against the outputs that all inputs gave.
        return torch.linalg.solve(own_KK, moments_II[kept_K] @ weight_NI.T).T.contiguous(), kept_K

    def _kept_channels(self, block: int, count: int) -> Tensor:
        """The channels of a feed-forward layer whose loss would be felt most, ascending."""
        if count == self.decoder.ffn:
            return torch.arange(count)
        name = next(x.name for x in self.decoder.linears if x.block == block and x.kind == "down_proj")
        loud_I = self.calibration.slopes[name] @ self._weight(name).square()
        felt_I = loud_I * self.calibration.moments[name].diagonal()
        return felt_I.topk(count).indices.sort().values

    def _kept_heads(self, block: int, count: int) -> Tensor:
        """The KV heads whose loss, with their query heads, would be felt most, ascending."""
        if count == self.decoder.kv_heads:
            return torch.arange(count)
        name = next(x.name for x in self.decoder.linears if x.block == block and x.kind == "o_proj")
        felt = []
        for weight_NW, first in zip(
            self._weight(name).chunk(self.decoder.kv_heads, 1), range(self.decoder.kv_heads), strict=True
        ):
            own = slice(first * weight_NW.shape[1], (first + 1) * weight_NW.shape[1])
            moved_N = ((weight_NW @ self.calibration.moments[name][own, own]) * weight_NW).sum(1)
            felt.append(float(self.calibration.slopes[name] @ moved_N))
        return torch.tensor(felt).topk(count).indices.sort().values


def _parts(told: Sequence[tuple[str, float]], found: Sequence[QuantisedWeight]) -> dict[str, Tensor]:
    """Tensors of layers rounded to bits, by name."""
    both = list(zip(told, found, strict=True))
    codes = {f"{name}.{bits:g}.codes": weight.codes_NI for (name, bits), weight in both}
    return codes | {f"{name}.{bits:g}.scales": weight.scales_NG for (name, bits), weight in both}


def _read_parts(
    path: Path, told: Sequence[tuple[str, float]], schemes: Sequence[Scheme]
) -> list[QuantisedWeight]:
    """What was written of them."""
    tensors = read(path)
    return [
        QuantisedWeight(tensors[f"{name}.{bits:g}.codes"], tensors[f"{name}.{bits:g}.scales"], scheme)
        for (name, bits), scheme in zip(told, schemes, strict=True)
    ]
