"""Advantages, losses and weights of PPO and GRPO against verl 0.9.1, TRL 1.9.0 (PPO) and TRL 1.16.0 (GRPO).

Random float64 inputs with random masks (holes in the middle included) go through ours and, in an environment
of their own (`make peers`), through the code of the others; losses are compared with their gradients. Ours
are computed in two micro-batches, theirs in one. A difference is relative to the largest entry of their
array. No group has a single sample: there verl's GRPO and RLOO leave the score as it is, TRL's give 0, and so
do ours. Where an environment is absent, the quick run is held against the answers that a full run kept.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import claim
import numpy as np
import torch
from peers.arrays import Case, keyed, read
from peers.install import PEERS, Contender, Missing, trainer
from torch import Tensor

from plait.training.advantages import (
    GaeConfig,
    GroupConfig,
    Scale,
    against_greedy,
    discounted_returns,
    gae,
    group_relative,
    leave_one_out,
    per_token,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)
from plait.training.aggregate import AggregateConfig, Mean, Whole, aggregate
from plait.training.health import policy_health, value_health
from plait.training.kl_control import KlControlConfig, next_coefficient
from plait.training.logits import entropy, token_logprobs
from plait.training.losses import (
    Kl,
    PolicyLossConfig,
    Ratio,
    ValueLossConfig,
    kl_penalty,
    policy_loss,
    value_loss,
)
from plait.training.masked import masked_mean, whiten
from plait.training.mismatch import Level, MismatchConfig, Outside, weights
from plait.training.responses import one_longer
from plait.training.rewards import ScoreConfig, final_scores, token_rewards

NAME, BAR = "rlhf_numerics", 1e-6
QUICK, FULL = 4, 200
"""Cases."""
GROUPS, GROUP_SIZE, TOKENS, WORDS, EOS = 3, 4, 10, 7, 1
SAMPLES = GROUPS * GROUP_SIZE
KINDS = {
    "k1": (Kl.K1, False),
    "k2": (Kl.K2, False),
    "k3": (Kl.LOW_VARIANCE, False),
    "abs": (Kl.ABS, False),
    "low_var_kl": (Kl.LOW_VARIANCE, False),
    "k1+": (Kl.K1, True),
    "k3+": (Kl.LOW_VARIANCE, True),
}
"""verl's names."""
LossOf = Callable[[Tensor, slice], Tensor]


def drawn(seed: int, number: int) -> dict[str, Tensor]:
    """One case; it depends on nothing but its arguments."""
    random = np.random.default_rng([seed, number])
    lengths = random.integers(1, TOKENS + 1, SAMPLES)
    inside = np.arange(TOKENS) < lengths[:, None]
    mask = inside & (random.random((SAMPLES, TOKENS)) < 0.8)
    mask[np.arange(SAMPLES), lengths - 1] = True
    words = random.integers(2, WORDS, (SAMPLES, TOKENS))
    responses = np.where(inside, words, 0)
    finished = random.random(SAMPLES) < 0.7
    responses[finished, lengths[finished] - 1] = EOS
    normal = partial(random.normal, size=(SAMPLES, TOKENS))
    rewards = normal() * (random.random((SAMPLES, 1)) < 0.9)
    old = -random.exponential(2.0, (SAMPLES, TOKENS))
    arrays = {
        "mask": mask,
        "lengths": lengths,
        "tokens": words,
        "responses": responses,
        "finished": finished,
        "groups": np.repeat(np.arange(GROUPS), GROUP_SIZE),
        "group_size": np.array(GROUP_SIZE),
        "rewards": rewards,
        "scores": (rewards * mask).sum(1),
        "scores_T": normal(),
        "greedy": random.normal(size=SAMPLES),
        "advantages": normal(),
        "advantages_B": random.normal(size=SAMPLES),
        "old_logprobs": old,
        "logprobs": old + 0.6 * normal(),
        "reference": old + 0.5 * normal(),
        "drawn": old + 0.3 * normal(),
        "weights": random.uniform(0.5, 2.0, (SAMPLES, TOKENS)),
        "old_values": normal(),
        "returns": normal(),
        "logits": random.normal(size=(SAMPLES, TOKENS, WORDS)),
        "scale_tokens": random.integers(5, 50),
    }
    arrays["values"] = arrays["old_values"] + 0.4 * normal()
    ranges = {
        "gamma": (0.9, 1.0),
        "lam": (0.0, 1.0),
        "clip_low": (0.1, 0.3),
        "clip_high": (0.1, 0.4),
        "dual_clip": (1.5, 4.0),
        "clip_value": (0.1, 0.5),
        "kl_coefficient": (0.01, 0.2),
        "kl": (0.01, 0.3),
        "kl_target": (0.05, 0.2),
        "eos_penalty": (0.5, 2.0),
    }
    arrays |= {name: np.array(random.uniform(*bounds)) for name, bounds in ranges.items()}
    return {name: torch.as_tensor(values) for name, values in arrays.items()}


