"""What the contenders of bench/rlhf_peers.py are given: a tiny policy, a reward model, prompts."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig
from transformers.utils import logging

from alignment.adder import tokenizer

SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
REWARD = '''
def vowels(prompts, completions, **_):
    """Share of the characters that are vowels."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]
'''


@dataclass(frozen=True)
class Contest:
    """The same for everybody."""

    prompts: int = 32
    """Of an iteration."""
    samples: int = 1
    """Of each prompt."""
    tokens: int = 128
    """Of every response: ends are ignored."""
    updates: int = 10
    lr: float = 1e-3
    kl: float = 0.05
    """Weight of the divergence in PPO's reward."""

    def write(self, path: Path) -> None:
        """As JSON, for programs in other environments."""
        path.write_text(json.dumps(asdict(self)))


def prepare(root: Path) -> None:
    """`policy`, `reward`, `prompts.jsonl` and `reward.py` below `root`."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
        **SIZES,
    )
    logging.disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "policy")
    config.num_labels = 1
    judge = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(judge.score.weight, std=0.3)
    judge.save_pretrained(root / "reward")
    for name in ("policy", "reward"):
        words.save_pretrained(root / name)
    dice = random.Random(0)
    rows = [{"prompt": "".join(dice.choices("abcdefghij ", k=12))} for _ in range(512)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "reward.py").write_text(REWARD)
