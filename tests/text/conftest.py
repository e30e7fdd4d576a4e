"""Small real tokenizers of the kinds that language models bring."""

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from plait.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "naïve café — 東京 😀 été",
    "def f(x):\n    return x\n",
]
SPECIAL = ["<|start|>", "<|end|>"]


def byte_level() -> Tokenizer:
    """GPT-2's kind: every token is a row of bytes, so characters are cut anywhere."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    raw.add_tokens([AddedToken("<tool é>", special=False)])
    return Tokenizer(raw, special_tokens={"eos_token": "<|end|>"})


def sentencepiece() -> Tokenizer:
    """Llama 2's kind: spaces are marks, and characters outside the vocabulary become byte tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the"]
    vocab = {word: id for id, word in enumerate([*words, *letters])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    raw = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(raw, special_tokens={"eos_token": "</s>"}, eos_ids=[2])


def metaspace() -> Tokenizer:
    """T5's kind: the first token loses its leading mark."""
    vocab = {word: id for id, word in enumerate(["<unk>", "▁", "▁the", "▁fox", "s", "é", "</s>"])}
    raw = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(["</s>"])
    return Tokenizer(raw)


def plain_words() -> Tokenizer:
    """No decoder at all: tokens stand apart by spaces."""
    vocab = {word: id for id, word in enumerate(["<unk>", "the", "fox", "été"])}
    return Tokenizer(tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>")))


KINDS = {
    "byte_level": byte_level(),
    "sentencepiece": sentencepiece(),
    "metaspace": metaspace(),
    "words": plain_words(),
}


@pytest.fixture(params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    return KINDS["byte_level"]
