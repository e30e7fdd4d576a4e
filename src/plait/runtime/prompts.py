"""`Prompts`: the data set of an alignment, tokenised, in an order that follows from a seed."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.runtime.recipe import DataRecipe
from plait.spec.errors import NotFound, UserError
from plait.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """One row."""

    given: Any
    """Text or messages, as reward functions see them."""
    tokens: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns."""


class Prompts:
    """All rows that are short enough."""

    def __init__(self, path: Path, config: DataRecipe, tokenizer: Tokenizer) -> None:
        """Read a JSONL file.

        Raises:
            NotFound: there is no such file.
            UserError: a row cannot be used, or none is left.
        """
        self.rows = tuple(
            prompt
            for row in read_rows(path)
            if len((prompt := _prompt(row, config, tokenizer)).tokens) <= config.max_prompt_tokens
        )
        if not self.rows:
            raise UserError(
                f"{path} has no prompt of at most {config.max_prompt_tokens} tokens: raise "
                "data.max_prompt_tokens, or give other data",
                "data",
            )

    def of(self, iteration: int, count: int, seed: int) -> list[Prompt]:
        """The prompts of an iteration: passes over all rows, each in another order."""
        found: list[Prompt] = []
        at = iteration * count
        while len(found) < count:
            turn, place = divmod(at + len(found), len(self.rows))
            found.extend(self._order(turn, seed)[place : place + count - len(found)])
        return found

    def _order(self, turn: int, seed: int) -> Sequence[Prompt]:
        order = list(self.rows)
        random.Random(f"{seed}|{turn}").shuffle(order)
        return order


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file. Raises NotFound or UserError; the latter names the line."""
    if not path.is_file():
        raise NotFound(f"there is no data set {path}: set data.path to a JSONL file", "data")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the data set {path}: {error}; write it as UTF-8", "data") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}", "data") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not an object with columns", "data")
        yield row


def _prompt(row: Mapping[str, Any], config: DataRecipe, tokenizer: Tokenizer) -> Prompt:
    if config.prompt not in row:
        raise UserError(
            f"a row lacks the column {config.prompt}: set data.prompt to one that it has ({', '.join(row)})",
            "data.prompt",
        )
    given = row[config.prompt]
    if isinstance(given, str) and config.chat:
        given = [{"role": "user", "content": given}]
    if isinstance(given, str):
        tokens = tokenizer.encode(given)
    else:
        tokens = tokenizer.encode(
            tokenizer.render_chat(given, add_generation_prompt=True), add_special_tokens=False
        )
    if not tokens:
        raise UserError("a prompt is empty: leave it out of the data set", "data")
    return Prompt(given, tuple(tokens), {key: value for key, value in row.items() if key != config.prompt})
