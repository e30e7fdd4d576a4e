"""The shapes that bench/gpu.py measures, and the least time that a GPU can take for them."""

from typing import Any

from transformers import LlamaConfig, Qwen3Config

from plait.spec.shape import ModelShape

ELEMENT_BYTES = 2
"""Weights and KV are bf16."""
HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 128
"""Of the attention that is measured alone: Llama-3-8B's."""
DECODE_BATCHES = (1, 4, 16, 64, 256)
DECODE_CONTEXTS = (128, 1024, 4096, 32768)
PREFILL_LENGTHS = (512, 2048, 8192)
MODEL_BATCHES = (1, 16, 64, 256)
MODEL_CONTEXT = 1024


def llama(**sizes: Any) -> LlamaConfig:
    """A configuration in the manner of Llama 3."""
    return LlamaConfig(
        vocab_size=128256, max_position_embeddings=8192, num_key_value_heads=8, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, bos_token_id=None,
        eos_token_id=128001, **sizes,
    )  # fmt: skip


def configs() -> dict[str, Any]:
    """transformers configurations of the models, written from their public config.json."""
    return {
        "Llama-3.2-1B": llama(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            head_dim=64, tie_word_embeddings=True,
        ),
        "Qwen3-4B": Qwen3Config(
            vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
            num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
            rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=None, eos_token_id=151645,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "Llama-3-8B": llama(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            head_dim=128, tie_word_embeddings=False,
        ),
    }  # fmt: skip


def shape_of(config: Any) -> ModelShape:
    """Sizes of a model in bf16."""
    return ModelShape.from_config(config.to_dict(), bits=8 * ELEMENT_BYTES, kv_bits=8 * ELEMENT_BYTES)


def weight_bytes_read(config: Any) -> int:
    """Bytes of weights that a decode step reads: all but an input embedding that is not the output's too."""
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size * ELEMENT_BYTES
    return int(shape_of(config).weight_bytes) - embedding


def decode_limit_s(config: Any, rows: int, context: int, bandwidth: float) -> float:
    """Least time of a decode step: each weight and each row's KV read once.

    Args:
        bandwidth: bytes a second.
    """
    kv_bytes = rows * context * shape_of(config).kv_bytes_per_token
    return (weight_bytes_read(config) + kv_bytes) / bandwidth


def attention_kv_bytes(rows: int, context: int) -> int:
    """Bytes of KV that one layer of the attention measured alone reads for a decode step."""
    return rows * context * 2 * KV_HEADS * HEAD_SIZE * ELEMENT_BYTES


def prefill_flops(tokens: int) -> float:
    """Of one layer's causal attention: two products over half of the square of tokens."""
    return 2 * 2 * HEADS * HEAD_SIZE * tokens * (tokens + 1) / 2


def decode_cases(quick: bool, room_bytes: int) -> list[tuple[int, int]]:
    """(batch, context) pairs whose KV fits `room_bytes`."""
    pairs = [(batch, context) for batch in DECODE_BATCHES for context in DECODE_CONTEXTS]
    if quick:
        pairs = [(1, 4096), (16, 1024), (256, 1024)]
    return [pair for pair in pairs if attention_kv_bytes(*pair) <= room_bytes]
