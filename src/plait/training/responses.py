"""Which positions belong to a response.

Shapes: B samples, T response positions, padded on the right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def until_stop(tokens_BT: Tensor, stop_tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The response up to and with its first stop token, and whether there is one: (mask_BT, finished_B).

    The stop token is the policy's choice like any other: it is trained on, and the score stands on it.
    """
    stops_BT = torch.isin(tokens_BT, torch.tensor(list(stop_tokens), device=tokens_BT.device))
    before_BT = stops_BT.cumsum(1) - stops_BT.long()
    return before_BT == 0, stops_BT.any(1)


def last_position(mask_BT: Tensor) -> Tensor:
    """Where the last selected token stands: position_B. A sample without one is our mistake."""
    assert bool(mask_BT.any(1).all()), "a sample without a token has no last one"
    return mask_BT.shape[1] - 1 - mask_BT.flip(1).long().argmax(1)


def one_longer(mask_BT: Tensor) -> Tensor:
    """The mask and one position after it where there is room.

    TRL's PPO puts the score there and trains the critic on it: pass this mask to `token_rewards`, `gae` and
    the value loss to do the same.
    """
    longer_BT = mask_BT.clone()
    after_B = (last_position(mask_BT) + 1).clamp(max=mask_BT.shape[1] - 1)
    longer_BT[torch.arange(mask_BT.shape[0], device=mask_BT.device), after_B] = True
    return longer_BT
