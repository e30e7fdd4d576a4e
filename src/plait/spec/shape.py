"""`ModelShape`: sizes, bytes and FLOPs of a decoder, read from its config.json without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One decoder layer."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    gated: bool = True
    """The FFN has gate, up and down projections (three), not two."""
    bits: float = 16.0
    """Bits a weight."""
    window: int | None = None
    """Tokens a query attends to, itself included; None: all."""

    @property
    def weights(self) -> int:
        """Parameters of the linear layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.hidden * self.ffn * (3 if self.gated else 2)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder: its layers, its vocabulary and what a token costs."""

    layers: tuple[LayerShape, ...]
    vocab: int
    hidden: int
    max_tokens: int
    """Longest context, prompt and output together."""
    kv_bits: float = 16.0
    tied: bool = False
    """Embedding and output head are one matrix."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers."""
        values = sum(2 * layer.kv_heads * layer.head_dim for layer in self.layers)
        return int(values * self.kv_bits / 8)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as stored."""
        head_bits = self.layers[0].bits if self.layers else 16.0
        tables = self.vocab * self.hidden * (1 if self.tied else 2) * min(head_bits, 16.0)
        return int((sum(layer.weights * layer.bits for layer in self.layers) + tables) / 8)

    @property
    def step_bytes(self) -> int:
        """Weight bytes that one step reads: every layer and the output head, not the input table."""
        head_bits = self.layers[0].bits if self.layers else 16.0
        head = self.vocab * self.hidden * min(head_bits, 16.0)
        return int((sum(layer.weights * layer.bits for layer in self.layers) + head) / 8)

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the linear layers for one token, the output head left out."""
        return 2 * sum(layer.weights for layer in self.layers)

    @property
    def flops_per_logits(self) -> int:
        """FLOPs of the output head for one token."""
        return 2 * self.vocab * self.hidden

    @property
    def flops_per_pair(self) -> int:
        """Attention FLOPs for one (query, key) pair over all layers."""
        return 4 * sum(layer.heads * layer.head_dim for layer in self.layers)

    @staticmethod
    def from_config(config: Mapping[str, Any], *, bits: float = 16.0, kv_bits: float = 16.0) -> "ModelShape":
        """Read a Hugging Face config.json; `plait_layers` has layers' own widths where they differ.

        Raises:
            KeyError: a size that every decoder names is missing.
        """

        def first(*names: str, default: Any = None) -> Any:
            for name in names:
                if config.get(name) is not None:
                    return config[name]
            if default is None:
                raise KeyError(f"config.json names none of {', '.join(names)}")
            return default

        hidden = int(first("hidden_size", "n_embd", "d_model"))
        heads = int(first("num_attention_heads", "n_head"))
        kind = str(config.get("model_type", ""))
        gated = kind not in {"opt", "gpt_neox", "gpt2", "gptj", "bloom"}
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        layer = LayerShape(
            heads=heads,
            kv_heads=int(first("num_key_value_heads", default=heads)),
            head_dim=int(first("head_dim", default=hidden // heads)),
            hidden=hidden,
            ffn=int(first("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)),
            gated=gated,
            bits=bits,
            window=None if window is None else int(window),
        )
        layers = [layer] * int(first("num_hidden_layers", "n_layer"))
        for number, own in enumerate(config.get("plait_layers") or ()):
            layers[number] = replace(layer, ffn=int(own["intermediate_size"]))
        return ModelShape(
            layers=tuple(layers),
            vocab=int(first("vocab_size")),
            hidden=hidden,
            max_tokens=int(first("max_position_embeddings", "n_positions", default=2048)),
            kv_bits=kv_bits,
            tied=bool(config.get("tie_word_embeddings", kind in {"opt", "gpt2"})),
        )
