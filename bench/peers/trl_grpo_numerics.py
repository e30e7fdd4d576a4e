"""TRL's GRPO on the cases of bench/rlhf_numerics.py: python trl_grpo_numerics.py CASES.npz ANSWERS.npz.

Losses come from `GRPOTrainer._compute_loss` itself, advantages and weights from the part of
`GRPOTrainer._generate_and_score_completions` that computes them.
"""

from collections import defaultdict
from types import SimpleNamespace

import excerpt
import torch
from arrays import Case, answer
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

LOSSES = (("grpo", "token"), ("grpo", "sequence"), ("bnpo", "token"), ("dr_grpo", "token"), ("dapo", "token"))


def compute(case: Case) -> dict[str, Tensor]:
    found = {
        f"TRL GRPO advantages, scale {scale}": _advantages(case, scale)
        for scale in ("group", "batch", "none")
    }
    for loss_type, level in LOSSES:
        loss, gradient = _loss(case, loss_type, level)
        found[f"TRL GRPO loss, {loss_type}, {level}"] = loss
        found[f"TRL GRPO gradient, {loss_type}, {level}"] = gradient
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        found[f"TRL mismatch weights, {mode}"] = (
            _weights(case, mode).expand(case["mask"].shape) * case["mask"]
        )
    return found


def _advantages(case: Case, scale: str) -> Tensor:
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=torch.ones(1, dtype=torch.float64),
        scale_rewards=scale,
        accelerator=SimpleNamespace(process_index=0),
    )
    given = {
        "self": trainer,
        "device": "cpu",
        "prompts": case["scores"].tolist(),
        "num_generations": int(case["group_size"]),
        "rewards_per_func": case["scores"].unsqueeze(1),
    }
    method = GRPOTrainer._generate_and_score_completions
    return excerpt.run(method, "unscorable_mask", "advantages", given)["advantages"]


def _weights(case: Case, mode: str) -> Tensor:
    trainer = SimpleNamespace(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=0.5,
        vllm_importance_sampling_clip_max=1.5,
    )
    given = {
        "self": trainer,
        "mask": case["mask"],
        "old_per_token_logps": case["old_logprobs"],
        "sampling_per_token_logps": case["drawn"],
    }
    method, ratio = GRPOTrainer._generate_and_score_completions, "vllm_importance_sampling_ratio"
    return excerpt.run(method, "per_token_logps_diff", ratio, given)[ratio]


def _loss(case: Case, loss_type: str, level: str) -> tuple[Tensor, Tensor]:
    logprobs = case["logprobs"].clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=case["kl_coefficient"].item(),
        loss_type=loss_type,
        epsilon_low=case["clip_low"].item(),
        epsilon_high=case["clip_high"].item(),
        args=SimpleNamespace(delta=case["dual_clip"].item(), use_bias_correction_kl=False),
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        max_completion_length=int(case["scale_tokens"]),
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda values: values, reduce=lambda values, reduction: values
        ),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    ones = torch.ones_like(case["tokens"])
    inputs = {
        "prompt_ids": ones[:, :1],
        "prompt_mask": ones[:, :1],
        "completion_ids": case["tokens"],
        "completion_mask": case["mask"].long(),
        "advantages": case["advantages_B"],
        "old_per_token_logps": case["old_logprobs"],
        "ref_per_token_logps": case["reference"],
        "importance_sampling_ratio": case["weights"] if level == "token" else case["weights"][:, :1],
        "num_items_in_batch": case["mask"].sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss, logprobs.grad


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(compute)
