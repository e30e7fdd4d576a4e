"""`ModelShape`: sizes, bytes and FLOPs of a decoder, read from its config.json without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plait.spec.schemes import Quantisation, held_bits, read_quantisation

MOST_LAYERS = 10_000
"""No decoder has more; a damaged file may say anything."""
KV_FIELD = "plait_kv_dtype"
"""In config.json: the type of keys and values that a compressed model was made for."""
SCALE_BITS = 16
KV_SCALE_BITS = 32
"""Of a head's keys, and of its values."""
LLAMA = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
_OPT = (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "fc1", "fc2")
_NEOX = (*("attention.query_key_value",) * 3, "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_PHI = (*("self_attn.qkv_proj",) * 3, "self_attn.o_proj", *("mlp.gate_up_proj",) * 2, "mlp.down_proj")
NAMES: Mapping[str, tuple[str, ...]] = {"opt": _OPT, "gpt_neox": _NEOX, "phi3": _PHI}
"""Names of a layer's projections in the order of `LayerShape.projections`, where they are not Llama's."""
BLOCKS: Mapping[str, str] = {"opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
"""Name of the list of layers, where it is not Llama's."""


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
    """Bits a weight, scales counted: the mean over the layer's projections."""
    window: int | None = None
    """Tokens a query attends to, itself included; None: all."""
    dense: float = 1.0
    """Share of the weights that are not quantised."""

    @property
    def weights(self) -> int:
        """Parameters of the linear layers."""
        return sum(outputs * inputs for outputs, inputs in self.projections)

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the linear layers: query, key, value, output, gate (if any), up, down."""
        wide, narrow, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        attention = ((wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide))
        return attention + ((self.ffn, hidden),) * (2 if self.gated else 1) + ((hidden, self.ffn),)

    @property
    def weight_bits(self) -> float:
        """Bits of all weights."""
        return self.weights * self.bits


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
    table_bits: float = 16.0
    """Bits a weight of the embedding."""
    head_bits: float = 16.0
    """Of the output head, scales counted."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers."""
        values = sum(2 * layer.kv_heads * layer.head_dim for layer in self.layers)
        return int(values * self.kv_bits / 8)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as an engine keeps them."""
        tables = self.vocab * self.hidden * (self.table_bits * (not self.tied) + self.head_bits)
        return round((sum(layer.weight_bits for layer in self.layers) + tables) / 8)

    @property
    def step_bytes(self) -> int:
        """Weight bytes that one step reads: every layer and the output head, not the input table."""
        head = self.vocab * self.hidden * self.head_bits
        return round((sum(layer.weight_bits for layer in self.layers) + head) / 8)

    @property
    def parameters(self) -> int:
        """Weights of the linear layers and of the tables."""
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return sum(layer.weights for layer in self.layers) + tables

    def in_type(self, bits: float) -> "ModelShape":
        """The same where what is not quantised is kept in so many bits, not 16."""
        more = bits - 16.0
        layers = tuple(replace(layer, bits=layer.bits + layer.dense * more) for layer in self.layers)
        head = bits if self.head_bits == self.table_bits else self.head_bits
        return replace(self, layers=layers, table_bits=bits, head_bits=head)

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
    def from_config(
        config: Mapping[str, Any], *, bits: float = 16.0, kv_bits: float | None = None
    ) -> "ModelShape":
        """Read a Hugging Face config.json; `plait_layers` has layers' own widths where they differ, and
        `quantization_config` says which weights are kept in fewer bits.

        Args:
            bits: of what is not quantised.
            kv_bits: of keys and values; None: what the model was made for, else 16.

        Raises:
            ValueError: a size that every decoder names is missing, or none that a decoder can have.
            Unsupported: it is quantised in a way that is not read; names the field.
        """
        try:
            return ModelShape._read(config, bits, kv_bits)
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise ValueError(f"a size is missing or wrong ({type(error).__name__}: {error})") from error

    @staticmethod
    def _read(config: Mapping[str, Any], bits: float, kv_bits: float | None) -> "ModelShape":
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
            window=None if window is None else int(window),
        )
        count = int(first("num_hidden_layers", "n_layer"))
        if not 1 <= count <= MOST_LAYERS:
            raise ValueError(f"{count} layers; a decoder has 1 to {MOST_LAYERS}")
        layers = [layer] * count
        for number, own in enumerate(config.get("plait_layers") or ()):
            layers[number] = replace(layer, ffn=int(own["intermediate_size"]))
        told = read_quantisation(config.get("quantization_config"))
        if told is not None:
            layers = [_kept(each, number, kind, told) for number, each in enumerate(layers)]
        vocab = int(first("vocab_size"))
        tied = bool(config.get("tie_word_embeddings", kind in {"opt", "gpt2"}))
        found = ModelShape(
            layers=tuple(layers),
            vocab=vocab,
            hidden=hidden,
            max_tokens=int(first("max_position_embeddings", "n_positions", default=2048)),
            kv_bits=_kv_bits(config, layer.head_dim) if kv_bits is None else kv_bits,
            tied=tied,
            head_bits=16.0 if tied else _bits("lm_head", (vocab, hidden), told),
        )
        return found.in_type(bits)


def _kept(layer: LayerShape, number: int, kind: str, told: Quantisation) -> LayerShape:
    """A layer of this number with the bits that its weights are kept in."""
    held = dense = 0.0
    for name, sizes in zip(NAMES.get(kind, LLAMA), layer.projections, strict=True):
        full, (outputs, inputs) = f"{BLOCKS.get(kind, 'model.layers')}.{number}.{name}", sizes
        held += outputs * inputs * _bits(full, sizes, told)
        dense += outputs * inputs * (told.scheme_of(full) is None)
    return replace(layer, bits=held / layer.weights, dense=dense / layer.weights)


def _bits(name: str, sizes: tuple[int, int], told: Quantisation | None) -> float:
    """Bits a weight of a linear layer of (outputs, inputs), scales counted."""
    scheme = None if told is None else told.scheme_of(name)
    if scheme is None:
        return 16.0
    return held_bits(scheme.bits) + SCALE_BITS / (scheme.group or sizes[1])


def _kv_bits(config: Mapping[str, Any], head_dim: int) -> float:
    """Bits of a key's or value's number; 8-bit ones have a scale for each head and token."""
    return int8_kv_bits(head_dim) if config.get(KV_FIELD) == "int8" else 16.0


def int8_kv_bits(head_dim: int) -> float:
    """Bits of a number of 8-bit keys and values, scales counted."""
    return 8.0 + KV_SCALE_BITS / head_dim
