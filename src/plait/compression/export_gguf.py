"""Compressed decoders as GGUF files, for llama.cpp and what is built on it.

Whole numbers are those of the policy, block by block: 4 bits as Q4_0, 5 as Q5_0, 8 as Q8_0. Nothing is
rounded a second time; scales become float16. What is not a block's linear layer is bf16, vectors are float32.
Legend: N outputs, I inputs, B blocks of 32 weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

from plait.compression.export import collect, new_config
from plait.compression.language_apply import Carver
from plait.model.gguf import LAYER_NAMES, TOP_NAMES
from plait.model.quantised import QuantisedWeight
from plait.spec.errors import Unsupported, UserError
from plait.spec.policy import CompressionPolicy

BLOCK = 32
FORMS = {4: GGMLQuantizationType.Q4_0, 5: GGMLQuantizationType.Q5_0, 8: GGMLQuantizationType.Q8_0}
"""By bits."""
LAYER_GGUF = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
TOP_GGUF = {ours: theirs for theirs, ours in TOP_NAMES.items()}
NORMAL, CONTROL = 1, 3
"""Types of tokens."""
Bytes = NDArray[np.uint8]


def write_gguf(carver: Carver, policy: CompressionPolicy, source: Path, target: Path) -> int:
    """Write the compressed decoder and the tokenizer of folder `source` as one file; returns its bytes.

    Raises:
        Unsupported: another architecture than llama, another tokenizer than SmolLM's, or a policy that is not
            of target `gguf`.
        UserError: the file exists.
    """
    if target.exists():
        raise UserError(f"{target} exists: name a new file", "out")
    config = new_config(carver, carver.plan(policy), json.loads((source / "config.json").read_text()))
    if config.get("model_type") != "llama" or "plait_layers" in config:
        raise Unsupported("only llama models whose layers are alike are written as GGUF files", "target")
    vocabulary = _vocabulary(source)
    writer = GGUFWriter(target, "llama")
    _describe(writer, config)
    for name, value in vocabulary.items():
        getattr(writer, f"add_{name}")(value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    pieces = collect(carver, policy)
    for name, tensor in pieces.dense.items():
        weight = tensor.float().numpy()
        part = name.split(".")[-2]
        weight = weight[_neighbours(len(weight), heads[part])] if part in heads else weight
        kind = GGMLQuantizationType.BF16 if weight.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(_name(name), quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    for layer, weight in pieces.quantised.items():
        part = layer.rpartition(".")[2]
        rows = len(weight.codes_NI)
        order_N = _neighbours(rows, heads[part]) if part in heads else np.arange(rows)
        kind = _form(weight)
        writer.add_tensor(_name(f"{layer}.weight"), blocks(weight)[order_N], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target.stat().st_size


def blocks(weight: QuantisedWeight) -> Bytes:
    """The rows of a weight as GGUF's bytes [N, bytes of a row]."""
    codes_BJ = weight.codes_NI.numpy().reshape(-1, BLOCK)
    scale_B2 = weight.scales_NG.float().numpy().reshape(-1, 1).astype(np.float16).view(np.uint8)
    bits = weight.scheme.bits
    if bits == 8:
        body_BX = codes_BJ.view(np.uint8)
    else:
        raised_BJ = (codes_BJ + np.int8(2 ** (bits - 1))).view(np.uint8)
        low_BJ = raised_BJ & np.uint8(15)
        body_BX = low_BJ[:, :16] | low_BJ[:, 16:] << np.uint8(4)
        if bits == 5:
            high_BX = np.packbits(raised_BJ >> np.uint8(4), axis=1, bitorder="little")
            body_BX = np.concatenate([high_BX, body_BX], 1)
    return np.concatenate([scale_B2, body_BX], 1).reshape(len(weight.codes_NI), -1)


def _form(weight: QuantisedWeight) -> GGMLQuantizationType:
    scheme = weight.scheme
    if scheme.bits not in FORMS or scheme.group != BLOCK:
        raise Unsupported(
            f"GGUF has no form for {scheme.bits} bits in groups of {scheme.group or 'all inputs'}: search "
            "for target gguf",
            "target",
        )
    return FORMS[scheme.bits]


def _describe(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or config
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])


def _vocabulary(source: Path) -> dict[str, Any]:
    """What GGUF says of a tokenizer, by the names of the writer's methods."""
    told = json.loads((source / "tokenizer.json").read_text())
    steps = (told.get("pre_tokenizer") or {}).get("pretokenizers") or []
    kinds = [step["type"] for step in steps]
    if told["model"]["type"] != "BPE" or kinds != ["Digits", "ByteLevel"]:
        raise Unsupported("GGUF files are written with SmolLM's tokenizer only, and this is another", "model")
    names = {number: token for token, number in told["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in told["added_tokens"] if token["special"]}
    names |= {token["id"]: token["content"] for token in told["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in told["model"]["merges"]]
    settings = json.loads((source / "tokenizer_config.json").read_text())
    ids = {token: number for number, token in names.items()}
    found: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm",
        "token_list": [names[number] for number in sorted(names)],
        "token_types": [CONTROL if number in special else NORMAL for number in sorted(names)],
        "token_merges": merges,
    }
    for kind in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{kind}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            found[f"{kind}_token_id"] = ids[token]
    template = source / "chat_template.jinja"
    chat = template.read_text() if template.is_file() else settings.get("chat_template")
    return found | ({"chat_template": chat} if chat else {})


def _name(name: str) -> str:
    """The GGUF name of a transformers tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem in TOP_GGUF:
        return f"{TOP_GGUF[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_GGUF[part]}.{kind}"


def _neighbours(rows: int, heads: int) -> NDArray[np.int64]:
    """transformers rotates the two halves of a head, GGUF neighbouring rows: where its rows come from."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).ravel()
