"""What a model's logits say of the tokens that were drawn.

Shapes: B samples, T positions, V words. `logits_BTV` stand where the model predicts token T of the response,
one position before it. Sums over words are float32 at least: bfloat16 loses the ratio that PPO is about.
"""

import torch
from torch import Tensor

from plait.spec.errors import UserError


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature): logprobs_BT.

    Rollout, reference and training must use the temperature that tokens were drawn at.

    Raises:
        UserError: the temperature is not positive.
    """
    if temperature <= 0:
        raise UserError(f"log-probabilities need a temperature above 0, not {temperature}", "temperature")
    scaled_BTV = _wide(logits_BTV) / temperature
    chosen_BT = scaled_BTV.gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1)
    return chosen_BT - scaled_BTV.logsumexp(-1)


def entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution at each position, in nats: entropy_BT. Logits may be -inf."""
    logprobs_BTV = (_wide(logits_BTV) / temperature).log_softmax(-1)
    return -(logprobs_BTV.exp() * logprobs_BTV.clamp(min=torch.finfo(logprobs_BTV.dtype).min)).sum(-1)


def _wide(logits_BTV: Tensor) -> Tensor:
    return logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
