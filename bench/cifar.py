"""Policies found, trained and measured for real on CIFAR-10-JPEG, beside uniform, random and HAQ-style ones.

    python bench/cifar.py [--quick] [--network resnet20|mobilenetv2]

Reduced protocol, for two CPU cores: images averaged to 16 x 16 pixels, 45,000 for training, 5,000 for
choosing (validation), 10,000 for the final figures (test, seen by no search). The reference is trained once
and kept under a hash of all that it depends on. A label is a short training (L1) of the pruned and quantised
network from the reference's weights, with the reference as teacher, and its accuracy on the images for
choosing. All methods have the same number of labels and the same last training (L2) of what they chose.
HAQ-style search measures one policy after the other and is run for one seed.

The budget is what the uniform policy named in `Scale` costs, nothing pruned: uniform policies use all of it.
Held-out policies are those of the random side, which no predictor learns from; how noisy labels are is
measured by training some of them with another seed. What is promised is judged on them, and reported for
the finalists, policies that a search takes for best, as it predicted them before they were measured.

Labels, last trainings and references are kept in runs/cifar. A run that is interrupted goes on where it was:
it may be made in pieces. A quick run has fewer images, labels and seeds and a network of half width; it shows
that all works.
"""

import argparse
import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
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
from plait.compression.quantisers import in_floats
from plait.compression.reinforce import ReinforceConfig, reinforce
from plait.compression.search import Chosen, Search, SearchConfig
from plait.compression.space import Floats, Ints, Space
from plait.compression.stored import save
from plait.compression.tasks.classification import Classification, Classifier
from plait.compression.tasks.images import floats
from plait.compression.tasks.networks import NetworkConfig, logits
from plait.compression.tasks.train import TrainConfig, evaluate
from plait.spec.policy import Knob

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "cifar10"
RUNS = ROOT / "runs" / "cifar"
BITS = (2.0, 3.0, 4.0, 6.0, 8.0)
NOISE = 6
"""Policies that are measured with two seeds."""


@dataclass(frozen=True)
class Scale:
    """How much is done; images are those that a training sees, repeats counted."""

    width: float
    multiple: int
    """Channels kept are a multiple of this."""
    reference: int
    """Images of the reference's training."""
    label: int
    """Images of a label's."""
    last: int
    """Images of the last training."""
    labels: int
    """Measurements of each method."""
    bits: tuple[float, float]
    """Budget: BOPs of this uniform policy, bits of weights and of activations."""
    seeds: int = 3
    judged: bool = True
    """Against the bars; a quick run shows that all works, its networks have hardly learnt anything."""

    def quick(self) -> "Scale":
        """Of the same kind, and small."""
        small = replace(self, width=self.width / 2, reference=16_000, label=1_024, last=2_048)
        return replace(small, labels=12, seeds=1, judged=False)


SCALES = {
    "resnet20": Scale(1.0, 4, 1_350_000, 10_240, 90_000, labels=36, bits=(3.0, 2.0)),
    "mobilenetv2": Scale(0.35, 8, 900_000, 5_120, 45_000, labels=36, bits=(4.0, 3.0)),
}
"""For an hour on two cores each."""


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


def protocol(name: str, scale: Scale) -> Classification:
    """A network, its data and its trainings; the reference's file is named by what it depends on."""
    few = {} if scale.judged else {"train_images": 2_000, "validation_images": 1_000, "test_images": 1_000}
    whole = Classification(
        train_data=DATA / "train.parquet",
        test_data=DATA / "test.parquet",
        reference=RUNS,
        network=NetworkConfig(name, pixels=16, width=scale.width),
        cut=CutConfig(bits=BITS, multiple=scale.multiple),
        pretraining=TrainConfig(images=scale.reference, rate=0.1),
        short=TrainConfig(images=scale.label, rate=0.02, teach=0.5),
        full=TrainConfig(images=scale.last, rate=0.02, teach=0.5),
        cache=RUNS,
        **few,
    )
    depends = [asdict(whole.network), asdict(whole.pretraining), whole.train_images, whole.seed]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
    return replace(whole, reference=RUNS / f"{name}-{digest}.safetensors")


