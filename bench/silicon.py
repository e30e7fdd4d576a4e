"""Predicted against measured: TTFT and TPOT of engines on H100 to GB300, for configurations never seen.

The measurements are AIConfigurator's silicon sample (Apache-2.0). Rows whose times agree to 0.1 ms are one
measurement that was entered twice; of them the row that says how many workers there were is kept. DeepSeek R1
and V3 are one model. Folds are drawn by configuration: rows that differ only in the requests in flight are
predicted together, by learners that saw none of them, and nothing is chosen on a test fold. A full run writes
the fold of each row to results/silicon-split.csv. Leaving whole models out is reported with fewer trees.
"""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import claim
import numpy as np
from numpy.typing import NDArray

from plait.cost.boosting import BoostedConfig
from plait.cost.decoders import ACCELERATORS, DECODERS
from plait.cost.deployment import Decoder, Deployment, Phase
from plait.cost.kernel import KernelConfig
from plait.cost.learned import Learned, LearnedConfig, Learner, kind

SAMPLE = Path(__file__).parents[1].parent / "shared/data/profiles/aiconfigurator_silicon_sample.csv"
FOLDS = 5
BASES = {"tpot": ("with_prefill",), "ttft": ("prefill_one", "all_at_once")}
Row = Mapping[str, str]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    id: str
    served: Deployment
    config: tuple[str, ...]
    ttft_s: float
    tpot_s: float


def read(path: Path) -> list[Measured]:
    """The sample without twins, in the order of the file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept: dict[tuple[str, ...], Measured] = {}
    for row in rows:
        found = _measured(row)
        twin = (row["mode"], *(f"{1000 * seconds:.1f}" for seconds in (found.ttft_s, found.tpot_s)))
        if twin not in kept or (found.served.workers_known and not kept[twin].served.workers_known):
            kept[twin] = found
    return list(kept.values())


def _measured(row: Row) -> Measured:
    split = row["mode"] == "disagg"
    prefill, decode = (_phase(row, name if split else "") for name in ("prefill_", "decode_"))
    known = not split or bool(row["prefill_num_workers"])
    said = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    batch = _count(row["decode_batch_size" if split else "batch_size"])
    served = Deployment(
        model=_model(row["model_path"]),
        device=ACCELERATORS[row["system"]],
        precision=row["precision"] or "bf16",
        engine=row["backend"],
        version=_version(row["backend_version"]),
        prefill=prefill,
        decode=decode,
        disaggregated=split,
        prompt_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        in_flight=int(said[1]) if said else batch * decode.workers * decode.dp,
        workers_known=known,
        load_known=said is not None,
    )
    apart = ("id", "silicon_data_source", "model_path", "silicon_ttft_ms", "silicon_tpot_ms")
    sizes = ("batch_size", "prefill_batch_size", "decode_batch_size")
    config = tuple(value for name, value in row.items() if name not in apart + sizes)
    times = (float(row[f"silicon_{name}_ms"]) / 1000 for name in ("ttft", "tpot"))
    return Measured(row["id"], served, (served.model.name, *config), *times)


def _model(path: str) -> Decoder:
    if "DeepSeek" in path:
        return DECODERS["DeepSeek-V3"]
    return next(model for name, model in DECODERS.items() if name in path)


def _phase(row: Row, prefix: str) -> Phase:
    sizes = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    workers = _count(row[f"{prefix}num_workers"]) if prefix else 1
    return Phase(workers, *(_count(row[prefix + name]) for name in sizes))


def _count(text: str) -> int:
    return max(int(text or 1), 1)


def _version(text: str) -> float:
    numbers = [int(number) for number in re.findall(r"\d+", text)[:3]]
    return sum(n * scale for n, scale in zip(numbers, (1e4, 1e2, 1), strict=False)) if numbers else -1.0


def folds(rows: Sequence[Measured], seed: int) -> NDArray[np.int64]:
    """The fold of each row: configurations in alphabetical order, dealt out after a shuffle."""
    configs = sorted({row.config for row in rows})
    dealt = np.random.default_rng(seed).permutation(len(configs)) % FOLDS
    of = dict(zip(configs, dealt.tolist(), strict=True))
    return np.array([of[row.config] for row in rows])


@dataclass(frozen=True)
class Task:
    """Learn from all rows outside `test`, then predict those."""

    rows: tuple[Measured, ...]
    test: tuple[bool, ...]
    latency: str
    seed: int
    config: LearnedConfig


def predict(task: Task) -> Array:
    """Seconds of the test rows."""
    test = np.array(task.test)
    known = [row for row, out in zip(task.rows, test, strict=True) if not out]
    configs = {config: number for number, config in enumerate(sorted({row.config for row in known}))}
    groups = np.array([configs[row.config] for row in known])
    seconds = np.array([row.ttft_s if task.latency == "ttft" else row.tpot_s for row in known])
    rng = np.random.default_rng(task.seed)
    learned = Learned.fit(
        [row.served for row in known], seconds, groups, BASES[task.latency], task.config, rng
    )
    return learned.seconds([row.served for row, out in zip(task.rows, test, strict=True) if out])


def predictions(
    rows: Sequence[Measured], parts: NDArray[np.int64], latency: str, config: LearnedConfig, seed: int
) -> Array:
    """Seconds of every row, each predicted without its part."""
    if latency == "ttft":
        config = replace(config, by_median=("disaggregated", "layout only"))
    found = np.zeros(len(rows))
    masks = [parts == part for part in np.unique(parts)]
    tasks = [Task(tuple(rows), tuple(mask.tolist()), latency, seed, config) for mask in masks]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for mask, values in zip(masks, pool.map(predict, tasks), strict=True):
            found[mask] = values
    return found


def quick_config() -> LearnedConfig:
    """Fewer trees and kernels."""
    boosted = BoostedConfig(trees=120, rate=0.12, lean=0.5)
    kernel = KernelConfig(0.05, 0.001)
    return LearnedConfig((Learner(boosted), Learner(kernel, own=True)), bags=1, folds=2)


def errors(found: Array, truth: Array) -> Array:
    """Absolute errors, in percent of the truth."""
    return 100 * np.abs(found / truth - 1)


def rank_correlation(found: Array, truth: Array) -> float:
    """Spearman's, for values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (found, truth)]
    return float(np.corrcoef(*ranks)[0, 1])


