"""Samples, padded into tensors.

Shapes: B samples, T positions of prompt and response, R response positions, padded on the right: what is
padded comes after all that is real, so causal attention needs no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what was drawn after it."""

    id: int
    """Its place in the global batch; everything is ordered by it."""
    group: int
    """Samples of one prompt have the same."""
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    response: tuple[int, ...]
    """Token ids, at least one; the stop token is the last where `finished`."""
    finished: bool
    """It ended with a stop token, not because it was as long as allowed."""
    version: int = 0
    """Of the weights that drew it."""
    logprobs: tuple[float, ...] = ()
    """That the generator gave its tokens, in nats."""

    @property
    def tokens(self) -> int:
        """Of prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Padded:
    """Samples as tensors."""

    ids_BT: Tensor
    prompts_B: Tensor
    """Tokens of each prompt."""
    responses_BR: Tensor
    """Drawn tokens; 0 where there are none."""
    mask_BR: Tensor
    """Where there are."""

    @staticmethod
    def of(samples: Sequence[Sample]) -> "Padded":
        """Of at least one sample."""
        ids_BT = _padded([(*sample.prompt, *sample.response) for sample in samples])
        responses_BR = _padded([sample.response for sample in samples])
        lengths_B = torch.tensor([len(sample.response) for sample in samples])
        mask_BR = torch.arange(responses_BR.shape[1]) < lengths_B.unsqueeze(1)
        prompts_B = torch.tensor([len(sample.prompt) for sample in samples])
        return Padded(ids_BT, prompts_B, responses_BR, mask_BR)

    @cached_property
    def kept(self) -> int:
        """First position that predicts a response's token."""
        return int(self.prompts_B.min()) - 1

    @cached_property
    def before_BR(self) -> Tensor:
        """Position that predicts each response token, counted from `kept`; of padding any that exists."""
        at_BR = self.prompts_B.unsqueeze(1) - 1 + torch.arange(self.responses_BR.shape[1]) - self.kept
        return at_BR.clamp(max=self.ids_BT.shape[1] - 1 - self.kept)

    @cached_property
    def last_B(self) -> Tensor:
        """Position of each response's last token, counted from `kept`."""
        return self.prompts_B + self.mask_BR.sum(1) - 1 - self.kept


def picked(values_BL: Tensor, at_BR: Tensor) -> Tensor:
    """Entries of the second dimension; further dimensions are taken whole."""
    rows_B1 = torch.arange(values_BL.shape[0]).unsqueeze(1)
    return values_BL[rows_B1, at_BR]


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded
