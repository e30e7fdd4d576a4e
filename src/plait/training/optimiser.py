"""`Optimiser`: AdamW on one rank's stage of a model, clipped by the norm of the whole model's gradient."""

from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.training.orders import OptimiserConfig


class Optimiser:
    """Of one stage. All ranks that hold stages of the model step together."""

    def __init__(
        self,
        config: OptimiserConfig,
        weights: dict[str, nn.Parameter],
        counted_elsewhere: Collection[str],
        group: dist.ProcessGroup,
    ) -> None:
        """
        Args:
            weights: by name; None of them is on this rank twice.
            counted_elsewhere: weights whose gradients another rank counts in the norm.
            group: ranks of the model.
        """
        self.config, self._weights, self._group = config, weights, group
        self._counted = [weight for name, weight in weights.items() if name not in counted_elsewhere]
        self._adam = torch.optim.AdamW(
            list(weights.values()),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.steps = 0

    def step(self) -> float:
        """Clip, step, forget the gradients; returns the norm before clipping, the same on all ranks."""
        norm = self._norm()
        limit = self.config.clip_norm
        if limit is not None and norm > limit:
            for weight in self._weights.values():
                if weight.grad is not None:
                    weight.grad *= limit / (norm + 1e-6)
        self.steps += 1
        share = min(1.0, self.steps / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        for group in self._adam.param_groups:
            group["lr"] = self.config.lr * share
        self._adam.step()
        self._adam.zero_grad()
        return norm

    def _norm(self) -> float:
        """Squares are added in the order of weights, then of ranks, in float64."""
        square = torch.zeros((), dtype=torch.float64)
        for weight in self._counted:
            if weight.grad is not None:
                square += weight.grad.double().square().sum()
        parts = [torch.zeros_like(square) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, square, group=self._group)
        return float(sum(part.item() for part in parts) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """Moments of each weight, for a checkpoint."""
        found = {"steps": torch.tensor(self.steps)}
        for name, weight in self._weights.items():
            for key, value in self._adam.state.get(weight, {}).items():
                found[f"{key}|{name}"] = value
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.steps = int(state["steps"])
        for name, weight in self._weights.items():
            kept = {key: state[f"{key}|{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self._adam.state[weight] = {key: value.to(weight.device) for key, value in kept.items()}
