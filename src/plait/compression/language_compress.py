"""`compress_language`: a decoder, searched and written for its target, for `plait compress`."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.compression.complexity import Cost, at_levels
from plait.compression.export import write_folder
from plait.compression.export_gguf import write_gguf
from plait.compression.language import FULL_BITS
from plait.compression.language_search import LanguageSearch, LanguageSearchConfig
from plait.compression.optimiser import Budget
from plait.compression.predictor import NINETY, Predictor
from plait.compression.search import Chosen, Search, check_labels, rung
from plait.compression.space import Ints
from plait.compression.step_time import MIXES, StepTime, measure_steps, step_time, whole_ns
from plait.compression.tasks.language import Language
from plait.compression.tasks.text import sequences
from plait.spec.errors import UserError

WRITTEN = ("plait", "transformers", "vllm", "vllm-cpu", "gguf")
"""Targets that have files."""
COSTS = ("size", "memory", "kv", "tpot", "step")
"""Budgets by name: bytes of weights in files, in the engine's memory (where they have 4, 8 or 16 bits), and
of a token's keys and values, as shares of what they are in bf16; and the time of a decode step, in
milliseconds or as a share of what it takes in bf16 on this machine."""
TIMED = ("tpot", "step")
FRONT = 8
"""Points of the front in the report."""


@dataclass(frozen=True)
class LanguageCompressConfig:
    """What `plait compress` was told of a decoder."""

    task: Language
    out: Path
    """Folder for the labels, the best policy so far, and the compressed decoder in the end."""
    budgets: tuple[tuple[str, float], ...]
    """Names of `COSTS` and values."""
    search: LanguageSearchConfig = field(default_factory=LanguageSearchConfig)
    timed: Callable[[Path], float] | None = None
    """Nanoseconds of a decode step of a folder's model; needed for `tpot`."""


