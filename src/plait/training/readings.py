"""What models say of finished samples: feeds of pipelines that only go forward.

Shapes: B samples, R response positions, L positions from the first that predicts a response's token on.
"""

from collections.abc import Sequence
from enum import StrEnum

from torch import Tensor

from plait.training.batch import Padded, picked
from plait.training.logits import token_logprobs


class Want(StrEnum):
    """What is read."""

    LOGPROBS = "logprobs"
    """Of each response token, in nats [B, R]."""
    VALUES = "values"
    """Of the state before each response token [B, R]."""
    SCORE = "score"
    """At the last token [B]."""


class Reading:
    """Feed of one model; `found` fills on the rank of its last stage."""

    def __init__(self, want: Want, batches: Sequence[Padded], width: int, temperature: float = 1.0) -> None:
        """`temperature`: that tokens were drawn at; of log-probabilities alone."""
        self.want, self.batches, self.width, self.temperature = want, tuple(batches), width, temperature
        self.found: dict[int, Tensor] = {}
        """By micro-batch."""

    def micro_batch(self, number: int) -> Padded:
        """See `Feed`."""
        return self.batches[number]

    def shape(self, number: int) -> tuple[int, ...]:
        """[B, T, N]."""
        return (*self.batches[number].ids_BT.shape, self.width)

    def finish(self, number: int, output: Tensor) -> None:
        """Keep what is wanted of logits [B, L, V] or scores [B, L]."""
        padded = self.batches[number]
        if self.want is Want.LOGPROBS:
            logits_BRV = picked(output, padded.before_BR)
            self.found[number] = token_logprobs(logits_BRV, padded.responses_BR, self.temperature)
        elif self.want is Want.VALUES:
            self.found[number] = picked(output, padded.before_BR)
        else:
            self.found[number] = picked(output, padded.last_B.unsqueeze(1)).squeeze(1)
