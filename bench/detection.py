"""A blood-cell detector before and after compression to two fifths of its work, beside uniform policies.

    python bench/detection.py [--quick]

BCCD: 205 images for training, 87 for choosing, 72 for the figures, resized to 128 x 128. The detector is
trained from nothing; "before" is the reference trained on for as long as what was compressed, so that
neither has seen more images. Budget: two fifths of the BOPs that the detector has at 8 x 8 bits with all
its channels, which is a fortieth of those at 32 x 32. Losses of precision are means over seeds, with a
bootstrap over test images in which every method is judged on the same images. A quick run has one seed, few
labels and little training.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import claim
import numpy as np
import torch

from plait.compression.complexity import Products, at_levels, bops
from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.graph import CutConfig
from plait.compression.optimiser import Budget
from plait.compression.search import Search, SearchConfig
from plait.compression.space import Floats, Ints
from plait.compression.tasks.average_precision import Found, mean_average_precision
from plait.compression.tasks.detection import HEADS, Detection, Finder, fit
from plait.compression.tasks.detector import DetectorConfig, detections
from plait.compression.tasks.images import floats
from plait.compression.tasks.train import TrainConfig

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "detection" / "BCCD"
RUNS = ROOT / "runs" / "detection"
CLASSES = ("RBC", "WBC", "Platelets")
SHARE = 0.4


@dataclass(frozen=True)
class Study:
    """The task, its reference and its budget."""

    task: Detection
    finder: Finder
    cost: Products
    budget: Budget
    labels: int
    resamples: int
    """Of the bootstrap."""
    evaluator: Evaluator
    """Measures in two processes, or reads what was measured."""


def study(quick: bool) -> Study:
    """Train or read the reference, set the budget."""
    rough = TrainConfig(images=960, rate=0.02, batch=16, clip=5.0)
    task = Detection(
        data=DATA,
        classes=CLASSES,
        reference=RUNS / f"reference-{'quick' if quick else 'whole'}.safetensors",
        detector=DetectorConfig(pixels=96 if quick else 128, width=16 if quick else 32),
        cut=CutConfig(bits=(3.0, 4.0, 6.0, 8.0), answers=HEADS),
        pretraining=rough if quick else replace(rough, images=16_000),
        short=TrainConfig(images=96 if quick else 640, rate=0.005, batch=16, clip=5.0),
        full=TrainConfig(images=192 if quick else 6_400, rate=0.01, batch=16, clip=5.0),
    )
    torch.set_num_threads(2)
    task.pretrain()
    finder = task.open()
    cost = bops(finder.network.space, finder.network.layers)
    whole = sum(layer.macs for layer in finder.network.layers) / 1e9 * 8 * 8
    labels = Labels(RUNS / f"{task.protocol}.jsonl")
    evaluator = Evaluator(task, finder.network.space.digest, labels, EvaluatorConfig(processes=2))
    sizes = (12, 40) if quick else (50, 200)
    return Study(task, finder, cost, Budget(cost, SHARE * whole), *sizes, evaluator)


def found_by(known: Study, seed: int) -> Ints:
    """The policy that this project's search chooses."""
    told = SearchConfig(labels=known.labels, first=max(8, known.labels // 3), batch=6, finalists=3, seed=seed)
    search = Search(known.finder.network.space, known.evaluator, told)
    chosen = search.choose(search.learn([known.budget]), [known.budget])
    return known.finder.network.space.encode(chosen.policy)


def best_uniform(known: Study, seed: int) -> Ints:
    """The best measured of the six uniform policies that use most of the budget."""
    space = known.finder.network.space
    used_N = at_levels(known.cost, space, space.uniform())
    order_N = np.argsort(np.where(used_N <= known.budget.limit, -used_N, np.inf))[:6]
    fits_ND = space.uniform()[order_N[used_N[order_N] <= known.budget.limit]]
    policies = [space.decode(index_D) for index_D in fits_ND]
    labels = known.evaluator.measure(policies, Fidelity.L1, seed)
    return fits_ND[int(np.argmax([label.metric["score"] for label in labels]))]


def trained_on(known: Study, seed: int) -> torch.nn.Module:
    """The reference, trained for as long as what is compressed."""
    module = Finder(known.task).reference
    fit(module, known.finder.train_images, known.task.full, seed)
    return module


def test_boxes(known: Study, module: torch.nn.Module) -> list[Found]:
    """What is found in the test images."""
    with torch.no_grad():
        parts = [module(floats(part)) for part in known.finder.test.pixels_NCHW.split(32)]
    return detections(torch.cat(parts), module.anchor_A4)


def precision(known: Study, found: list[Found], chosen: Ints) -> float:
    """mAP@0.5 in percent on some of the test images."""
    truth = [known.finder.test.truth[n] for n in chosen]
    return 100 * mean_average_precision([found[n] for n in chosen], truth, len(CLASSES))


def losses(known: Study, before: list[Found], after: list[Found], seed: int) -> Floats:
    """Points lost on the test images, then on resamples of them."""
    count = len(known.finder.test.truth)
    rng = np.random.default_rng(seed)
    draws = [np.arange(count), *rng.integers(0, count, (known.resamples, count))]
    return np.array([precision(known, before, draw) - precision(known, after, draw) for draw in draws])


def lines(known: Study, seeds: range) -> list[claim.Claim]:
    """All lines."""
    every = np.arange(len(known.finder.test.truth))
    before, ours, uniform = [], [], []
    for seed in seeds:
        space = known.finder.network.space
        policies = [found_by(known, seed), best_uniform(known, seed)]
        built = [known.finder.build(space.decode(index_D), Fidelity.L2, seed) for index_D in policies]
        before.append(test_boxes(known, trained_on(known, seed)))
        ours.append(test_boxes(known, built[0]))
        uniform.append(test_boxes(known, built[1]))
        points = [round(precision(known, boxes[-1], every), 2) for boxes in (before, ours, uniform)]
        print(f"seed {seed}: before, found, uniform {points}", flush=True)
    lost_SR = np.array([losses(known, b, o, 0) for b, o in zip(before, ours, strict=True)])
    beyond_SR = np.array([losses(known, o, u, 0) for o, u in zip(ours, uniform, strict=True)])
    was = [precision(known, found, every) for found in before]
    bars = (float("inf"), -float("inf")) if known.resamples < 200 else (2.0, 0.0)  # a quick run only shows
    return [
        claim.reported("mAP@0.5 before, percent", float(np.mean(was)), (min(was), max(was))),
        with_interval("points of mAP@0.5 lost", lost_SR, most=bars[0]),
        with_interval("points above uniform at equal BOPs", beyond_SR, least=bars[1]),
    ]


def with_interval(
    name: str, value_SR: Floats, most: float = float("inf"), least: float = -float("inf")
) -> claim.Claim:
    """A mean over seeds, with the 90 % interval of the bootstrap's means."""
    mean_R = value_SR.mean(0)
    low, high = np.quantile(mean_R[1:], [0.05, 0.95]).tolist()
    value = float(mean_R[0])
    bar = most if np.isfinite(most) else least
    if not np.isfinite(bar):
        return claim.reported(name, value, (low, high))
    return claim.Claim(name, value, bar, least <= value <= most, (low, high))


def main() -> None:
    """Measure all lines."""
    options = claim.arguments(__doc__)
    if not DATA.exists():
        raise SystemExit(f"the images are not at {DATA}")
    parts = lines(study(options.quick), range(options.seed, options.seed + (1 if options.quick else 3)))
    claim.finish("detection", claim.together("a detector at two fifths of its work", parts), options)


if __name__ == "__main__":
    main()