def study(task: Classification, scale: Scale) -> Study:
    """Train or read the reference, trace it, set the budget."""
    torch.set_num_threads(2)
    task.pretrain()
    classifier = task.open()
    network = classifier.network
    cost = bops(network.space, network.layers)
    wanted = {Knob.PRUNE: 0.0, Knob.WEIGHT_BITS: scale.bits[0], Knob.ACT_BITS: scale.bits[1]}
    uniform_D = np.array([gene.levels.index(wanted[gene.knob]) for gene in network.space.genes])
    limit = float(at_levels(cost, network.space, uniform_D)[0])
    labels = Labels(RUNS / f"{task.network.name}-{task.protocol}.jsonl")
    evaluator = Evaluator(task, network.space.digest, labels, EvaluatorConfig(processes=2))
    # A hair more than the policy costs, for the last digit of a sum.
    return Study(task, classifier, cost, Budget(cost, limit * (1 + 1e-9)), scale, evaluator)


def searched(known: Study, seed: int) -> tuple[Search, Chosen, Floats, float]:
    """The search of this project, its choice, how far it was wrong about each finalist before that was
    measured (predicted less measured, points), and its seconds."""
    labels = known.scale.labels
    config = SearchConfig(labels=labels, first=max(8, labels // 3), batch=max(4, labels // 8), seed=seed)
    search = Search(known.space, known.evaluator, config)
    begin = time.perf_counter()
    predictor = search.learn([known.budget])
    learnt = len(search.index_ND)
    chosen = search.choose(predictor, [known.budget])
    seconds = time.perf_counter() - begin
    promised_N, _ = predictor.predict(known.space.z_of(search.index_ND[learnt:]))
    return search, chosen, promised_N - search.score_N[learnt:], seconds


def measured(known: Study, index_ND: Ints, seed: int, fidelity: Fidelity = Fidelity.L1) -> Floats:
    """Validation accuracies, percent."""
    return metric(known, index_ND, seed, fidelity, "score")


def metric(known: Study, index_ND: Ints, seed: int, fidelity: Fidelity, name: str) -> Floats:
    """A metric of some policies."""
    policies = [known.space.decode(index_D) for index_D in index_ND]
    return np.array([x.metric[name] for x in known.evaluator.measure(policies, fidelity, seed)])


def drawn(known: Study, seed: int) -> Ints:
    """As many random policies near the budget as the search measures."""
    rng = np.random.default_rng(1000 + seed)
    return random_near(known.space, [known.budget], known.scale.labels, rng)


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


@dataclass(frozen=True)
class Round:
    """One seed: policies that methods chose, and what else was seen."""

    search: Search
    ours: Ints
    uniform: Ints
    random: Ints
    tests: Floats
    """Test accuracies of these three after the last training, percent."""
    off: Floats
    """Predicted less measured, of the finalists."""
    seconds: float


def one_round(known: Study, seed: int) -> Round:
    """Our search and its two comparisons with one seed."""
    search, chosen, off, seconds = searched(known, seed)
    random_ND = drawn(known, seed)
    ours_D = known.space.encode(chosen.policy)
    random_D = random_ND[measured(known, random_ND, seed).argmax()]
    best = [ours_D, best_uniform(known, seed), random_D]
    tests = metric(known, np.stack(best), seed, Fidelity.L2, "test")
    print(
        f"{known.task.network.name} seed {seed}: chosen {chosen.measured:.2f}, finalists promised above that "
        f"by {np.round(off, 2).tolist()}; test of ours, uniform, random {np.round(tests, 2).tolist()}",
        flush=True,
    )
    return Round(search, *best, tests, off, seconds)


def against_haq(known: Study, first: Round) -> dict[str, float]:
    """HAQ-style search with the first seed: figures by what they are."""
    episodes = by_haq(known, 0)
    best_D, score = max(episodes, key=lambda episode: episode[1])
    search = first.search
    fits_N = at_levels(known.cost, known.space, search.index_ND) <= known.budget.limit
    as_good = (fits_N & (search.score_N >= score)).nonzero()[0]
    test = metric(known, best_D[None], 0, Fidelity.L2, "test")[0]
    return {
        "points above HAQ-style search": float(first.tests[0] - test),
        "labels until HAQ's best was met": float(as_good[0] + 1 if len(as_good) else len(search.score_N) + 1),
        "episodes until HAQ had its best": float(1 + max(range(len(episodes)), key=lambda n: episodes[n][1])),
    }


@dataclass(frozen=True)
class Honesty:
    """Predictions beside labels that no predictor learnt from."""

    off: float
    """Mean absolute error, points."""
    covered: float
    """Share of labels within 90 % intervals."""
    tau: float
    """Kendall's, of labels without training (L0) and with."""
    noise: float
    """Standard deviation of a label over seeds of its training, points."""


def honesty(known: Study, rounds: list[Round]) -> Honesty:
    """On the random policies of all seeds."""
    off, inside = [], []
    for seed, each in enumerate(rounds):
        index_ND = drawn(known, seed)
        mean_N, std_N = each.search.predictor().predict(known.space.z_of(index_ND))
        off_N = np.abs(mean_N - measured(known, index_ND, seed))
        off.append(off_N)
        inside.append(off_N <= NINETY * std_N)
    first_ND = drawn(known, 0)
    tau = kendall_tau(measured(known, first_ND, 0, Fidelity.L0), measured(known, first_ND, 0))
    twice_SN = np.stack([measured(known, first_ND[:NOISE], seed) for seed in (0, 100)])
    noise = float(np.sqrt(np.mean(np.diff(twice_SN, axis=0) ** 2) / 2))
    return Honesty(float(np.concatenate(off).mean()), float(np.concatenate(inside).mean()), tau, noise)


def size_and_speed(known: Study, chosen: Ints) -> list[claim.Claim]:
    """File and latency of the network that was really cut, beside the reference's."""
    name = known.task.network.name
    module = known.classifier.build(known.space.decode(chosen), Fidelity.L0, 0)
    with tempfile.TemporaryDirectory() as folder:
        stored = save(module, Path(folder) / "network.safetensors")
    share = stored / known.task.reference.stat().st_size
    # In floats: odd bits have no kernels.
    ratio = latency_s(known.classifier.reference, known) / latency_s(in_floats(module), known)
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
    honest, haq = honesty(known, rounds), against_haq(known, rounds[0])
    reference = 100 * evaluate(known.classifier.reference, known.classifier.test)[0]
    test_S3 = np.stack([each.tests for each in rounds])
    off = float(np.abs(np.concatenate([each.off for each in rounds])).mean())

    def told(what: str, values: list[float], least: float = -np.inf, most: float = np.inf) -> claim.Claim:
        mean, bar = float(np.mean(values)), least if np.isfinite(least) else most
        spread = (min(values), max(values))
        if not known.scale.judged or not np.isfinite(bar):
            return claim.reported(f"{name} {what}", mean, spread)
        return claim.Claim(f"{name} {what}", mean, bar, least <= mean <= most, spread)

    beyond_uniform, beyond_random = (test_S3[:, 0] - test_S3[:, n] for n in (1, 2))
    return [
        told("test accuracy of the reference", [reference]),
        told("test accuracy of what was found", test_S3[:, 0].tolist()),
        told("points above uniform at equal BOPs", beyond_uniform.tolist(), least=1.0),
        told("points above the best of as many random", beyond_random.tolist(), least=0.0),
        *(told(what, [value]) for what, value in haq.items()),
        told("seconds of the search, labels read where they were known", [r.seconds for r in rounds]),
        told("points between predicted and measured, finalists", [off]),
        told("share of held out within 90 % intervals", [honest.covered], least=0.80, most=0.97),
        told("points between predicted and measured, held out", [honest.off], most=0.7),
        told("points by which labels differ between seeds (deviation)", [honest.noise]),
        told("Kendall's tau of labels without and with training", [honest.tau]),
        *size_and_speed(known, rounds[0].ours),
    ]


def main() -> None:
    """Measure all lines of one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller sample of the same work")
    parser.add_argument("--network", choices=SCALES, default="resnet20")
    parser.add_argument("--seed", type=int, choices=[0], default=0, help="all seeds are part of a run")
    options = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"the images are not at {DATA}")
    scale = SCALES[options.network]
    scale = scale.quick() if options.quick else scale
    parts = lines(study(protocol(options.network, scale), scale))
    claim.finish(f"cifar_{options.network}", claim.together("policies trained and measured", parts), options)


if __name__ == "__main__":
    main()
