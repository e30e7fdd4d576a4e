"""`Calibration`: what real text tells about a decoder: inputs of its layers, and how its loss feels outputs.

One pass over calibration text sums the second moments of every layer's inputs. Another, with gradients,
takes for each output the mean square of the loss's slope, where the loss is that of tokens drawn from the
model: the diagonal of the Fisher information. Half the sum of slope^2 times (change of the output)^2 is then,
to second order, the KL divergence that one layer's error causes, in nats a token; errors of different layers
add up. Nothing here depends on a policy, and it is kept in a file.
Legend: T tokens, I inputs, N outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from plait.compression.language import Decoder
from plait.model.weights_file import read, write


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tensors by the names of layers and blocks; float32."""

    moments: dict[str, Tensor]
    """[I, I]: mean of x x^T over tokens, for each linear layer; siblings share one."""
    slopes: dict[str, Tensor]
    """[N]: half the mean square of the loss's slope by each output."""
    lost: dict[str, Tensor]
    """[]: KL that leaving out a block causes, estimated likewise, for each block."""
    change: dict[str, Tensor]
    """[]: 1 - cosine of a block's input and output, averaged over tokens."""

    def order(self, decoder: Decoder) -> tuple[int, ...]:
        """Blocks, those first that change their input least."""
        change = [float(self.change[f"{decoder.blocks}.{block}"]) for block in range(decoder.count)]
        return tuple(sorted(range(decoder.count), key=change.__getitem__))

    def save(self, path: Path) -> None:
        """Write a file of safetensors; it appears whole or not at all."""
        heads: dict[int, str] = {}
        told = {}
        for name, moments_II in self.moments.items():
            # Siblings share one tensor, which is written once, under the first one's name.
            heads.setdefault(id(moments_II), name)
            if heads[id(moments_II)] == name:
                told[f"moments/{name}"] = moments_II
        for kind in ("slopes", "lost", "change"):
            told |= {f"{kind}/{name}": value for name, value in getattr(self, kind).items()}
        write(path, told)

    @staticmethod
    def load(path: Path, decoder: Decoder) -> "Calibration":
        """Read what `save` wrote. Raises UserError if there is no such file."""
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("moments", "slopes", "lost", "change")}
        for key, value in read(path).items():
            kind, _, name = key.partition("/")
            found[kind][name] = value
        shared = {name: found["moments"][head] for name, head in _heads(decoder).items()}
        return Calibration(shared, found["slopes"], found["lost"], found["change"])


def calibrate(
    module: nn.Module, decoder: Decoder, tokens: Sequence[Tensor], felt: Sequence[Tensor], seed: int
) -> Calibration:
    """Run the reference over text.

    Args:
        tokens: sequences [T] of token ids, for the inputs' moments.
        felt: those for the slopes, which cost three times as much.
        seed: of the tokens that are drawn from the model.
    """
    heads = _heads(decoder)
    own, change = _moments(module, decoder, heads, tokens)
    slopes, lost = _slopes(module, decoder, felt, seed)
    return Calibration({name: own[head] for name, head in heads.items()}, slopes, lost, change)


def _heads(decoder: Decoder) -> dict[str, str]:
    """For each layer the first one that has the same input."""
    first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    names = {x.name for x in decoder.linears}
    found = {x.name: f"{x.parent}.{first.get(x.kind, x.kind)}" for x in decoder.linears}
    return {name: head if head in names else name for name, head in found.items()}


def _moments(
    module: nn.Module, decoder: Decoder, heads: dict[str, str], tokens: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    own = {head: torch.zeros(1) for head in heads.values()}
    change = {f"{decoder.blocks}.{block}": torch.zeros(()) for block in range(decoder.count)}
    total = sum(len(ids_T) for ids_T in tokens)

    def add(name: str, x: Tensor) -> None:
        x_TI = x.flatten(0, -2).float()
        own[name] = own[name] + x_TI.T @ x_TI / total

    def compare(name: str, before: Tensor, after: Tensor) -> None:
        apart_T = 1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)
        change[name] += apart_T.sum() / total

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: add(name, args[0]))
        for name in own
    ]
    hooks += [
        module.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: compare(name, args[0], _first(out))
        )
        for name in change
    ]
    with torch.inference_mode():
        for ids_T in tokens:
            module(ids_T[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: value.clone() for name, value in own.items()}, change


def _slopes(
    module: nn.Module, decoder: Decoder, felt: Sequence[Tensor], seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    slopes = {x.name: torch.zeros(x.outputs) for x in decoder.linears}
    lost = {f"{decoder.blocks}.{block}": torch.zeros(()) for block in range(decoder.count)}
    total = sum(len(ids_T) for ids_T in felt)
    generator = torch.Generator().manual_seed(seed)

    def feel(name: str, slope: Tensor) -> None:
        slopes[name] += slope.float().flatten(0, -2).square().sum(0) / (2 * total)

    def lose(name: str, delta: Tensor, slope: Tensor) -> None:
        lost[name] += (slope.float() * delta).square().sum() / (2 * total)

    def watch(name: str, out: Tensor) -> None:
        out.register_hook(lambda slope: feel(name, slope))

    def watch_block(name: str, before: Tensor, after: Tensor) -> None:
        delta = (after - before).detach().float()
        after.register_hook(lambda slope: lose(name, delta, slope))

    hooks = [module.get_input_embeddings().register_forward_hook(lambda _, args, out: out.requires_grad_())]
    hooks += [
        module.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: watch(name, out))
        for name in slopes
    ]
    hooks += [
        module.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: watch_block(name, args[0], _first(out))
        )
        for name in lost
    ]
    for ids_T in felt:
        logits_TV = module(ids_T[None], use_cache=False).logits[0].float()
        drawn_T = torch.multinomial(logits_TV.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits_TV, drawn_T, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return slopes, lost


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A block's hidden states."""
    return out[0] if isinstance(out, tuple) else out
