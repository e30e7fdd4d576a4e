"""verl's core_algos on the cases of bench/rlhf_numerics.py: python verl_numerics.py CASES.npz ANSWERS.npz."""

from functools import partial
from types import SimpleNamespace

import torch
from arrays import Case, answer
from torch import Tensor
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils import torch_functional
from verl.workers.config import ActorConfig

MEANS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def compute(case: Case) -> dict[str, Tensor]:
    return {**advantages(case), **policy(case), **value(case), **divergence(case), **weights(case)}


def advantages(case: Case) -> dict[str, Tensor]:
    mask, gamma, lam = case["mask"].double(), case["gamma"].item(), case["lam"].item()
    rewards, groups = case["rewards"] * mask, case["groups"].numpy()
    estimates, returns = core.compute_gae_advantage_return(rewards, case["old_values"], mask, gamma, lam)
    plus, plus_returns = core.compute_reinforce_plus_plus_outcome_advantage(
        rewards, mask, config=SimpleNamespace(gamma=gamma)
    )
    grouped = partial(core.compute_grpo_outcome_advantage, response_mask=mask, index=groups)
    whitened = partial(torch_functional.masked_whiten, case["advantages"], mask)
    return {
        "GAE, whitened": estimates * mask,
        "GAE returns": returns * mask,
        "whitening": whitened() * mask,
        "whitening, mean kept": whitened(shift_mean=False) * mask,
        "REINFORCE++": plus,
        "REINFORCE++ returns": plus_returns,
        "REINFORCE++ baseline": core.compute_reinforce_plus_plus_baseline_outcome_advantage(
            rewards, mask, groups
        )[0],
        "GRPO": grouped(rewards)[0],
        "Dr. GRPO": grouped(rewards, norm_adv_by_std_in_grpo=False)[0],
        "RLOO": core.compute_rloo_outcome_advantage(rewards, mask, groups)[0],
        "ReMax": core.compute_remax_outcome_advantage(rewards, case["greedy"], mask)[0] * mask,
    }


def policy(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, function in (
        ("PPO", core.compute_policy_loss_vanilla),
        ("GSPO", core.compute_policy_loss_gspo),
    ):
        for mean in MEANS:
            logprobs = case["logprobs"].clone().requires_grad_()
            loss, metrics = function(
                case["old_logprobs"],
                logprobs,
                case["advantages"],
                case["mask"].double(),
                loss_agg_mode=mean,
                config=_config(case, mean),
                rollout_is_weights=case["weights"],
            )
            loss.backward()
            found[f"{name} loss, {mean}"] = loss
            found[f"{name} gradient, {mean}"] = logprobs.grad
            if name == "PPO":
                found["clip fraction"] = torch.tensor(metrics["actor/pg_clipfrac"])
                found["dual clip fraction"] = torch.tensor(metrics["actor/pg_clipfrac_lower"])
                found["KL of old and new"] = torch.tensor(metrics["actor/ppo_kl"])
    return found


def value(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mean in MEANS:
        values = case["values"].clone().requires_grad_()
        loss, fraction = core.compute_value_loss(
            values,
            case["returns"],
            case["old_values"],
            case["mask"].double(),
            case["clip_value"].item(),
            loss_agg_mode=mean,
            loss_scale_factor=int(case["scale_tokens"]),
        )
        loss.backward()
        found |= {f"value loss, {mean}": loss, f"value gradient, {mean}": values.grad}
        found["value clip fraction"] = fraction
    return found


def divergence(case: Case) -> dict[str, Tensor]:
    mask, found = case["mask"], {}
    for kind in ("k1", "k2", "k3", "abs", "low_var_kl", "k1+", "k3+"):
        logprobs = case["logprobs"].clone().requires_grad_()
        kl = core.kl_penalty(logprobs, case["reference"], kind)
        kl[mask].sum().backward()
        found |= {f"KL {kind}": kl * mask, f"KL gradient {kind}": logprobs.grad}
    kl_coefficient = case["kl_coefficient"].item()
    rewards = core.compute_rewards(case["scores_T"], case["logprobs"], case["reference"], kl_coefficient)
    control = core.AdaptiveKLController(kl_coefficient, case["kl_target"].item(), 10_000)
    control.update(case["kl"].item(), 256)
    entropy = core.compute_entropy_loss(case["logits"], mask.double())
    return found | {
        "KL in the reward": rewards * mask,
        "adaptive KL": torch.tensor(control.value, dtype=torch.float64),
        "entropy": entropy,
        "log-probabilities": torch_functional.logprobs_from_logits_naive(case["logits"], case["tokens"]),
    }


def weights(case: Case) -> dict[str, Tensor]:
    found, mask = {}, case["mask"].double()
    for level in ("token", "sequence"):
        for name, bounds in (("truncated", "1.5"), ("masked", "0.5_1.5")):
            gap = case["old_logprobs"] - case["drawn"]
            answers = compute_rollout_correction_weights(gap, mask, level, bounds)
            found[f"mismatch weights, {level}, {name}"] = answers[0]
    return found


def _config(case: Case, mean: str) -> ActorConfig:
    scaled = mean == "seq-mean-token-sum-norm"
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=case["clip_low"].item(),
        clip_ratio_high=case["clip_high"].item(),
        clip_ratio_c=case["dual_clip"].item(),
        global_batch_info={"loss_scale_factor": int(case["scale_tokens"])} if scaled else {},
    )


if __name__ == "__main__":
    answer(compute)
