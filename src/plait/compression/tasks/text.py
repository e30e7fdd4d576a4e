"""Text for measuring language models: sequences of token ids from files of documents."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.text.tokenizer import Tokenizer

FIELDS = (("text",), ("question", "answer"), ("prompt", "chosen"), ("prompt", "response"))
"""What of a JSON line is its text, joined; the first that the line has whole."""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Which text, and how much of it."""

    files: tuple[Path, ...]
    """.jsonl (a document a line; see `FIELDS`) or .txt (a document a paragraph), in equal shares."""
    tokens: int
    """In all."""
    length: int = 256
    """Tokens of a sequence."""
    skip: int = 0
    """Tokens of each file that are left out, the first ones."""


def sequences(folder: Path, config: TextConfig) -> list[Tensor]:
    """Sequences of `length` token ids by the tokenizer of a model's folder.

    Raises:
        UserError: a file cannot be read or has too little text.
    """
    tokenizer, found = Tokenizer.load(folder), []
    each = -(-config.tokens // (config.length * len(config.files)))
    for path in config.files:
        ids: list[int] = []
        past = config.skip + each * config.length
        for document in _documents(path):
            ids += tokenizer.encode(document + "\n\n", add_special_tokens=False)
            if len(ids) >= past:
                break
        else:
            raise UserError(
                f"{path} has {len(ids)} tokens and {past} are needed: ask for fewer tokens or name more text",
                "text",
            )
        found += list(torch.tensor(ids[config.skip : past]).split(config.length))
    return found[: -(-config.tokens // config.length)]


def _documents(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise UserError(f"there is no text at {path}: name a .jsonl or .txt file", "text")
    if path.suffix != ".jsonl":
        yield from path.read_text().split("\n\n")
        return
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                told = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}", "text") from error
            fields = next((f for f in FIELDS if isinstance(told, dict) and told.keys() >= set(f)), None)
            if fields is None:
                names = "; ".join(" and ".join(f) for f in FIELDS)
                raise UserError(f"{path}, line {number} has none of the fields {names}", "text")
            yield "\n".join(str(told[field]) for field in fields)
