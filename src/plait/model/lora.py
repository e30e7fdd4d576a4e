"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the products of a model that serves.

After a base product whose layer has an adapter, the tokens of adapter i get `(x A_i^T) B_i^T * scale` added,
in float32, adapter after adapter. Other tokens, and steps without such tokens, are computed as if there were
none: what a hook does then is to call the product. In exact mode both factors are multiplied by the kernel
that sums in a fixed order, so no bit of a row depends on what else is in the batch.

Legend: T tokens, A tokens with an adapter, I inputs, N outputs, R rank.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plait.kernels import ops, pointwise
from plait.model.fuse import Gate
from plait.model.inputs import Adapted, Current
from plait.model.lora_folder import CONFIG, WEIGHTS, LoraSettings, digest_of, files_of, settings_of
from plait.model.pack import GatedProduct, Product
from plait.model.shard import Cut, Reduced
from plait.model.stage import Elsewhere, Received
from plait.spec.adapter import Adapter
from plait.spec.errors import Unsupported, UserError

log = logging.getLogger(__name__)

PREFIX, ENDS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
"""What peft puts around a layer's name."""
GATES = ("gate_proj", "up_proj", "gate_up_proj")
"""Layers that a fused gate computes without calling them."""
Pair = tuple[Tensor, Tensor]
"""A [R, I] and B [N, R]."""


class Factors:
    """Both factors of one layer's adapter."""

    __slots__ = ("a", "b", "outputs", "packed", "rank", "threads")

    def __init__(self, pair: Pair, scale: float, threads: int, device: torch.device, *, packed: bool) -> None:
        """`packed`: multiply by our float32 kernel, else by torch."""
        a_RI, b_NR = (factor.float().contiguous() for factor in pair)
        b_NR = b_NR * scale
        self.packed, self.threads, self.rank, self.outputs = packed, threads, len(a_RI), len(b_NR)
        self.a = ops.pack([a_RI]) if packed else a_RI.to(device)
        self.b = ops.pack([b_NR]) if packed else b_NR.to(device)

    def __call__(self, x_AI: Tensor) -> Tensor:
        """What they add to the outputs [A, N], float32."""
        x_AI = x_AI.float()
        if not self.packed:
            return F.linear(F.linear(x_AI, self.a), self.b)
        inner_AR = ops.linear(x_AI, self.a, None, self.rank, self.threads)
        return ops.linear(inner_AR, self.b, None, self.outputs, self.threads)


class Hook:
    """A layer's product, then what adapters add for their tokens."""

    __slots__ = ("current", "factors", "product")

    def __init__(self, product: Product, current: Current) -> None:
        self.product, self.current = product, current
        self.factors: dict[int, Factors] = {}
        """By the numbers of adapters."""

    def __call__(self, x: Tensor) -> Tensor:
        out = self.product(x)
        step = self.current.adapted and self.current.adapted.among(self.factors)
        if step:
            x_AI = x.reshape(-1, x.shape[-1]).index_select(0, step.tokens_A)
            out_TN = out.view(-1, out.shape[-1])
            out_TN.index_copy_(
                0, step.tokens_A, self.added(out_TN.index_select(0, step.tokens_A), x_AI, step)
            )
        return out

    def added(self, out_AN: Tensor, x_AI: Tensor, step: Adapted) -> Tensor:
        """Outputs [A, N] with what adapters add, in the type of the outputs.

        Args:
            step: of these tokens.
        """
        counts = [count for _, count in step.groups]
        parts = [
            self._delta(each, x, out_AN) for (each, _), x in zip(step.groups, x_AI.split(counts), strict=True)
        ]
        delta_AN = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (out_AN.float() + delta_AN).to(out_AN.dtype)

    def _delta(self, number: int, x_AI: Tensor, out_AN: Tensor) -> Tensor:
        factors = self.factors.get(number)
        return (
            torch.zeros(len(x_AI), out_AN.shape[1], device=x_AI.device) if factors is None else factors(x_AI)
        )


