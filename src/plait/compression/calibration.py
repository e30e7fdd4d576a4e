"""`Calibration`: what real text tells about a decoder: inputs of its layers, and how its loss feels outputs.

One pass with gradients over calibration text. The loss is that of tokens drawn from the model itself, so that
half the mean of slope^2 times (change of an output)^2 is, to second order, the KL divergence that the change
causes, in nats a token (the diagonal of the Fisher information); errors of different layers add up. Kept are
the mean square of the slope by each output, and the second moments of each layer's inputs, in which a token
counts as much as the loss feels of it: the first token of a text, whose activations are huge and whose errors
nobody feels, would drown the others. Nothing here depends on a policy, and it is kept in a file.
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
    """[I, I]: weighted mean of x x^T over tokens, for each linear layer; siblings share one."""
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


def calibrate(module: nn.Module, decoder: Decoder, tokens: Sequence[Tensor], seed: int) -> Calibration:
    """Run a decoder over text, with gradients of activations.

    Args:
        tokens: sequences [T] of token ids.
        seed: of the tokens that are drawn from the model.
    """
    pass_ = _Pass(module, decoder, sum(len(ids_T) for ids_T in tokens))
    generator = torch.Generator().manual_seed(seed)
    for ids_T in tokens:
        logits_TV = module(ids_T[None], use_cache=False).logits[0].float()
        drawn_T = torch.multinomial(logits_TV.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits_TV, drawn_T, reduction="sum").backward()
        pass_.weigh()
    return pass_.end()


def _heads(decoder: Decoder) -> dict[str, str]:
    """For each layer the first one that has the same input."""
    first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    names = {x.name for x in decoder.linears}
    found = {x.name: f"{x.parent}.{first.get(x.kind, x.kind)}" for x in decoder.linears}
    return {name: head if head in names else name for name, head in found.items()}


class _Pass:
    """Hooks on a decoder, and what they have summed up."""

    def __init__(self, module: nn.Module, decoder: Decoder, total: int) -> None:
        self.total, self.heads = total, _heads(decoder)
        blocks = [f"{decoder.blocks}.{block}" for block in range(decoder.count)]
        self.moments = {head: torch.zeros(1) for head in self.heads.values()}
        self.felt = dict.fromkeys(self.moments, 0.0)
        self.slopes = {x.name: torch.zeros(x.outputs) for x in decoder.linears}
        self.lost = {name: torch.zeros(()) for name in blocks}
        self.change = {name: torch.zeros(()) for name in blocks}
        self._inputs: dict[str, Tensor] = {}
        self._felt_T: dict[str, Tensor] = {}
        embedding = module.get_input_embeddings()
        self._hooks = [embedding.register_forward_hook(lambda _, args, out: out.requires_grad_())]
        for names, watch in ((self.slopes, self._watch), (blocks, self._watch_block)):
            self._hooks += [
                module.get_submodule(name).register_forward_hook(
                    lambda _, args, out, name=name, watch=watch: watch(name, args[0], _first(out))
                )
                for name in names
            ]

    def weigh(self) -> None:
        """After a sequence: add its inputs, each token as much as the loss feels of it."""
        for head, x_TI in self._inputs.items():
            felt_T = self._felt_T[head]
            self.moments[head] = self.moments[head] + (x_TI * felt_T[:, None]).T @ x_TI
            self.felt[head] += float(felt_T.sum())
        self._inputs.clear()
        self._felt_T.clear()

    def end(self) -> Calibration:
        """What was found; the module is left as it was."""
        for hook in self._hooks:
            hook.remove()
        mean = {head: moments_II / self.felt[head] for head, moments_II in self.moments.items()}
        shared = {name: mean[head] for name, head in self.heads.items()}
        return Calibration(shared, self.slopes, self.lost, self.change)

    def _watch(self, name: str, x: Tensor, out: Tensor) -> None:
        head = self.heads[name]
        if name == head:
            self._inputs[head] = x.detach().flatten(0, -2).float()

        def feel(slope: Tensor) -> None:
            square_TN = slope.float().flatten(0, -2).square()
            self.slopes[name] += square_TN.sum(0) / (2 * self.total)
            self._felt_T[head] = self._felt_T.get(head, 0.0) + square_TN.sum(1).sqrt()

        out.register_hook(feel)

    def _watch_block(self, name: str, before: Tensor, after: Tensor) -> None:
        before, now = before.detach().float(), after.detach().float()
        self.change[name] += (1 - torch.cosine_similarity(before, now, dim=-1)).sum() / self.total
        delta = now - before

        def lose(slope: Tensor) -> None:
            self.lost[name] += (slope.float() * delta).square().sum() / (2 * self.total)

        after.register_hook(lose)


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A block's hidden states."""
    return out[0] if isinstance(out, tuple) else out