def gated(
    rows: Sequence[Measured], found: Mapping[str, Array], truth: Mapping[str, Array]
) -> list[claim.Claim]:
    """The parts that have a bar."""
    kinds = np.array([kind(row.served) for row in rows])
    known, together = kinds == "disaggregated", kinds == "aggregated"
    error = {name: errors(found[name], truth[name]) for name in truth}
    rank = rank_correlation(found["tpot"][known], truth["tpot"][known])
    split, whole = f"{known.sum()} disaggregated rows", f"{together.sum()} aggregated rows"
    return [
        claim.at_most(f"TPOT, {split}, mean error, %", float(error["tpot"][known].mean()), 12),
        claim.at_least(f"TPOT, {split}, rank correlation", rank, 0.97),
        claim.at_most(f"TPOT, {whole}, mean error, %", float(error["tpot"][together].mean()), 11.5),
        claim.at_most(f"TTFT, {split}, median error, %", float(np.median(error["ttft"][known])), 30),
        claim.at_most(f"TTFT, {whole}, mean error, %", float(error["ttft"][together].mean()), 20),
    ]


def told(name: str, found: Array, truth: Array) -> claim.Claim:
    """A mean error without a bar, with its median and 90th percentile."""
    error = errors(found, truth)
    spread = (float(np.median(error)), float(np.percentile(error, 90)))
    return claim.reported(f"{name}: mean (median .. p90), %", float(error.mean()), spread)


def main() -> None:
    options = claim.arguments(__doc__)
    rows = read(SAMPLE)
    parts = folds(rows, options.seed)
    config = quick_config() if options.quick else LearnedConfig()
    truth = {"ttft": np.array([row.ttft_s for row in rows]), "tpot": np.array([row.tpot_s for row in rows])}
    found = {name: predictions(rows, parts, name, config, options.seed) for name in truth}
    listed = gated(rows, found, truth)
    split = np.array([row.served.disaggregated for row in rows])
    listed += [
        told(f"{name.upper()}, all {split.sum()} disaggregated", found[name][split], truth[name][split])
        for name in truth
    ]
    if not options.quick:
        models = np.array([list(DECODERS).index(row.served.model.name) for row in rows])
        for name in truth:
            unseen = predictions(rows, models, name, quick_config(), options.seed)
            listed.append(told(f"{name.upper()}, whole model never seen", unseen, truth[name]))
        lines = [f"{row.id},{fold}" for row, fold in zip(rows, parts.tolist(), strict=True)]
        (claim.RESULTS / "silicon-split.csv").write_text("id,fold\n" + "\n".join(lines) + "\n")
    whole = f"engines on silicon: {len(rows)} measurements, each of an unseen configuration"
    claim.finish("silicon", claim.together(whole, listed), options)


if __name__ == "__main__":
    main()
