"""TRL's PPO on the cases of bench/rlhf_numerics.py: python trl_ppo_numerics.py CASES.npz ANSWERS.npz.

Its mathematics stands inside `PPOTrainer.train`; that part of it is run.
"""

import os
from types import SimpleNamespace

import excerpt
import torch
from arrays import Case, answer
from torch import Tensor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.ppo.ppo_trainer import PPOTrainer

EOS = 1


def compute(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for kind in ("k1", "k3"):
        for whiten in (False, True):
            named = f"TRL PPO, {kind}, rewards {'whitened' if whiten else 'as they are'}"
            after = _rollout(case, kind, whiten)
            inside = ~after["padding_mask_p1"]
            found[f"{named}: rewards"] = after["rewards"] * inside
            found[f"{named}: returns"] = after["returns"] * inside
            found[f"{named}: advantages"] = after["advantages"]
    return found | _losses(case, after)


def _rollout(case: Case, kind: str, whiten: bool) -> dict[str, Tensor]:
    """From scores and log-probabilities to advantages."""
    args = SimpleNamespace(
        missing_eos_penalty=case["eos_penalty"].item(),
        kl_estimator=kind,
        kl_coef=case["kl_coefficient"].item(),
        whiten_rewards=whiten,
        gamma=case["gamma"].item(),
        lam=case["lam"].item(),
    )
    given = {
        "self": SimpleNamespace(args=args, processing_class=SimpleNamespace(eos_token_id=EOS)),
        "args": args,
        "postprocessed_responses": case["responses"],
        "responses": case["responses"],
        "sequence_lengths": case["lengths"] - 1,
        "scores": case["scores"].clone(),
        "logprobs": case["old_logprobs"],
        "ref_logprobs": case["reference"],
        "values": case["old_values"],
    }
    return excerpt.run(PPOTrainer.train, "contain_eos_token", "advantages", given)


def _losses(case: Case, after: dict[str, Tensor]) -> dict[str, Tensor]:
    logprobs, values = case["logprobs"].clone().requires_grad_(), case["values"].clone().requires_grad_()
    clip = case["clip_low"].item()
    given = {
        "args": SimpleNamespace(cliprange=clip, cliprange_value=case["clip_value"].item()),
        "vpred": values,
        "mb_values": case["old_values"],
        "mb_return": case["returns"],
        "new_logprobs": logprobs,
        "mb_logprobs": case["old_logprobs"],
        "mb_advantage": case["advantages"],
        "padding_mask": after["padding_mask"],
        "padding_mask_p1": after["padding_mask_p1"],
        "micro_batch_inds": slice(None),
    }
    losses = excerpt.run(PPOTrainer.train, "vpredclipped", "pg_loss", given)
    (losses["pg_loss"] + losses["vf_loss"]).backward()
    return {
        "TRL PPO: policy loss": losses["pg_loss"],
        "TRL PPO: policy gradient": logprobs.grad,
        "TRL PPO: value loss": losses["vf_loss"],
        "TRL PPO: value gradient": values.grad,
        "TRL PPO: value clip fraction": losses["vf_clipfrac"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(compute)
