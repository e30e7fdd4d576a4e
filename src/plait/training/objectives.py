"""What the models of RLHF minimise, micro-batch by micro-batch: feeds of a pipeline.

Shapes: B samples, R response positions, L positions from the first that predicts a response's token on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.aggregate import AggregateConfig, Whole, aggregate
from plait.training.batch import Padded, picked
from plait.training.health import PolicyHealth, ValueHealth, policy_health, value_health
from plait.training.logits import entropy, token_logprobs
from plait.training.losses import Kl, PolicyLossConfig, ValueLossConfig, kl_penalty, policy_loss, value_loss


@dataclass(frozen=True)
class PolicyConfig:
    """What the Actor minimises."""

    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """The clipped objective."""
    aggregate: AggregateConfig = field(default_factory=AggregateConfig)
    """How tokens become one number."""
    temperature: float = 1.0
    """That tokens are drawn at."""
    kl: Kl = Kl.K3
    """Estimator of the divergence from the reference."""
    kl_coefficient: float = 0.0
    """Weight of that divergence in the loss (GRPO); PPO has it in the reward."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy that is rewarded."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}", "temperature")
        if self.kl_coefficient < 0 or self.entropy_coefficient < 0:
            raise UserError("kl_coefficient and entropy_coefficient must be 0 or more", "kl_coefficient")


@dataclass(frozen=True)
class PolicyBatch:
    """A micro-batch of the Actor."""

    padded: Padded
    old_BR: Tensor | None
    """Log-probabilities before the first step on this batch; None: this is that step."""
    advantages_BR: Tensor
    reference_BR: Tensor | None = None
    """Log-probabilities of the reference; needed where the loss has a divergence."""
    weights_BR: Tensor | None = None
    """For tokens that another program drew; None: 1."""
    drawn_BR: Tensor | None = None
    """Log-probabilities that the generator gave."""


@dataclass(frozen=True)
class ValueBatch:
    """A micro-batch of the Critic."""

    padded: Padded
    old_BR: Tensor
    """Values at rollout."""
    returns_BR: Tensor


class Policy:
    """Feed of the Actor; `health` fills as micro-batches finish, on the rank of the last stage."""

    def __init__(
        self, config: PolicyConfig, batches: Sequence[PolicyBatch], whole: Whole, width: int
    ) -> None:
        """`whole` is the size of the mini-batch over all ranks; `width` that of the activations."""
        self.config, self.batches, self.whole, self.width = config, tuple(batches), whole, width
        self.losses: dict[int, float] = {}
        self.health: dict[int, tuple[int, PolicyHealth]] = {}
        """Tokens and figures of each micro-batch."""
        self.gaps: dict[int, float] = {}
        """Largest difference of a token's log-probability from the generator's, in nats."""

    def micro_batch(self, number: int) -> Padded:
        """See `Feed`."""
        return self.batches[number].padded

    def shape(self, number: int) -> tuple[int, ...]:
        """[B, T, N]."""
        return (*self.batches[number].padded.ids_BT.shape, self.width)

    def finish(self, number: int, logits_BLV: Tensor) -> Tensor:
        """The micro-batch's share of the loss."""
        config, batch = self.config, self.batches[number]
        padded, mask_BR = batch.padded, batch.padded.mask_BR
        logits_BRV = picked(logits_BLV, padded.before_BR)
        logprobs_BR = token_logprobs(logits_BRV, padded.responses_BR, config.temperature)
        old_BR = logprobs_BR.detach() if batch.old_BR is None else batch.old_BR
        if batch.drawn_BR is not None:
            apart_BR = (logprobs_BR.detach() - batch.drawn_BR).where(mask_BR, 0)
            self.gaps[number] = apart_BR.abs().max().item()
        loss_BR = policy_loss(
            logprobs_BR, old_BR, batch.advantages_BR, mask_BR, config.loss, batch.weights_BR
        )
        if config.kl_coefficient:
            assert batch.reference_BR is not None, "a divergence in the loss needs a reference"
            kl_BR = kl_penalty(logprobs_BR, batch.reference_BR, config.kl)
            loss_BR = loss_BR + config.kl_coefficient * kl_BR
        with torch.set_grad_enabled(bool(config.entropy_coefficient) and torch.is_grad_enabled()):
            entropy_BR = entropy(logits_BRV, config.temperature)
        if config.entropy_coefficient:
            loss_BR = loss_BR - config.entropy_coefficient * entropy_BR
        loss = aggregate(loss_BR, mask_BR, self.whole, config.aggregate)
        figures = policy_health(
            logprobs_BR.detach(),
            old_BR,
            batch.advantages_BR,
            mask_BR,
            config.loss,
            entropy_BR.detach(),
        )
        self.losses[number], self.health[number] = loss.item(), (int(mask_BR.sum()), figures)
        return loss


class Values:
    """Feed of the Critic."""

    def __init__(
        self, config: ValueLossConfig, batches: Sequence[ValueBatch], whole: Whole, width: int
    ) -> None:
        """As `Policy`; the mean is over tokens."""
        self.config, self.batches, self.whole, self.width = config, tuple(batches), whole, width
        self.losses: dict[int, float] = {}
        self.health: dict[int, tuple[int, ValueHealth]] = {}

    def micro_batch(self, number: int) -> Padded:
        """See `Feed`."""
        return self.batches[number].padded

    def shape(self, number: int) -> tuple[int, ...]:
        """[B, T, N]."""
        return (*self.batches[number].padded.ids_BT.shape, self.width)

    def finish(self, number: int, values_BL: Tensor) -> Tensor:
        """The micro-batch's share of the loss."""
        batch = self.batches[number]
        padded, mask_BR = batch.padded, batch.padded.mask_BR
        values_BR = picked(values_BL, padded.before_BR)
        loss_BR = value_loss(values_BR, batch.old_BR, batch.returns_BR, self.config)
        loss = aggregate(loss_BR, mask_BR, self.whole, AggregateConfig())
        figures = value_health(values_BR.detach(), batch.old_BR, batch.returns_BR, mask_BR, self.config)
        self.losses[number], self.health[number] = loss.item(), (int(mask_BR.sum()), figures)
        return loss


class Pairs:
    """Feed of a reward model in training (Bradley and Terry): samples come in pairs, the chosen one first."""

    def __init__(self, batches: Sequence[Padded], pairs: int, width: int) -> None:
        """`pairs` are those of the mini-batch over all ranks."""
        self.batches, self.pairs, self.width = tuple(batches), pairs, width
        self.losses: dict[int, float] = {}
        self.right: dict[int, int] = {}
        """Pairs of each micro-batch whose chosen answer has the higher score."""

    def micro_batch(self, number: int) -> Padded:
        """See `Feed`."""
        return self.batches[number]

    def shape(self, number: int) -> tuple[int, ...]:
        """[B, T, N]."""
        return (*self.batches[number].ids_BT.shape, self.width)

    def finish(self, number: int, scores_BL: Tensor) -> Tensor:
        """The micro-batch's share of the mean negative log-likelihood."""
        scores_B = picked(scores_BL, self.batches[number].last_B.unsqueeze(1)).squeeze(1)
        apart_P = scores_B[0::2] - scores_B[1::2]
        loss = -F.logsigmoid(apart_P).sum() / self.pairs
        self.losses[number], self.right[number] = loss.item(), int((apart_P > 0).sum())
        return loss