class GateHook:
    """A fused gate; tokens whose adapter is on what it fuses get its projections before the activation."""

    __slots__ = ("gate", "hooks")

    def __init__(self, gate: Gate, hooks: list[Hook]) -> None:
        """`hooks`: of the gate and the values, or of both in one."""
        self.gate, self.hooks = gate, hooks

    def __call__(self, x: Tensor) -> Tensor:
        gate, adapted = self.gate, self.hooks[0].current.adapted
        step = adapted and adapted.among({number for hook in self.hooks for number in hook.factors})
        if not step or torch.is_grad_enabled():
            return gate(x)
        assert gate.product is not None, "a gate that fuses nothing calls its layers"
        x_TI = x.reshape(-1, x.shape[-1])
        all_have = len(step.tokens_A) == len(x_TI)
        inner = x.new_empty(*x.shape[:-1], gate.product.width) if all_have else gate.product(x)
        inner_AN = self._inner(x_TI.index_select(0, step.tokens_A), step, gate.product)
        inner.view(-1, inner.shape[-1]).index_copy_(0, step.tokens_A, inner_AN)
        return gate.module.down_proj(inner)

    def _inner(self, x_AI: Tensor, step: Adapted, product: GatedProduct) -> Tensor:
        halves_A2N = product.halves(x_AI)
        if len(self.hooks) == 1:
            both_AN = self.hooks[0].added(halves_A2N.flatten(1), x_AI, step)
            gate_AN, up_AN = both_AN.to(x_AI.dtype).chunk(2, -1)
        else:
            gate_AN, up_AN = (
                hook.added(half_AN, x_AI, step).to(x_AI.dtype)
                for hook, half_AN in zip(self.hooks, halves_A2N.unbind(1), strict=True)
            )
        return pointwise.silu_mul(gate_AN, up_AN, self.gate.threads)


