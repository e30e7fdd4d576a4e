"""`compress_network`: an image classifier, searched, trained and written, for `plait compress`."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from plait.compression.complexity import Cost, LayerTime, at_levels, bops, macs, weight_bytes
from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.export_onnx import write_onnx
from plait.compression.graph import Network
from plait.compression.latency import Latency, file_ns, measure_latency
from plait.compression.optimiser import Budget
from plait.compression.predictor import NINETY
from plait.compression.search import Chosen, Search, SearchConfig, rung
from plait.compression.space import Space
from plait.compression.stored import save
from plait.compression.targets import TARGETS, restrict
from plait.compression.tasks.classification import Classification
from plait.compression.tasks.networks import logits, make
from plait.compression.tasks.train import evaluate
from plait.spec.errors import UserError

log = logging.getLogger(__name__)

COSTS = {"bops": bops, "macs": macs, "size": weight_bytes}
"""Budgets by name; each is a share of what the network has at 32 bits with all its channels."""
LATENCY = "latency"
"""One more: milliseconds of one image in onnxruntime on this machine, on one thread."""
FRONT = 8
"""Points of the front in the report."""


@dataclass(frozen=True)
class CompressConfig:
    """What `plait compress` was told of an image classifier."""

    task: Classification
    out: Path
    """Folder for the labels, the best policy so far and the network in the end."""
    budgets: tuple[tuple[str, float], ...]
    """Names of `COSTS` and shares between 0 and 1, or `LATENCY` and milliseconds."""
    target: str = "simulated"
    """One of `TARGETS`."""
    search: SearchConfig = field(default_factory=SearchConfig)
    processes: int = 1
    """Measurements at a time."""


def compress_network(config: CompressConfig) -> dict[str, Any]:
    """Search, train and write; run again after an interruption, it goes on. Returns what report.json says.

    Raises:
        UserError: no policy meets a budget (names the nearest), an unknown name, data that cannot be read.
    """
    network, budgets, search = _opened(config, lambda so_far, within: _note(so_far, within, config.out))
    predictor = search.learn(budgets)
    chosen = search.choose(predictor, budgets)
    report = _report(config, network, budgets, search, chosen)
    (config.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def sweep_network(config: CompressConfig) -> dict[str, Any]:
    """The best measured policy for each of the budgets, which are taken one by one: rungs of one search,
    whose labels all learn from. Nothing is trained beyond labels. Returns what sweep.json says.

    Raises:
        UserError: as `compress_network`, or the budgets are not of one cost.
    """
    if len({name for name, _ in config.budgets}) != 1:
        raise UserError("a sweep has one cost: give several values of it, such as bops=0.1,0.05", "budget")
    _, budgets, search = _opened(config, lambda so_far, within: None)
    search.learn(*([budget] for budget in budgets))
    for budget in budgets:
        search.choose(search.predictor(), [budget])
    cost = budgets[0].cost
    asked = [value for _, value in config.budgets]
    report = {
        "model": config.task.network.name,
        "target": config.target,
        "cost": cost.name,
        "unit": cost.unit,
        "score": "validation accuracy, percent",
        "labels": len(search.score_N),
        "rows": [rung(value, budget, [search]) for value, budget in zip(asked, budgets, strict=True)],
        "front": _predicted(search, cost),
    }
    (config.out / "sweep.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _opened(
    config: CompressConfig, noted: Callable[[Search, Sequence[Budget]], None]
) -> tuple[Network, list[Budget], Search]:
    """The network with what its target can load, the budgets, and a search that has not begun."""
    if config.target not in TARGETS:
        raise UserError(f"no target is named {config.target}: choose one of {', '.join(TARGETS)}", "target")
    config.out.mkdir(parents=True, exist_ok=True)
    network = config.task.traced()
    network = replace(
        network, space=restrict(network.space.units, network.space.ties, TARGETS[config.target])
    )
    budgets = [_budget(config, network, name, value) for name, value in config.budgets]
    config.task.pretrain()
    labels = Labels(config.out / "labels.jsonl")
    evaluator = Evaluator(config.task, network.space.digest, labels, EvaluatorConfig(config.processes))
    search = Search(network.space, evaluator, config.search, lambda so_far: noted(so_far, budgets))
    return network, budgets, search


def _report(
    config: CompressConfig, network: Network, budgets: Sequence[Budget], search: Search, chosen: Chosen
) -> dict[str, Any]:
    """What was chosen, trained and written."""
    classifier = config.task.open()
    module = classifier.build(chosen.policy, Fidelity.L2, config.search.seed)
    accuracy, _ = evaluate(module, classifier.test)
    before, _ = evaluate(classifier.reference, classifier.test)
    index_D = network.space.encode(chosen.policy)
    report = {
        "network": config.task.network.name,
        "target": config.target,
        "policy": json.loads(chosen.policy.json()),
        "test_accuracy": {"reference": before, "compressed": accuracy},
        "search": {"predicted": chosen.predicted, "deviation": chosen.deviation, "measured": chosen.measured},
        "shares": {b.cost.name: _share(network, b.cost, index_D) for b in budgets if b.cost.name in COSTS},
        "labels": len(search.score_N),
        "front": _front(network, search, budgets[0].cost),
        "bytes": save(module, config.out / "network.safetensors"),
        "reference_bytes": config.task.reference.stat().st_size,
    }
    if config.target != "simulated":
        report["onnx_bytes"] = write_onnx(module, logits, config.task.example(), config.out / "network.onnx")
    timed = [float(at_levels(b.cost, network.space, index_D)[0]) for b in budgets if b.cost.name == LATENCY]
    if timed:
        measured = file_ns(config.out / "network.onnx", config.task.example())
        report["latency_ms"] = {"predicted": timed[0] / 1e6, "measured": measured / 1e6}
    return report


def read_budget(network: Network, name: str, share: float) -> Budget:
    """A budget as a share of the whole network's cost.

    Raises:
        UserError: no cost has that name, or the share is none.
    """
    if name not in COSTS:
        raise UserError(f"no cost is named {name}: choose one of {', '.join((*COSTS, LATENCY))}", "budget")
    if not 0 < share < 1:
        raise UserError(f"{name}={share:g} is no share between 0 and 1 of the whole network's", "budget")
    return Budget(COSTS[name](network.space, network.layers), share * _whole(network, name))


def _budget(config: CompressConfig, network: Network, name: str, value: float) -> Budget:
    """A budget by its name; layers are timed once, and what was found is kept beside the labels."""
    if name != LATENCY:
        return read_budget(network, name, value)
    if config.target != "int8":
        raise UserError(
            "layers of 8 bits are timed in onnxruntime: leave latency out, or choose target int8", "budget"
        )
    if value <= 0:
        raise UserError(f"latency={value:g} is no time in milliseconds", "budget")
    path = config.out / "latency.json"
    if not path.exists():
        module, example = make(config.task.network), config.task.example()
        found = measure_latency(module, example, logits, network, config.out / "timed.onnx")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(found)) + "\n")
        partial.rename(path)
    told = json.loads(path.read_text())
    layers = tuple(LayerTime(**each) for each in told.pop("layers"))
    return Budget(Latency(layers, **told).cost(network), value * 1e6)


def _whole(network: Network, name: str) -> float:
    """What the network costs at 32 bits."""
    bare = Space([])
    layers = [replace(x, unit=None, cut_by=None, fed_by=None, fixed_bits=32.0) for x in network.layers]
    return float(at_levels(COSTS[name](bare, layers), bare, bare.count_D)[0])


def _share(network: Network, cost: Cost, index_D: Any) -> float:
    return float(at_levels(cost, network.space, index_D)[0]) / _whole(network, cost.name)


def _front(network: Network, search: Search, cost: Cost) -> list[dict[str, Any]]:
    """Predicted accuracies (percent) with 90 % intervals, over the first budget's cost; not measured."""
    top_1D = np.ones((1, len(network.space)))
    whole = _whole(network, cost.name) if cost.name in COSTS else float(cost(top_1D)[0][0])
    rows = []
    for limit, found in search.front(search.predictor(), cost, FRONT):
        mean, far = float(found.mean_N[0]), NINETY * float(found.std_N[0])
        policy = json.loads(network.space.decode(found.index_ND[0]).json())
        told = {"share": limit / whole, "predicted": mean, "interval": [mean - far, mean + far]}
        rows.append(told | {"policy": policy})
    return rows


def _predicted(search: Search, cost: Cost) -> list[dict[str, float]]:
    """The front as the predictor sees it: limits, scores and 90 % intervals; not measured."""
    rows = []
    for limit, found in search.front(search.predictor(), cost, FRONT):
        mean, far = float(found.mean_N[0]), NINETY * float(found.std_N[0])
        rows.append({"limit": limit, "predicted": mean, "low": mean - far, "high": mean + far})
    return rows


def _note(search: Search, budgets: Sequence[Budget], out: Path) -> None:
    """Keep the best policy so far, whatever comes."""
    best = search.best_measured(budgets)
    if best is not None:
        partial = out / "best.json.partial"
        partial.write_text(search.space.decode(search.index_ND[best]).json() + "\n")
        partial.rename(out / "best.json")
