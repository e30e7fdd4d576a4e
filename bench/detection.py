"""A blood-cell detector before and after compression to two fifths of its work, beside uniform policies.

    python bench/detection.py [--quick]

BCCD: 205 images for training, 87 for choosing, 72 for the figures, resized to 128 x 128. The detector is
trained from nothing, and kept under a hash of all that it depends on; "before" is that one trained on for as
long as what was compressed, so that neither has seen more images. Budget: two fifths of the BOPs that the
detector has at 8 x 8 bits with all its channels, which is a fortieth of those at 32 x 32. Labels are losses
on the images for choosing, less noisy than precision; how noisy is measured by training some policies with
another seed. Losses of precision are means over seeds, with a bootstrap over test images in which every
method is judged on the same images.

Labels and what trained detectors find are kept in runs/detection: an interrupted run goes on where it was. A
quick run has one seed, few labels and little training.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import claim
import numpy as np
import torch
from safetensors.torch import load_file, save_file

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
from plait.spec.policy import CompressionPolicy

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "detection" / "BCCD"
RUNS = ROOT / "runs" / "detection"
CLASSES = ("RBC", "WBC", "Platelets")
SHARE = 0.4
NOISE = 4
"""Policies that are measured with two seeds."""


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


def protocol(quick: bool) -> Detection:
    """The detector, its data and its trainings; the reference's file is named by what it depends on."""
    rough = TrainConfig(images=960, rate=0.02, batch=16, clip=5.0)
    made = Detection(
        data=DATA,
        classes=CLASSES,
        reference=RUNS,
        detector=DetectorConfig(pixels=96 if quick else 128, width=16 if quick else 32),
        cut=CutConfig(bits=(3.0, 4.0, 6.0, 8.0), answers=HEADS),
        pretraining=rough if quick else replace(rough, images=48_000),
        short=TrainConfig(images=96 if quick else 1_280, rate=0.005, batch=16, clip=5.0),
        full=TrainConfig(images=192 if quick else 12_800, rate=0.01, batch=16, clip=5.0),
    )
    told = json.dumps([asdict(made.detector), asdict(made.pretraining), made.seed], sort_keys=True)
    return replace(
        made, reference=RUNS / f"reference-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"
    )


def study(quick: bool) -> Study:
    """Train or read the reference, set the budget."""
    task = protocol(quick)
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


def scores(known: Study, index_ND: Ints, seed: int) -> Floats:
    """Losses of policies with their signs changed."""
    policies = [known.finder.network.space.decode(index_D) for index_D in index_ND]
    labels = known.evaluator.measure(policies, Fidelity.L1, seed)
    return np.array([label.metric["score"] for label in labels])


def uniforms(known: Study) -> Ints:
    """The six uniform policies that use most of the budget."""
    space = known.finder.network.space
    used_N = at_levels(known.cost, space, space.uniform())
    order_N = np.argsort(np.where(used_N <= known.budget.limit, -used_N, np.inf))[:6]
    return space.uniform()[order_N[used_N[order_N] <= known.budget.limit]]


def noise(known: Study) -> float:
    """Deviation of a label over seeds of its training, as a share of that between the policies."""
    index_ND = uniforms(known)[:NOISE]
    twice_SN = np.stack([scores(known, index_ND, seed) for seed in (0, 100)])
    return float(np.sqrt(np.mean(np.diff(twice_SN, axis=0) ** 2) / 2) / twice_SN.mean(0).std())


@dataclass(frozen=True)
class Job:
    """A last training."""

    task: Detection
    policy: str | None
    """As JSON; None: nothing is compressed, the reference is trained on."""
    seed: int

    @property
    def kept(self) -> Path:
        """Where what it finds in the test images is kept."""
        told = f"{self.task.protocol} {self.policy} {self.seed}"
        return RUNS / f"found-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"


@lru_cache(maxsize=1)
def opened(task: Detection) -> Finder:
    """Once in each process."""
    os.nice(10)
    return task.open()


def trained(job: Job) -> None:
    """Train and keep what is found in the test images, unless that is there."""
    if job.kept.exists():
        return
    finder = opened(job.task)
    if job.policy is None:
        module = Finder(job.task).reference
        fit(module, finder.train_images, job.task.full, job.seed)
    else:
        module = finder.build(CompressionPolicy.parse(job.policy), Fidelity.L2, job.seed)
    with torch.no_grad():
        parts = [module.eval()(floats(part)) for part in finder.test.pixels_NCHW.split(32)]
    tensors = {}
    for number, each in enumerate(detections(torch.cat(parts), module.anchor_A4)):
        told = {"box": each.box_N4, "class": each.class_N, "score": each.score_N}
        tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in told.items()}
    partial = job.kept.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(job.kept)


def test_boxes(job: Job, count: int) -> list[Found]:
    """What a trained detector found in the test images."""
    kept = load_file(job.kept)
    return [Found(*(kept[f"{n}.{name}"] for name in ("box", "class", "score"))) for n in range(count)]


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


def jobs(known: Study, seeds: Sequence[int]) -> list[tuple[Job, Job, Job]]:
    """For each seed the last trainings of the reference, of what was found and of the best uniform policy."""
    space, found = known.finder.network.space, []
    for seed in seeds:
        uniform_ND = uniforms(known)
        chosen = (found_by(known, seed), uniform_ND[int(scores(known, uniform_ND, seed).argmax())])
        told = [None, *(space.decode(index_D).json() for index_D in chosen)]
        found.append(tuple(Job(known.task, policy, seed) for policy in told))
    return found


def lines(known: Study, seeds: Sequence[int]) -> list[claim.Claim]:
    """All lines."""
    every = np.arange(len(known.finder.test.truth))
    planned = jobs(known, seeds)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(trained, [job for three in planned for job in three]))
    before, ours, uniform = ([test_boxes(three[n], len(every)) for three in planned] for n in range(3))
    for seed, three in zip(seeds, zip(before, ours, uniform, strict=True), strict=True):
        points = [round(precision(known, boxes, every), 2) for boxes in three]
        print(f"seed {seed}: before, found, uniform {points}", flush=True)
    lost_SR = np.array([losses(known, b, o, 0) for b, o in zip(before, ours, strict=True)])
    beyond_SR = np.array([losses(known, o, u, 0) for o, u in zip(ours, uniform, strict=True)])
    was = [precision(known, found, every) for found in before]
    bars = (float("inf"), -float("inf")) if known.resamples < 200 else (2.0, 0.0)  # a quick run only shows
    rough = noise(known)
    return [
        claim.reported("mAP@0.5 before, percent", float(np.mean(was)), (min(was), max(was))),
        with_interval("points of mAP@0.5 lost", lost_SR, most=bars[0]),
        with_interval("points above uniform at equal BOPs", beyond_SR, least=bars[1]),
        claim.reported("deviation of labels between seeds over that between policies", rough, (rough, rough)),
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