class Adapters:
    """Those of one model, or of one process's share of it."""

    def __init__(
        self, module: nn.Module, current: Current, cuts: dict[str, Cut], threads: int, *, packed: bool
    ) -> None:
        """
        Args:
            module: with its serving forwards.
            cuts: part of each parameter that is here, where they are divided.
            packed: multiply factors by our float32 kernel, else by torch.
        """
        self._module, self._current, self._cuts, self._threads = module, current, cuts, threads
        self._packed, self._device = packed, next(module.parameters()).device
        self._hooks: dict[str, Hook] = {}
        self._hung: list[tuple[Any, str, Any]] = []
        """(holder, attribute, what it was) of each forward that a hook took the place of, in that order."""
        self._numbers: dict[int, None] = {}

    def __contains__(self, number: int) -> bool:
        return not number or number in self._numbers

    def load(self, adapter: Adapter) -> None:
        """Have an adapter from now on.

        Raises:
            UserError: its files are not those that were meant, or do not fit this model.
            Unsupported: it wants what we do not do.
        """
        folder = Path(adapter.folder)
        config, weights = files_of(folder)
        if digest_of(config, weights) != adapter.digest:
            raise UserError(f"{folder} has changed since it was named: load it again", "lora")
        settings = settings_of(config, str(folder / CONFIG))
        found = dict(self._shares(_pairs(weights, folder / WEIGHTS), settings, folder))
        for name, pair in found.items():
            factors = Factors(pair, settings.scale, self._threads, self._device, packed=self._packed)
            if not torch.isfinite(factors.b).all():
                raise UserError(
                    f"{folder}: {name} times lora_alpha / r is not finite: train it again", "lora"
                )
            self._hook(name).factors[adapter.number] = factors
        self._numbers[adapter.number] = None
        log.info(
            "adapter %d: rank %d on %d layers, from %s", adapter.number, settings.rank, len(found), folder
        )

    def drop(self, number: int) -> None:
        """Have it no more. When it was the last one, every layer has its own forward again."""
        self._numbers.pop(number, None)
        for hook in self._hooks.values():
            hook.factors.pop(number, None)
        if not self._numbers:
            for holder, attribute, forward in reversed(self._hung):
                setattr(holder, attribute, forward)
            self._hung.clear()
            self._hooks.clear()

    def _shares(
        self, pairs: dict[str, Pair], settings: LoraSettings, folder: Path
    ) -> Iterator[tuple[str, Pair]]:
        """The layers that are here, each with its part of both factors."""
        for name, (a_RI, b_NR) in pairs.items():
            part = self._layer(name, folder)
            if part is None:
                continue
            cut = self._cuts.get(f"{name}.weight")
            sizes = [_outputs(part), _inputs(part)]
            if cut is not None:
                sizes[cut.dim] = cut.whole
            wanted = [settings.rank, sizes[1]], [sizes[0], settings.rank]
            if (list(a_RI.shape), list(b_NR.shape)) != wanted:
                raise UserError(
                    f"{folder}: {name} has factors {list(a_RI.shape)} and {list(b_NR.shape)}, where this "
                    f"model and r call for {wanted[0]} and {wanted[1]}: it was trained on another model",
                    "lora",
                )
            if cut is not None:
                a_RI, b_NR = (cut.of(a_RI), b_NR) if cut.dim else (a_RI, cut.of(b_NR))
            yield name, (a_RI, b_NR)

    def _layer(self, name: str, folder: Path) -> nn.Module | None:
        """The linear layer of this name; None where another stage has it."""
        part = self._module
        for step in name.split("."):
            if isinstance(part, Elsewhere | Received):
                return None
            found = getattr(part, step, None)
            if not isinstance(found, nn.Module):
                raise UserError(
                    f"{folder}: this model has no layer {name}: it is another model's adapter", "lora"
                )
            part = found
        if isinstance(part, Elsewhere | Received):
            return None
        head = self._module.get_output_embeddings()
        if not isinstance(part, nn.Linear | Conv1D) or part is head or "expert" in name:
            raise Unsupported(
                f"{folder}: {name} has an adapter; plait serves those of linear layers, but not of output "
                "heads and experts: train it without",
                "lora",
            )
        return part

    def _hook(self, name: str) -> Hook:
        """Of a layer; made for its first adapter."""
        if name not in self._hooks:
            part = self._module.get_submodule(name)
            above, _, last = name.rpartition(".")
            gate = self._module.get_submodule(above).__dict__.get("forward")
            if last in GATES and isinstance(gate, Gate) and gate.product is not None:
                self._hang_gate(above, gate)
            else:
                holder, attribute = part, "forward"
                if isinstance(part.forward, Reduced):
                    holder, attribute = part.forward, "product"
                hook = self._hooks[name] = Hook(getattr(holder, attribute), self._current)
                self._hang(holder, attribute, hook)
        return self._hooks[name]

    def _hang_gate(self, name: str, gate: Gate) -> None:
        """In the place of a fused gate, whose layers have not been called so far."""
        layers = [each for each in GATES if hasattr(gate.module, each)]
        hooks = [Hook(getattr(gate.module, each).forward, self._current) for each in layers]
        self._hooks |= {f"{name}.{each}": hook for each, hook in zip(layers, hooks, strict=True)}
        self._hang(gate.module, "forward", GateHook(gate, hooks))

    def _hang(self, holder: Any, attribute: str, hook: Callable[[Tensor], Tensor]) -> None:
        self._hung.append((holder, attribute, getattr(holder, attribute)))
        setattr(holder, attribute, hook)


def _pairs(weights: bytes, where: Path) -> dict[str, Pair]:
    """Both factors of each layer by its name.

    Raises:
        UserError: a file that is damaged, or holds half an adapter, or numbers that are none.
        Unsupported: it holds more than factors.
    """
    try:
        tensors = tensors_in(weights)
    except SafetensorError as error:
        raise UserError(f"{where} is no whole safetensors file ({error}): copy it again", "lora") from error
    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, tensor in tensors.items():
        half = next((half for half, end in zip(halves, ENDS, strict=True) if name.endswith(end)), None)
        if half is None or not name.startswith(PREFIX):
            raise Unsupported(f"{where} holds {name[:200]}, which is no factor of a linear layer", "lora")
        if tensor.dim() != 2 or not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{where}: {name} is no matrix of finite numbers: train or copy it again", "lora")
        half[name.removeprefix(PREFIX)[: -len(ENDS[0])]] = tensor
    first, second = halves
    if not first or first.keys() != second.keys():
        lone = sorted(first.keys() ^ second.keys())[:3] or ["nothing"]
        raise UserError(f"{where} holds {', '.join(lone)} without both factors: save it again", "lora")
    return {name: (first[name], second[name]) for name in sorted(first)}


def _outputs(part: nn.Module) -> int:
    return part.nf if isinstance(part, Conv1D) else part.out_features


def _inputs(part: nn.Module) -> int:
    return part.nx if isinstance(part, Conv1D) else part.in_features
