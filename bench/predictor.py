"""How well accuracies of policies nobody measured are predicted, on labels that SeerNet published.

    python bench/predictor.py [--quick]

Labels are in five folds, each predicted from the other four; errors are pooled over all labels, and figures
are means over seeds of the folds. What is fitted (scales, weights of members, stretch of intervals) is
fitted to the four folds. The predictor's settings are its defaults, the same for all three networks; they
were settled on while looking at these labels, so a little of the advantage is selection. Beside it stands
the network that SeerNet's authors used: 15-15 ELU on ratios and bits.
"""

from collections.abc import Callable
from pathlib import Path

import claim
import numpy as np
import torch
from seernet_labels import FOLDER, Labels, mobilenetv2, resnet18, resnet20
from torch import nn

from plait.compression.agreement import kendall_tau
from plait.compression.predictor import NINETY, Predictor
from plait.compression.selection import Acquisition, SelectionConfig, pick
from plait.compression.space import Floats, Ints

BARS = {"ResNet-20": (0.125, 0.780), "ResNet-18": (1.05, 0.655), "MobileNetV2": (8.0, 0.50)}
"""Mean squared error (points^2) and Kendall's tau."""
FOLDS = 5
HELD_OUT, FIRST, BATCH, MOST = 80, 30, 10, 200
"""Of label efficiency: labels never learnt from, labels at the start, labels a batch, labels at the end."""
CURVES = 24
"""Seeds of label efficiency: groups of 8 differ by 10 points in what is saved."""
Fitted = Callable[[Floats], tuple[Floats, Floats]]


def pooled(labels: Labels, fit: Callable[[Ints], Fitted], seed: int) -> tuple[float, float, float]:
    """Error, tau and the share of labels within their 90 % intervals."""
    order = np.random.default_rng(seed).permutation(len(labels.accuracy_N))
    mean_N, std_N = np.empty(len(order)), np.empty(len(order))
    for fold in np.array_split(order, FOLDS):
        mean_N[fold], std_N[fold] = fit(np.setdiff1d(order, fold))(labels.z_ND[fold])
    off_N = mean_N - labels.accuracy_N
    return (
        float((off_N**2).mean()),
        kendall_tau(mean_N, labels.accuracy_N),
        float((abs(off_N) <= NINETY * std_N).mean()),
    )


def ours(labels: Labels, rows: Ints) -> Fitted:
    """The predictor."""
    return Predictor(labels.space, labels.z_ND[rows], labels.accuracy_N[rows]).predict


