"""The default model's folder as a GGUF file with 8-bit weights, for llama.cpp: `q8.py FOLDER FILE`.

Matrices as Q8_0, blocks of 32 weights with one scale: what `llama-quantize` makes of "q8_0". The weights are
those of the folder that the other sides read; text never goes through the file, so it carries no tokenizer.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file

from plait.model.gguf import LAYER_NAMES, TOP_NAMES

LAYER_GGUF = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
TOP_GGUF = {ours: theirs for theirs, ours in TOP_NAMES.items()}


def write(folder: Path, target: Path) -> None:
    """Write the llama-style model of `folder` into `target`."""
    facts = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(target, "llama")
    _describe(writer, facts)
    heads = {"q_proj": facts["num_attention_heads"], "k_proj": facts["num_key_value_heads"]}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            weight = tensor.to(torch.float32).numpy()
            part = name.split(".")[-2]
            if part in heads:
                weight = _neighbours(weight, heads[part])
            kind = GGMLQuantizationType.Q8_0 if weight.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(_name(name), quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, facts: dict[str, Any]) -> None:
    rope = facts.get("rope_parameters") or facts
    writer.add_vocab_size(facts["vocab_size"])
    writer.add_context_length(facts["max_position_embeddings"])
    writer.add_embedding_length(facts["hidden_size"])
    writer.add_block_count(facts["num_hidden_layers"])
    writer.add_feed_forward_length(facts["intermediate_size"])
    writer.add_head_count(facts["num_attention_heads"])
    writer.add_head_count_kv(facts["num_key_value_heads"])
    writer.add_rope_dimension_count(facts["hidden_size"] // facts["num_attention_heads"])
    writer.add_layer_norm_rms_eps(facts["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_tokenizer_model("no_vocab")


def _name(name: str) -> str:
    """The GGUF name of a transformers tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem in TOP_GGUF:
        return f"{TOP_GGUF[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_GGUF[part]}.{kind}"


def _neighbours(weight_NK: np.ndarray, heads: int) -> np.ndarray:
    """transformers rotates the two halves of a head, GGUF neighbouring rows: reorder the rows."""
    rows, columns = weight_NK.shape
    return weight_NK.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
