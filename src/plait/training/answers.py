"""Rewards that need no model: whether the answer to a question is right.

GSM8K (arXiv 2110.14168) ends its solutions with a line `#### 1,234`.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

SIZE = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
MARKED = re.compile(rf"####\s*(-?)\s*\$?\s*({SIZE})", re.ASCII)
ANYWHERE = re.compile(rf"-?{SIZE}", re.ASCII)


def final_answer(text: str, *, marked: bool = True) -> Decimal | None:
    """The number after the last `####`, or with `marked` False the last one anywhere; None without one."""
    if marked:
        found = MARKED.findall(text)
        return _number(found[-1][0] + found[-1][1]) if found else None
    numbers = ANYWHERE.findall(text)
    return _number(numbers[-1]) if numbers else None


def gsm8k(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where a completion ends with the answer of the data set, 0 where not; TRL's signature.

    `answer` is the column of that name: a solution with its `####` line, or the bare number. Completions are
    texts or conversations, of which the last message counts.
    """
    return [
        float(_right(_text(completion), truth)) for completion, truth in zip(completions, answer, strict=True)
    ]


def exact(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 where a completion, without spaces around it, is what the column `answer` says; 0 where not."""
    return [
        float(_text(c).strip() == str(truth).strip()) for c, truth in zip(completions, answer, strict=True)
    ]


def _right(completion: str, truth: str) -> bool:
    wanted = final_answer(truth)
    if wanted is None:
        wanted = final_answer(truth, marked=False)
    given = final_answer(completion)
    return given is not None and given == wanted


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
