"""Turns a llama-style GGUF file into a folder of safetensors, configuration and tokenizer, once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plait.spec.errors import Unsupported

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(source: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model of `source` into `folder`, dequantised to float32.

    Args:
        progress: called with (bytes of tensors done, bytes in all).

    Raises:
        Unsupported: the file's architecture or tokenizer is none that this reads.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.pre"] != "smollm":
        kind = f"{facts['general.architecture']}/{facts['tokenizer.ggml.pre']}"
        raise Unsupported(f"{source.name} is a {kind} file; only llama/smollm is read", "model")
    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    done, total = 0, sum(int(t.n_bytes) for t in reader.tensors)
    weights = {}
    for tensor in reader.tensors:
        name, array = _name(tensor.name), dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj." in name or ".k_proj." in name:
            array = _rotate_halves(array, heads if ".q_proj." in name else kv_heads)
        weights[name] = np.ascontiguousarray(array, dtype=np.float32)
        done += int(tensor.n_bytes)
        if progress:
            progress(done, total)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(facts, tied="lm_head.weight" not in weights))
    ends = {name: facts[f"tokenizer.ggml.{name}"] for name in ("bos_token_id", "eos_token_id")}
    _write(
        folder / "generation_config.json", ends | {"pad_token_id": facts["tokenizer.ggml.padding_token_id"]}
    )
    _write_tokenizer(folder, facts)


def _name(name: str) -> str:
    """The transformers name of a GGUF tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    return f"{TOP_NAMES[stem]}.{kind}"


def _rotate_halves(weight_NK: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates neighbouring rows of a head, transformers its two halves: reorder the rows."""
    rows, columns = weight_NK.shape
    return weight_NK.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(facts: dict[str, Any], tied: bool) -> dict[str, Any]:
    # Heads that were cut away leave the others as they were.
    size = facts.get("llama.attention.key_length")
    return ({"head_dim": size} if size else {}) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "vocab_size": facts["llama.vocab_size"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "dtype": "float32",
    }


def _write_tokenizer(folder: Path, facts: dict[str, Any]) -> None:
    """Byte-level BPE that splits digits one by one, as the `smollm` pre-tokenizer does."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens, control = facts["tokenizer.ggml.tokens"], 3
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in kinds if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
    }
    _write(folder / "tokenizer_config.json", settings | named)
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"])


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