def compress_language(config: LanguageCompressConfig) -> dict[str, Any]:
    """Search and write; run again after an interruption, it goes on. Returns what report.json says.

    Raises:
        UserError: no policy meets a budget (names the nearest), an unknown name, text that cannot be read.
    """
    search, times, budgets = _opened(config)
    found, predictor, chosen = search.best(budgets, lambda so_far: note(so_far, budgets, config.out))
    index_D = search.space.encode(chosen.policy)
    report = _report(search, predictor, chosen, budgets, index_D) | {
        "labels": len(search.evaluator.labels.found),
        "measured": _measured(found, budgets),
        "front": _front(search, found, predictor, budgets[0].cost),
        "bytes": _write(search, chosen, config.out),
    }
    if times is not None:
        report["steps"] = asdict(times) | {"measured": len(MIXES)}
    (config.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def sweep_language(config: LanguageCompressConfig) -> dict[str, Any]:
    """The best measured policy for each of the budgets, which are taken one by one and share all labels;
    nothing is written but sweep.json, whose content is returned.

    Raises:
        UserError: as `compress_language`, or the budgets are not of one cost.
    """
    if len({name for name, _ in config.budgets}) != 1:
        raise UserError("a sweep has one cost: give several values of it, such as size=0.4,0.3", "budget")
    search, _, budgets = _opened(config)
    cost, searches, front = budgets[0].cost, [], []
    for budget in budgets:
        found, predictor, _ = search.best([budget])
        searches.append(found)
        best = found.best(predictor, [budget], np.random.default_rng(config.search.seed))
        mean, far = float(best.mean_N[0]), NINETY * float(best.std_N[0])
        front.append({"limit": budget.limit, "predicted": mean, "low": mean - far, "high": mean + far})
    report = {
        "model": config.task.folder.name,
        "target": config.task.target,
        "cost": cost.name,
        "unit": cost.unit,
        "score": "-log of KL divergence, nats a token",
        "labels": len(search.evaluator.labels.found),
        "rows": [rung(value, b, searches) for (_, value), b in zip(config.budgets, budgets, strict=True)],
        "front": sorted(front, key=lambda row: row["limit"]),
    }
    (config.out / "sweep.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def check_language(config: LanguageCompressConfig) -> None:
    """Raises UserError, as `compress_language`, for all that can be told without reading the weights."""
    _check_names(config)
    for name, value in config.budgets:
        _check_value(name, value)
    search, task = config.search, config.task
    check_labels(search.labels, search.first, search.finalists)
    assert len(task.space) > 0
    for text in (task.calibration, task.validation, task.test):
        sequences(task.folder, text)


def _check_names(config: LanguageCompressConfig) -> None:
    """Raises UserError for a target without files, and for costs that are not known."""
    if config.task.target not in WRITTEN:
        raise UserError(
            f"no decoder is written for {config.task.target}: choose one of {', '.join(WRITTEN)}", "target"
        )
    unknown = [name for name, _ in config.budgets if name not in COSTS]
    if unknown:
        raise UserError(f"no cost is named {unknown[0]}: choose one of {', '.join(COSTS)}", "budget")


def _check_value(name: str, value: float) -> None:
    """Raises UserError for what is no time, or no share."""
    if name == "tpot" and value <= 0:
        raise UserError(f"tpot={value:g} is no time in milliseconds", "budget")
    if name != "tpot" and not 0 < value < 1:
        raise UserError(f"{name}={value:g} is no share between 0 and 1 of the whole model's", "budget")


def _opened(config: LanguageCompressConfig) -> tuple[LanguageSearch, StepTime | None, list[Budget]]:
    """A search that has not begun, times of steps where a budget needs them, and the budgets."""
    _check_names(config)
    task, out = config.task, config.out
    out.mkdir(parents=True, exist_ok=True)
    search = LanguageSearch(task, out / "labels.jsonl", config.search)
    times = _times(config, search) if any(name in TIMED for name, _ in config.budgets) else None
    return search, times, [read_budget(search, name, value, times) for name, value in config.budgets]


def read_budget(search: LanguageSearch, name: str, value: float, times: StepTime | None) -> Budget:
    """A budget from its name and value.

    Raises:
        UserError: the value is no share, or no time.
    """
    _check_value(name, value)
    if name in TIMED:
        assert times is not None, "steps are measured before time budgets are read"
        decoder, order = search.task.decoder, search.reader.carver.order
        limit_ns = value * (1e6 if name == "tpot" else whole_ns(decoder, times))
        return Budget(step_time(search.space, decoder, order, times), limit_ns)
    cost = {"size": search.size, "memory": search.memory, "kv": search.kv}[name]
    return Budget(cost, value * _whole(search, name))


def note(search: Search, budgets: Sequence[Budget], out: Path) -> None:
    """Keep the best policy so far, whatever comes."""
    best = search.best_measured(budgets)
    if best is not None:
        partial = out / "best.json.partial"
        partial.write_text(search.space.decode(search.index_ND[best]).json() + "\n")
        partial.rename(out / "best.json")


def _times(config: LanguageCompressConfig, search: LanguageSearch) -> StepTime:
    """Measured once; what was found is kept beside the labels."""
    path = config.out / "steps.json"
    if path.exists():
        told = json.loads(path.read_text())
        return StepTime(told["constant_ns"], tuple(told["byte_ns"]), told["worst"])
    if config.task.target != "plait" or config.timed is None:
        raise UserError(
            "steps are timed on plait's own engine: leave tpot out, or choose target plait", "budget"
        )
    scratch = config.out / "steps"
    times = measure_steps(search.reader.carver, config.task.folder, scratch, config.timed)
    shutil.rmtree(scratch)
    path.write_text(json.dumps(asdict(times)) + "\n")
    return times


def _whole(search: LanguageSearch, name: str) -> float:
    """What the model has in bf16, nothing cut."""
    decoder = search.task.decoder
    if name == "kv":
        return 2.0 * decoder.count * decoder.kv_heads * decoder.head_dim * FULL_BITS / 8
    return 2.0 * (decoder.rest + sum(x.outputs * x.inputs for x in decoder.linears))


def _report(
    search: LanguageSearch, predictor: Predictor, chosen: Chosen, budgets: Sequence[Budget], index_D: Ints
) -> dict[str, Any]:
    """What was chosen, and how far it is from the reference on text that nobody chose with."""
    test, carver = search.reader.test, search.reader.carver
    reference, compressed = test.distance(search.reader.reference), test.distance(carver.build(chosen.policy))
    return {
        "model": search.task.folder.name,
        "target": search.task.target,
        "policy": json.loads(chosen.policy.json()),
        "test": {
            "kl": compressed.kl,
            "perplexity": {"reference": reference.perplexity, "compressed": compressed.perplexity},
        },
        "search": {
            "predicted": chosen.predicted,
            "deviation": chosen.deviation,
            "measured": chosen.measured,
        },
        "costs": {b.cost.name: float(at_levels(b.cost, search.space, index_D)[0]) for b in budgets},
        "limits": {b.cost.name: b.limit for b in budgets},
    }


def _measured(found: Search, budgets: Sequence[Budget]) -> list[dict[str, float]]:
    """Costs and KL (nats a token) of every policy that the search measured."""
    costs = {b.cost.name: at_levels(b.cost, found.space, found.index_ND).tolist() for b in budgets}
    rows = zip(*costs.values(), np.exp(-found.score_N).tolist(), strict=True)
    return [dict(zip((*costs, "kl"), row, strict=True)) for row in rows]


def _front(search: LanguageSearch, found: Search, predictor: Predictor, cost: Cost) -> list[dict[str, Any]]:
    """Predicted KL (nats a token) with 90 % intervals, over the first budget's cost; not measured."""
    rows = []
    for limit, best in found.front(predictor, cost, FRONT):
        mean, far = float(best.mean_N[0]), NINETY * float(best.std_N[0])
        interval = np.exp([-mean - far, -mean + far]).tolist()
        policy = json.loads(search.space.decode(best.index_ND[0]).json())
        rows.append(
            {cost.name: limit, "predicted_kl": float(np.exp(-mean)), "interval": interval, "policy": policy}
        )
    return rows


def _write(search: LanguageSearch, chosen: Chosen, out: Path) -> int:
    """The decoder's files, anew; returns the bytes of its weights."""
    carver, folder = search.reader.carver, search.task.folder
    if search.task.target == "gguf":
        (out / "model.gguf").unlink(missing_ok=True)
        return write_gguf(carver, chosen.policy, folder, out / "model.gguf")
    shutil.rmtree(out / "model", ignore_errors=True)
    return write_folder(carver, chosen.policy, folder, out / "model")
