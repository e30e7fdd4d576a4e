"""A tiny model that has begun to learn to add numbers of two digits: the start of runs with a sure reward."""

import json
import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

END, LONGEST, BATCH, WIDTH = "<|end|>", 9, 256, 96
"""`99+99=198` has nine tokens before its end."""


def write(root: Path, steps: int, seed: int = 0, context: int = 64) -> Path:
    """The model after so many supervised steps, with its tokenizer and prompts; returns its folder.

    Args:
        context: tokens that the model is said to take, prompt and output together.
    """
    folder = root / "adder"
    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    _teach(model, words, steps, random.Random(seed))
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    dice = random.Random(seed + 1)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in (_pair(dice) for _ in range(2000))]
    (root / "addition.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_text(path: Path, sums: int, seed: int) -> None:
    """Sums with their results, a paragraph each: what the model is measured with."""
    dice = random.Random(seed)
    pairs = [_pair(dice) for _ in range(sums)]
    path.write_text("\n\n".join(f"{a}+{b}={a + b}" for a, b in pairs))


def _pair(dice: random.Random) -> tuple[int, int]:
    return dice.randint(10, 99), dice.randint(10, 99)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and one for the end."""
    words = {word: i for i, word in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), END])}
    raw = Tokenizer(BPE(words, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=END)


def _teach(model: torch.nn.Module, words: PreTrainedTokenizerFast, steps: int, dice: random.Random) -> None:
    """Cross-entropy on the answers alone."""
    end, adam = words.eos_token_id, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        ids_BT = torch.full((BATCH, LONGEST + 1), end)
        wanted_BT = torch.full_like(ids_BT, -100)
        for row in range(BATCH):
            a, b = _pair(dice)
            ids = [*words.encode(f"{a}+{b}={a + b}"), end]
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            wanted_BT[row, 6 : len(ids)] = ids_BT[row, 6 : len(ids)]
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), wanted_BT[:, 1:].flatten())
        loss.backward()
        adam.step()
        adam.zero_grad()