def _halves(case: Case, leaf: Tensor, mean: AggregateConfig, loss_of: LossOf) -> tuple[Tensor, Tensor]:
    """Loss of the mini-batch from two micro-batches, and its gradient."""
    mask, total = case["mask"], torch.zeros((), dtype=torch.float64)
    leaf = leaf.clone().requires_grad_()
    parts = slice(0, SAMPLES // 3), slice(SAMPLES // 3, None)
    whole = Whole.of(*(mask[part] for part in parts))
    for part in parts:
        loss = aggregate(loss_of(leaf[part], part), mask[part], whole, mean)
        loss.backward()
        total += loss.detach()
    assert leaf.grad is not None
    return total, leaf.grad


def _mean(case: Case, mean: Mean) -> AggregateConfig:
    return AggregateConfig(mean, int(case["scale_tokens"]) if mean is Mean.SEQUENCE_SUMS_SCALED else None)


def _policy_config(case: Case, ratio: Ratio = Ratio.TOKEN, *, dual: bool = True) -> PolicyLossConfig:
    bound = case["dual_clip"].item() if dual else None
    return PolicyLossConfig(case["clip_low"].item(), case["clip_high"].item(), bound, ratio)


def as_verl(case: Case) -> dict[str, Tensor]:
    """Ours under the names of peers/verl_numerics.py."""
    return {**_advantages(case), **_policy(case), **_value(case), **_divergence(case), **_weights(case)}


def _advantages(case: Case) -> dict[str, Tensor]:
    mask, scores, groups, gamma = case["mask"], case["scores"], case["groups"], case["gamma"].item()
    estimates, returns = gae(case["rewards"], case["old_values"], mask, GaeConfig(gamma, case["lam"].item()))
    return {
        "GAE, whitened": whiten(estimates, mask),
        "GAE returns": returns,
        "whitening": whiten(case["advantages"], mask),
        "whitening, mean kept": whiten(case["advantages"], mask, shift_mean=False),
        "REINFORCE++": reinforce_plus_plus(case["rewards"], mask, gamma),
        "REINFORCE++ returns": discounted_returns(case["rewards"], mask, gamma),
        "REINFORCE++ baseline": reinforce_plus_plus_baseline(scores, groups, mask),
        "GRPO": per_token(group_relative(scores, groups, GroupConfig()), mask),
        "Dr. GRPO": per_token(group_relative(scores, groups, GroupConfig(Scale.NONE)), mask),
        "RLOO": per_token(leave_one_out(scores, groups), mask),
        "ReMax": against_greedy(case["rewards"], case["greedy"], mask),
    }


def _policy(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, config in (
        ("PPO", _policy_config(case)),
        ("GSPO", _policy_config(case, Ratio.SEQUENCE, dual=False)),
    ):

        def loss_of(logprobs: Tensor, part: slice, config: PolicyLossConfig = config) -> Tensor:
            given = (case[array][part] for array in ("old_logprobs", "advantages", "mask"))
            return policy_loss(logprobs, *given, config, case["weights"][part])

        for mean in Mean:
            loss, gradient = _halves(case, case["logprobs"], _mean(case, mean), loss_of)
            found |= {f"{name} loss, {mean}": loss, f"{name} gradient, {mean}": gradient}
    arrays = (case[array] for array in ("logprobs", "old_logprobs", "advantages", "mask"))
    health = policy_health(*arrays, _policy_config(case), entropy(case["logits"]))
    return found | {
        "clip fraction": torch.tensor(health.clip_fraction, dtype=torch.float64),
        "dual clip fraction": torch.tensor(health.dual_clip_fraction, dtype=torch.float64),
        "KL of old and new": torch.tensor(health.old_kl, dtype=torch.float64),
    }


def _value(case: Case) -> dict[str, Tensor]:
    config, found = ValueLossConfig(case["clip_value"].item()), {}

    def loss_of(values: Tensor, part: slice) -> Tensor:
        return value_loss(values, case["old_values"][part], case["returns"][part], config)

    for mean in Mean:
        loss, gradient = _halves(case, case["values"], _mean(case, mean), loss_of)
        found |= {f"value loss, {mean}": loss, f"value gradient, {mean}": gradient}
    arrays = (case[array] for array in ("values", "old_values", "returns", "mask"))
    found["value clip fraction"] = torch.tensor(value_health(*arrays, config).clip_fraction)
    return found


def _divergence(case: Case) -> dict[str, Tensor]:
    mask, coefficient, found = case["mask"], case["kl_coefficient"].item(), {}
    for name, (kind, k2_gradient) in KINDS.items():
        logprobs = case["logprobs"].clone().requires_grad_()
        kl = kl_penalty(logprobs, case["reference"], kind, k2_gradient=k2_gradient)
        kl[mask].sum().backward()
        found |= {f"KL {name}": kl * mask, f"KL gradient {name}": logprobs.grad}
    in_reward = case["scores_T"] - coefficient * kl_penalty(case["logprobs"], case["reference"], Kl.K1)
    control = KlControlConfig(coefficient, case["kl_target"].item(), 10_000)
    return found | {
        "KL in the reward": in_reward * mask,
        "adaptive KL": torch.tensor(next_coefficient(coefficient, case["kl"].item(), 256, control)),
        "entropy": masked_mean(entropy(case["logits"]), mask),
        "log-probabilities": token_logprobs(case["logits"], case["tokens"], 1.0),
    }


def _weights(case: Case) -> dict[str, Tensor]:
    arrays = [case[array] for array in ("old_logprobs", "drawn", "mask")]
    return {
        f"mismatch weights, {level}, {name}": weights(*arrays, MismatchConfig(level, 1.5, least, outside))
        for level in Level
        for name, least, outside in (("truncated", 0.0, Outside.TRUNCATE), ("masked", 0.5, Outside.MASK))
    }


def as_trl_ppo(case: Case) -> dict[str, Tensor]:
    """Ours under the names of peers/trl_ppo_numerics.py; rewards and the critic have the longer mask."""
    found: dict[str, Tensor] = {}
    inside = torch.arange(TOKENS) < case["lengths"].unsqueeze(1)
    longer = one_longer(inside)
    rules = ScoreConfig(missing_eos_penalty=case["eos_penalty"].item())
    scores = final_scores(case["scores"], case["lengths"], case["finished"], rules)
    for kind in (Kl.K1, Kl.K3):
        kl = kl_penalty(case["old_logprobs"], case["reference"], kind).where(inside, 0)
        plain = token_rewards(scores, kl, longer, case["kl_coefficient"].item())
        for named, rewards in (
            ("as they are", plain),
            ("whitened", whiten(plain, longer, shift_mean=False)),
        ):
            config = GaeConfig(case["gamma"].item(), case["lam"].item())
            advantages, returns = gae(rewards, case["old_values"], longer, config)
            name = f"TRL PPO, {kind}, rewards {named}"
            found |= {f"{name}: rewards": rewards, f"{name}: returns": returns}
            found[f"{name}: advantages"] = whiten(advantages, inside)
    return found | _trl_losses(case, inside, longer)


def _trl_losses(case: Case, inside: Tensor, longer: Tensor) -> dict[str, Tensor]:
    clip = case["clip_low"].item()
    policy, value = PolicyLossConfig(clip, clip), ValueLossConfig(case["clip_value"].item())

    def policy_of(logprobs: Tensor, part: slice) -> Tensor:
        given = (case[array][part] for array in ("old_logprobs", "advantages"))
        return policy_loss(logprobs, *given, inside[part], policy)

    def value_of(values: Tensor, part: slice) -> Tensor:
        return value_loss(values, case["old_values"][part], case["returns"][part], value)

    tokens = AggregateConfig()
    loss, gradient = _halves({**case, "mask": inside}, case["logprobs"], tokens, policy_of)
    value_error, value_gradient = _halves({**case, "mask": longer}, case["values"], tokens, value_of)
    arrays = (case[array] for array in ("values", "old_values", "returns"))
    return {
        "TRL PPO: policy loss": loss,
        "TRL PPO: policy gradient": gradient,
        "TRL PPO: value loss": value_error,
        "TRL PPO: value gradient": value_gradient,
        "TRL PPO: value clip fraction": torch.tensor(value_health(*arrays, longer, value).clip_fraction),
    }


def as_trl_grpo(case: Case) -> dict[str, Tensor]:
    """Ours under the names of peers/trl_grpo_numerics.py."""
    found = {
        f"TRL GRPO advantages, scale {scale}": group_relative(
            case["scores"], case["groups"], GroupConfig(scale, epsilon=1e-4)
        )
        for scale in Scale
    }
    for name, ratio, mean in (
        ("grpo", Ratio.TOKEN, Mean.SEQUENCES),
        ("grpo", Ratio.SEQUENCE, Mean.SEQUENCES),
        ("bnpo", Ratio.TOKEN, Mean.TOKENS),
        ("dr_grpo", Ratio.TOKEN, Mean.SEQUENCE_SUMS_SCALED),
        ("dapo", Ratio.TOKEN, Mean.TOKENS),
    ):
        loss, gradient = _grpo_loss(case, ratio, mean)
        found |= {f"TRL GRPO loss, {name}, {ratio}": loss, f"TRL GRPO gradient, {name}, {ratio}": gradient}
    arrays = [case[array] for array in ("old_logprobs", "drawn", "mask")]
    for level in Level:
        for outside in Outside:
            config = MismatchConfig(level, 1.5, 0.5, outside)
            found[f"TRL mismatch weights, {level}_{outside}"] = weights(*arrays, config)
    return found


def _grpo_loss(case: Case, ratio: Ratio, mean: Mean) -> tuple[Tensor, Tensor]:
    config, coefficient = _policy_config(case, ratio), case["kl_coefficient"].item()
    advantages, weights_BT = per_token(case["advantages_B"], case["mask"]), case["weights"]
    if ratio is Ratio.SEQUENCE:
        weights_BT = weights_BT[:, :1].expand_as(advantages)

    def loss_of(logprobs: Tensor, part: slice) -> Tensor:
        given = (case["old_logprobs"][part], advantages[part], case["mask"][part])
        loss = policy_loss(logprobs, *given, config, weights_BT[part])
        return loss + coefficient * kl_penalty(logprobs, case["reference"][part], Kl.K3)

    return _halves(case, case["logprobs"], _mean(case, mean), loss_of)


OURS: Mapping[str, Callable[[Case], dict[str, Tensor]]] = {
    "verl": as_verl,
    "trl-ppo": as_trl_ppo,
    "trl-grpo": as_trl_grpo,
}
"""By the environment that they are held against."""


def asked(peer: Contender, cases: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The peer's answers to the cases."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, answers = Path(folder) / "cases.npz", Path(folder) / "answers.npz"
        np.savez(inputs, **keyed(cases))
        subprocess.run([*peer.command, str(inputs), str(answers)], check=True)
        return read(str(answers))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to their largest entry; infinite for another shape or a NaN."""
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return torch.inf
    largest = theirs.abs().max().item()
    apart = (ours - theirs).abs().max().item()
    return apart / largest if largest else apart


def worst(name: str, cases: list[dict[str, Tensor]], answers: list[dict[str, Tensor]]) -> list[claim.Claim]:
    """A claim for each function of the peer."""
    found: dict[str, float] = {}
    for case, theirs in zip(cases, answers, strict=True):
        ours = OURS[name](case)
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
        for function, values in ours.items():
            apart = difference(values.detach().double(), theirs[function].double())
            found[function] = max(found.get(function, 0.0), apart)
    return [claim.at_most(f"{name}: {function}", apart, BAR) for function, apart in found.items()]


def kept(name: str) -> Path:
    """Answers of a peer to the quick cases of seed 0."""
    return claim.RESULTS / f"{NAME}-{name}.npz"


def compared(name: str, options: argparse.Namespace) -> list[claim.Claim]:
    """Against the peer, or what it answered to the quick cases in a full run."""
    if (peer := present(name, options.quick)) is None:
        cases = [drawn(0, number) for number in range(QUICK)]
        return [replace(part, stored=True) for part in worst(name, cases, read(str(kept(name))))]
    cases = [drawn(options.seed, number) for number in range(QUICK if options.quick else FULL)]
    answers = asked(peer, cases)
    if not options.quick and options.seed == 0:
        np.savez_compressed(kept(name), **keyed(answers[:QUICK]))
    return worst(name, cases, answers)


def present(name: str, quick: bool) -> Contender | None:
    """The peer, which a full run installs if need be."""
    if quick and not (PEERS / name / "installed.sha256").is_file():
        return None
    try:
        return trainer(name)
    except Missing as error:
        sys.stderr.write(f"{error}\n")
        return None


def main() -> None:
    options = claim.arguments(__doc__)
    torch.set_num_threads(1)
    parts = [part for name in OURS for part in compared(name, options)]
    claim.finish(NAME, claim.together("numerics of PPO and GRPO equal verl's and TRL's", parts), options)


if __name__ == "__main__":
    main()