def theirs(labels: Labels, rows: Ints) -> Fitted:
    """The seed's network: full batches, Adam at 0.2, a tenth of that after three fifths of 5,000 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(len(labels.space), 15), nn.ELU(), nn.Linear(15, 15), nn.ELU(), nn.Linear(15, 1)
    )
    x_ND = torch.from_numpy(labels.z_ND[rows]).float()
    y_N = torch.from_numpy(labels.accuracy_N[rows]).float() / 100
    adam = torch.optim.Adam(net.parameters(), 0.2)
    fall = torch.optim.lr_scheduler.MultiStepLR(adam, [3000])
    for _ in range(5000):
        adam.zero_grad()
        (net(x_ND)[:, 0] - y_N).square().mean().backward()
        adam.step()
        fall.step()

    def predict(z_BD: Floats) -> tuple[Floats, Floats]:
        with torch.no_grad():
            mean_B = 100 * net(torch.from_numpy(z_BD).float())[:, 0].double().numpy()
        return mean_B, np.zeros(len(mean_B))

    return predict


def accuracy_lines(labels: Labels, seeds: range, quick: bool) -> list[claim.Claim]:
    """All lines of one network."""
    found = np.array([pooled(labels, lambda rows: ours(labels, rows), seed) for seed in seeds])
    error, tau, covered = found.mean(0).tolist()
    most, least = BARS[labels.name]
    lines = [
        claim.at_most(f"{labels.name}: squared error, points^2", error, most),
        claim.at_least(f"{labels.name}: Kendall's tau", tau, least),
        within(f"{labels.name}: labels within their 90 % intervals", covered, 0.80, 0.97),
    ]
    if not quick:
        theirs_found = np.array([pooled(labels, lambda rows: theirs(labels, rows), seed) for seed in seeds])
        for column, name in enumerate(("squared error", "Kendall's tau")):
            value, spread = theirs_found[:, column].mean(), theirs_found[:, column]
            lines.append(
                claim.reported(
                    f"{labels.name}: the seed's network, {name}", value, (spread.min(), spread.max())
                )
            )
    return lines


def within(name: str, value: float, low: float, high: float) -> claim.Claim:
    """A share that must be neither too small nor too large; its bar is the smaller."""
    return claim.Claim(name, float(value), low, bool(low <= value <= high))


def curve(labels: Labels, acquisition: Acquisition, seed: int) -> Floats:
    """Squared errors on labels held out, after each batch of labels that were chosen from all others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels.accuracy_N))
    held, pool = order[:HELD_OUT], order[HELD_OUT:]
    learnt, errors = list(pool[:FIRST]), []
    while True:
        predictor = Predictor(labels.space, labels.z_ND[learnt], labels.accuracy_N[learnt])
        errors.append(np.square(predictor.predict(labels.z_ND[held])[0] - labels.accuracy_N[held]).mean())
        if len(learnt) >= MOST:
            return np.array(errors)
        left = np.setdiff1d(pool, learnt)
        config = SelectionConfig(acquisition=acquisition)
        # Of interest are all policies, measured ones too: errors are taken over policies like any of them.
        rows = pick(predictor, labels.index_ND[left], BATCH, labels.index_ND[pool], config, rng)
        number = {tuple(row): n for n, row in zip(left, labels.index_ND[left], strict=True)}
        learnt += [number[tuple(row)] for row in rows]


def efficiency_lines(labels: Labels, seeds: range, quick: bool) -> list[claim.Claim]:
    """How many labels are needed: with 100, and chosen ones beside random ones at equal error.

    The share saved is a mean over errors that 80, 100, ... 200 random labels reach; with its least and most.
    """
    kinds = [Acquisition.RANDOM, Acquisition.REDUCTION]
    kinds += [] if quick else [Acquisition.DEVIATION, Acquisition.NEIGHBOUR]
    error = {kind: np.mean([curve(labels, kind, seed) for seed in seeds], 0) for kind in kinds}
    counts = np.arange(FIRST, MOST + 1, BATCH)
    hundred = float(error[Acquisition.RANDOM][counts == 100][0])
    lines = [claim.at_most(f"{labels.name}: squared error with 100 random labels", hundred, 0.190)]
    for kind in kinds[1:]:
        saved = [saving(counts, error[Acquisition.RANDOM], error[kind], at) for at in range(80, MOST + 1, 20)]
        told, spread = f"{labels.name}: share of labels saved by {kind}", (min(saved), max(saved))
        mean = float(np.mean(saved))
        bar = 0.25 if kind is Acquisition.REDUCTION else None
        lines.append(claim.Claim(told, mean, bar, bar is None or mean >= bar, spread))
    return lines


def saving(counts: Ints, random_C: Floats, active_C: Floats, at: int) -> float:
    """Share of `at` random labels that a choice does without, at equal error; curves are made monotone."""
    goal = np.minimum.accumulate(random_C)[counts == at][0]
    falling_C = np.minimum.accumulate(active_C)
    return float(1 - np.interp(-goal, -falling_C, counts) / at)


def main() -> None:
    """Measure all lines."""
    options = claim.arguments(__doc__)
    torch.set_num_threads(1)
    if not Path(FOLDER).exists():
        raise SystemExit(f"the published labels are not at {FOLDER}")
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    parts = [
        line
        for labels in (resnet20(), resnet18(), mobilenetv2())
        for line in accuracy_lines(labels, seeds, options.quick)
    ]
    many = range(options.seed, options.seed + (2 if options.quick else CURVES))
    parts += efficiency_lines(resnet20(), many, options.quick)
    claim.finish("predictor", claim.together("accuracies of policies nobody measured", parts), options)


if __name__ == "__main__":
    main()
