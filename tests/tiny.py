"""Tiny real models: a few layers of each family with random weights, and a byte-level tokenizer.

Weights are drawn with a standard deviation of 0.3, so that the two likeliest tokens are rarely close.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", *(f"<|{i}|>" for i in range(28)))
VOCAB = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
OPT_SIZES = {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.3, "dropout": 0.0}
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 512}
GEMMA2_SIZES = {"sliding_window": 24, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}
MOE_SIZES = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 24}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED),
    "opt": ("OPTConfig", OPT_SIZES),
    "gpt_neox": ("GPTNeoXConfig", {"hidden_dropout": 0.0}),
    "gemma2": ("Gemma2Config", {**GROUPED, **GEMMA2_SIZES}),
    "phi3": ("Phi3Config", GROUPED),
    "gpt2": ("GPT2Config", GPT2_SIZES),
    "qwen3_moe": ("Qwen3MoeConfig", MOE_SIZES),
}
EXACT = ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt_neox")
"""Families whose tokens must be those of transformers."""


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers configuration of a tiny model."""
    name, sizes = FAMILIES[family]
    return getattr(transformers, name)(**{**COMMON, **sizes, **changes})


def tiny_folder(root: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model of `family` with its tokenizer below `root`, and return its folder.

    Args:
        changes: settings of config.json that differ from the usual ones.
    """
    folder = root / f"tiny-{family}-{seed}"
    config = tiny_config(family, **changes)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
    model.generation_config.eos_token_id = config.eos_token_id
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, 32 special tokens, a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast
