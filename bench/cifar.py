"""Policies found, trained and measured for real on CIFAR-10-JPEG, beside uniform, random and HAQ-style ones.

    python bench/cifar.py [--quick]

Reduced protocol, for two CPU cores: images averaged to 16 x 16 pixels, 10,000 for training, 2,000 for
choosing (validation), 2,000 for the final figures (test, seen by no search). The reference is trained once;
a label is a short training (L1) of the pruned and quantised network from the reference's weights, with the
reference as teacher. All methods have the same labels' worth of training and the same last training (L2) of
what they chose. A quick run has fewer images, labels and seeds, ResNet-20 of half width alone, and is for
seeing that all works. Labels and references are kept in runs/cifar, so that a run that was interrupted goes
on.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import claim
import numpy as np
import torch

from plait.compression.agreement import kendall_tau
from plait.compression.baselines import random_near
from plait.compression.complexity import Products, at_levels, bops
from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.graph import CutConfig
from plait.compression.optimiser import Budget
from plait.compression.predictor import NINETY
from plait.compression.reinforce import ReinforceConfig, reinforce
from plait.compression.search import Chosen, Search, SearchConfig
from plait.compression.space import Floats, Ints, Space
from plait.compression.stored import save
from plait.compression.tasks.classification import Classification, Classifier
from plait.compression.tasks.images import floats
from plait.compression.tasks.networks import NetworkConfig, logits
from plait.compression.tasks.train import TrainConfig, evaluate

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "cifar10"
RUNS = ROOT / "runs" / "cifar"
BITS = (2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    labels: int
    """Measurements of each method."""
    held_out: int
    """Measured policies that no predictor learns from."""
    seeds: int
    judged: bool
    """Against the bars; a quick run shows that all works, its networks have hardly learnt anything."""
    share: float = 0.01
    """Budget: BOPs as a share of the reference's at 32 x 32 bits."""


@dataclass(frozen=True)
class Study:
    """One network: its task, and everything that was measured of it."""

    task: Classification
    classifier: Classifier
    cost: Products
    budget: Budget
    scale: Scale
    evaluator: Evaluator
    """Measures in two processes, or reads what was measured."""

    @property
    def space(self) -> Space:
        """Policies of the network."""
        return self.classifier.network.space


def tasks(quick: bool) -> list[Classification]:
    """The networks and their protocols."""
    rough = TrainConfig(images=24_000, rate=0.1), TrainConfig(images=1_024, rate=0.02, teach=0.5)
    whole = TrainConfig(images=250_000, rate=0.1), TrainConfig(images=5_120, rate=0.02, teach=0.5)
    first, short = rough if quick else whole
    small = Classification(
        train_data=DATA / "train.parquet",
        test_data=DATA / "test.parquet",
        reference=RUNS / f"resnet20-{'quick' if quick else 'whole'}.safetensors",
        network=NetworkConfig("resnet20", pixels=16, width=0.5 if quick else 1.0),
        cut=CutConfig(bits=BITS, multiple=4 if quick else 8),
        train_images=2_000 if quick else 10_000,
        validation_images=1_000 if quick else 2_000,
        test_images=1_000 if quick else 2_000,
        pretraining=first,
        short=short,
        full=replace(short, images=2 * short.images if quick else 50_000),
        cache=RUNS,
    )
    mobile = replace(
        small,
        reference=RUNS / "mobilenetv2-whole.safetensors",
        network=NetworkConfig("mobilenetv2", pixels=16, width=0.5),
    )
    return [small] if quick else [small, mobile]


def study(task: Classification, scale: Scale) -> Study:
    """Train or read the reference, trace it, set the budget."""
    torch.set_num_threads(2)
    task.pretrain()
    classifier = task.open()
    network = classifier.network
    cost = bops(network.space, network.layers)
    whole = sum(layer.macs for layer in network.layers) / 1e9 * 32 * 32
    labels = Labels(RUNS / f"{task.network.name}-{task.protocol}.jsonl")
    evaluator = Evaluator(task, network.space.digest, labels, EvaluatorConfig(processes=2))
    return Study(task, classifier, cost, Budget(cost, scale.share * whole), scale, evaluator)


def searched(known: Study, seed: int) -> tuple[Search, Chosen, float]:
    """The search of this project, its choice and its seconds."""
    labels = known.scale.labels
    config = SearchConfig(labels=labels, first=max(8, labels // 3), batch=max(4, labels // 8), seed=seed)
    search = Search(known.space, known.evaluator, config)
    begin = time.perf_counter()
    chosen = search.choose(search.learn([known.budget]), [known.budget])
    return search, chosen, time.perf_counter() - begin


def measured(known: Study, index_ND: Ints, seed: int, fidelity: Fidelity = Fidelity.L1) -> Floats:
    """Validation accuracies, percent."""
    policies = [known.space.decode(index_D) for index_D in index_ND]
    found = known.evaluator.measure(policies, fidelity, seed)
    return np.array([label.metric["score"] for label in found])


def at_random(known: Study, seed: int) -> Ints:
    """The best of as many measured policies as the search measures, drawn near the budget."""
    rng = np.random.default_rng(1000 + seed)
    index_ND = random_near(known.space, [known.budget], known.scale.labels, rng)
    return index_ND[measured(known, index_ND, seed).argmax()]


def by_haq(known: Study, seed: int) -> list[tuple[Ints, float]]:
    """HAQ-style search with as many episodes as the search has labels."""
    layers = {layer.name: layer for layer in known.classifier.network.layers}
    kinds = sorted({gene.knob for gene in known.space.genes})
    traits = []
    for number, gene in enumerate(known.space.genes):
        layer = layers[gene.slots[0].unit]
        one = [float(gene.knob is kind) for kind in kinds]
        sizes = [layer.channels, layer.macs, layer.weights, layer.inputs, layer.outputs]
        traits.append([*one, number, float(layer.depthwise), *np.log(sizes)])
    told = ReinforceConfig(episodes=known.scale.labels, warmup=known.scale.labels // 4)

    def measure(index_D: Ints) -> float:
        return float(measured(known, index_D[None], seed)[0])

    return reinforce(known.space, measure, [known.budget], np.array(traits), told, seed)


def best_uniform(known: Study, seed: int) -> Ints:
    """The best measured of the eight uniform policies that use most of the budget."""
    policies_ND = known.space.uniform()
    used_N = at_levels(known.cost, known.space, policies_ND)
    order_N = np.argsort(np.where(used_N <= known.budget.limit, -used_N, np.inf))[:8]
    fits_ND = policies_ND[order_N[used_N[order_N] <= known.budget.limit]]
    return fits_ND[measured(known, fits_ND, seed).argmax()]


def final(known: Study, index_D: Ints, seed: int) -> float:
    """Test accuracy, percent, after the last training."""
    module = known.classifier.build(known.space.decode(index_D), Fidelity.L2, seed)
    return 100 * evaluate(module, known.classifier.test)[0]


@dataclass(frozen=True)
class Round:
    """One seed's figures, in percent."""

    ours: float
    uniform: float
    random: float
    haq: float
    off: float
    """Predicted less measured, of the policy that was chosen."""
    seconds: float
    labels: int
    """Measurements until the search had what HAQ-style search had in the end."""
    haq_labels: int


def one_round(known: Study, seed: int) -> tuple[Round, Search]:
    """All methods with one seed."""
    search, chosen, seconds = searched(known, seed)
    episodes = by_haq(known, seed)
    best_haq, haq_score = max(episodes, key=lambda episode: episode[1])
    fits_N = at_levels(known.cost, known.space, search.index_ND) <= known.budget.limit
    as_good = (fits_N & (search.score_N >= haq_score)).nonzero()[0]
    print(
        f"{known.task.network.name} seed {seed}: measured {chosen.measured:.2f}, HAQ {haq_score:.2f}",
        flush=True,
    )
    found = Round(
        ours=final(known, known.space.encode(chosen.policy), seed),
        uniform=final(known, best_uniform(known, seed), seed),
        random=final(known, at_random(known, seed), seed),
        haq=final(known, best_haq, seed),
        off=chosen.predicted - chosen.measured,
        seconds=seconds,
        labels=int(as_good[0]) + 1 if len(as_good) else len(search.score_N) + 1,
        haq_labels=1 + max(range(len(episodes)), key=lambda n: episodes[n][1]),
    )
    return found, search


def honesty(known: Study, search: Search) -> tuple[float, float, float]:
    """On policies held out: the mean absolute error of predictions, the share within 90 % intervals, and how
    far labels without training (L0) agree with those after a short one (Kendall's tau)."""
    rng = np.random.default_rng(77)
    half = known.scale.held_out // 2
    near_ND = random_near(known.space, [Budget(known.cost, known.budget.limit * 1.3)], half, rng)
    wide_ND = random_near(known.space, [known.budget], known.scale.held_out - half, rng)
    index_ND = np.concatenate([near_ND, wide_ND])
    mean_N, std_N = search.predictor().predict(known.space.z_of(index_ND))
    seed = search.config.seed
    label_N = measured(known, index_ND, seed)
    off_N = mean_N - label_N
    tau = kendall_tau(measured(known, index_ND, seed, Fidelity.L0), label_N)
    return float(np.abs(off_N).mean()), float((np.abs(off_N) <= NINETY * std_N).mean()), tau


def size_and_speed(known: Study, chosen: Ints) -> list[claim.Claim]:
    """File and latency of the network that was really cut, beside the reference's."""
    name = known.task.network.name
    module = known.classifier.build(known.space.decode(chosen), Fidelity.L0, 0)
    with tempfile.TemporaryDirectory() as folder:
        stored = save(module, Path(folder) / "network.safetensors")
    share = stored / known.task.reference.stat().st_size
    for part in list(module.named_modules()):
        if hasattr(part[1], "layer"):  # latency of what was cut, in floats: odd bits have no kernels
            parent, _, own = part[0].rpartition(".")
            setattr(module.get_submodule(parent), own, part[1].layer)
    ratio = latency_s(known.classifier.reference, known) / latency_s(module, known)
    return [
        claim.reported(f"{name}: file over the reference's", share, (share, share)),
        claim.reported(f"{name}: times as fast as the reference, in floats", ratio, (ratio, ratio)),
    ]


def latency_s(module: torch.nn.Module, known: Study) -> float:
    """Median seconds of 32 images."""
    batch = floats(known.classifier.validation.pixels_NCHW[:32])
    taken = []
    with torch.inference_mode():
        for _ in range(20):
            begin = time.perf_counter()
            logits(module, batch)
            taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def lines(known: Study) -> list[claim.Claim]:
    """All lines of one network."""
    rounds = [one_round(known, seed) for seed in range(known.scale.seeds)]
    name = f"{known.task.network.name}:"
    off, covered, tau = honesty(known, rounds[0][1])
    best = rounds[0][1]
    fits_N = at_levels(known.cost, known.space, best.index_ND) <= known.budget.limit
    top_D = best.index_ND[np.where(fits_N, best.score_N, -np.inf).argmax()]
    reference = 100 * evaluate(known.classifier.reference, known.classifier.test)[0]

    def told(what: str, values: list[float], least: float = -np.inf, most: float = np.inf) -> claim.Claim:
        mean, bar = float(np.mean(values)), least if np.isfinite(least) else most
        spread = (min(values), max(values))
        if not known.scale.judged or not np.isfinite(bar):
            return claim.reported(f"{name} {what}", mean, spread)
        return claim.Claim(f"{name} {what}", mean, bar, least <= mean <= most, spread)

    return [
        told("test accuracy of the reference", [reference]),
        told("test accuracy of what was found", [r.ours for r, _ in rounds]),
        told("points above uniform at equal BOPs", [r.ours - r.uniform for r, _ in rounds], least=1.0),
        told("points above the best of as many random", [r.ours - r.random for r, _ in rounds], least=0.0),
        told("points above HAQ-style search", [r.ours - r.haq for r, _ in rounds]),
        told("labels until HAQ's best was met", [float(r.labels) for r, _ in rounds]),
        told("episodes until HAQ had its best", [float(r.haq_labels) for r, _ in rounds]),
        told("seconds of the search", [r.seconds for r, _ in rounds]),
        told("share of held out within 90 % intervals", [covered], least=0.80, most=0.97),
        told("points between predicted and measured, held out", [off], most=0.7),
        told("Kendall's tau of labels without and with training", [tau]),
        *size_and_speed(known, top_D),
    ]


def main() -> None:
    """Measure all lines."""
    options = claim.arguments(__doc__)
    scale = Scale(16, 8, 1, judged=False) if options.quick else Scale(60, 40, 3, judged=True)
    if not DATA.exists():
        raise SystemExit(f"the images are not at {DATA}")
    parts = [line for task in tasks(options.quick) for line in lines(study(task, scale))]
    claim.finish("cifar", claim.together("policies trained and measured for real", parts), options)


if __name__ == "__main__":
    main()
