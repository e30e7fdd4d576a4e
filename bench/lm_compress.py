"""A language model at three byte budgets and a time budget, beside rules and additive dynamic programming.

    python bench/lm_compress.py [--quick]

The model is SmolLM2-135M-Instruct. Its published weights lie on a 4-bit grid, so the reference is that model
dequantised, and budgets lie below the 60 MB that 4-bit blocks take; bytes are those of the blocks' linear
layers, scales counted. All sides round with the same compensation on the same calibration text, in groups of
64 inputs, and use their budget up. Ours is chosen with text of training files; KL divergence from the
reference and perplexity are measured on files that nobody chose with. `--quick` keeps 4 of the 30 blocks.

- uniform: the highest common number of bits, the rest of the bytes for one bit more in the first blocks;
- rule: llama.cpp's, more bits for values and the last feed-forward product in blocks at both ends;
- additive: the least sum of layers' errors, weighted by the loss's slopes as in modelopt's and AutoRound's
  schemes, by dynamic programming.

The time budget is for a decode step of one row on our engine, whose own times of a few other policies say
what a policy costs.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import claim
import numpy as np
import torch

from plait.compression.export import write_folder
from plait.compression.language import DecoderConfig
from plait.compression.language_rules import additive, llama_rule, uniform
from plait.compression.language_search import LanguageSearch, LanguageSearchConfig
from plait.compression.optimiser import Budget
from plait.compression.space import Floats, Ints
from plait.compression.step_time import MIXES, Mix, measure_steps, step_time
from plait.compression.tasks.language import Distance, Language, load_reference
from plait.compression.tasks.text import TextConfig
from plait.model.hub import resolve
from plait.runtime.setup import ServeConfig
from plait.runtime.step_times import DECODE, decode_ns

ROOT = Path(__file__).parents[1]
TEXT = ROOT.parent / "shared" / "data" / "text"
RUNS = ROOT / "runs" / "lm_compress"
MODEL = "smollm2-135m"
SHARES = (0.9, 0.77, 0.66)
"""Budgets, as shares of what 4 bits take: 50, 43 and 37 MB of SmolLM2's linear layers."""
QUICK_BLOCKS = 4
RESAMPLES = 2000


@dataclass(frozen=True)
class Study:
    """What is searched, and with how much work."""

    search: LanguageSearch
    shares: tuple[float, ...]
    linear_bytes: float
    """Of the blocks' linear layers at 4 bits."""
    rest_bytes: float
    """Of everything else; in every budget."""
    mixes: tuple[Mix, ...]
    """Policies whose steps are timed."""

    def budget(self, share: float) -> Budget:
        """So much of what 4 bits take."""
        return Budget(self.search.size, self.rest_bytes + share * self.linear_bytes)


def study(quick: bool) -> Study:
    """The task and what is known of it so far."""
    runs = RUNS / ("quick" if quick else "whole")
    folder = truncated(resolve(MODEL), runs / "model") if quick else resolve(MODEL)
    train, test = (
        tuple(TEXT / f"{name}_{part}.jsonl" for name in ("gsm8k", "preferences"))
        for part in ("train", "test")
    )
    few = 4 if quick else 1
    task = Language(
        folder=folder,
        calibration=TextConfig(train, 4096 // few, 256),
        validation=TextConfig(train, 1024 // few, 256, skip=4096),
        test=TextConfig(test, 2048 // few, 256),
        cache=runs,
        choice=DecoderConfig(bits=(2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0)),
    )
    config = LanguageSearchConfig(labels=20, first=12) if quick else LanguageSearchConfig()
    search = LanguageSearch(task, runs / "labels.jsonl", config)
    rest = 2.0 * task.decoder.rest
    fours_D = np.array([gene.levels.index(4.0) for gene in search.space.genes])
    fours = float(search.size(search.space.z_of(fours_D)[None])[0][0])
    return Study(search, SHARES[1:2] if quick else SHARES, fours - rest, rest, MIXES[:4] if quick else MIXES)


def truncated(source: Path, target: Path) -> Path:
    """The model's first blocks alone, as a folder."""
    if not (target / "model.safetensors").exists():
        module = load_reference(source)
        module.model.layers = module.model.layers[:QUICK_BLOCKS]
        module.config.num_hidden_layers = QUICK_BLOCKS
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        module.save_pretrained(target)
    return target


def at_bytes(world: Study, share: float) -> list[claim.Claim]:
    """All sides at one budget, on text that nobody chose with."""
    budget, search = world.budget(share), world.search
    sides: dict[str, Ints] = {
        "uniform": uniform(search.space, budget),
        "rule": llama_rule(search.space, search.task.decoder, budget),
        "additive": additive(search.space, search.errors, budget),
    }
    _, _, chosen = search.best([budget])
    sides["ours"] = search.space.encode(chosen.policy)
    found = {name: distance(world, index_D) for name, index_D in sides.items()}
    ours, best = found.pop("ours"), min(found.values(), key=lambda each: each.kl)
    least = min(each.perplexity for each in found.values())
    megabytes = share * world.linear_bytes / 1e6
    told = ", ".join(
        f"{name} {each.kl:.4f} / {each.perplexity:.2f}" for name, each in [*found.items(), ("ours", ours)]
    )
    used = [float(search.size(search.space.z_of(i)[None])[0][0]) / budget.limit for i in sides.values()]
    print(f"{megabytes:.1f} MB: KL / perplexity: {told}; least use of the budget {min(used):.4f}", flush=True)
    low, high = interval(ours, best)
    gain = ours.kl / best.kl
    return [
        claim.Claim(f"{megabytes:.1f} MB: our KL over the best of others'", gain, 1.0, gain < 1, (low, high)),
        claim.Claim(
            f"{megabytes:.1f} MB: our perplexity, others' best as bar",
            ours.perplexity,
            least,
            ours.perplexity < least,
        ),
    ]


def distance(world: Study, index_D: Ints) -> Distance:
    """Of a policy from the reference, on the test text."""
    reader = world.search.reader
    return reader.test.distance(reader.carver.build(world.search.space.decode(index_D)))


def interval(ours: Distance, theirs: Distance) -> tuple[float, float]:
    """95 % of the ratio of KL divergences, by a paired bootstrap over blocks of 128 tokens."""
    rng = np.random.default_rng(0)
    ours_N, theirs_N = (torch.stack(each.kl_T.split(128)).mean(1).numpy() for each in (ours, theirs))
    drawn_RN = rng.integers(0, len(ours_N), (RESAMPLES, len(ours_N)))
    ratio_R: Floats = ours_N[drawn_RN].mean(1) / theirs_N[drawn_RN].mean(1)
    low, high = np.quantile(ratio_R, (0.025, 0.975))
    return float(low), float(high)


def step_ns(folder: Path) -> float:
    """Nanoseconds of a decode step of one row, of the live engine."""
    return decode_ns(ServeConfig(model=str(folder), threads=1), DECODE)


def at_time(world: Study, runs: Path) -> list[claim.Claim]:
    """The best policy for a time, and how long it really takes."""
    search = world.search
    carver, task = search.reader.carver, search.task
    times = measure_steps(carver, task.folder, runs / "steps", step_ns, world.mixes)
    cost = step_time(search.space, task.decoder, carver.order, times)
    ends = cost(search.space.z_of(np.stack([search.space.count_D * 0, search.space.count_D - 1])))[0]
    budget = Budget(cost, math.sqrt(ends[0] * ends[1]))
    _, _, chosen = search.best([budget])
    folder = runs / "timed"
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(carver, chosen.policy, task.folder, folder)
    measured = step_ns(folder)
    print(f"steps of {ends[0] / 1e6:.2f} to {ends[1] / 1e6:.2f} ms; the fit is off by {times.worst:.1%}")
    print(f"asked for {budget.limit / 1e6:.2f} ms, KL {math.exp(-chosen.measured):.4f}", flush=True)
    off = abs(measured / budget.limit - 1)
    return [claim.at_most(f"time budget {budget.limit / 1e6:.2f} ms: the measured step is off by", off, 0.05)]


def main() -> None:
    options = claim.arguments(__doc__)
    world = study(options.quick)
    parts = [part for share in world.shares for part in at_bytes(world, share)]
    parts += at_time(world, RUNS / ("quick" if options.quick else "whole"))
    claim.finish("lm_compress", claim.together("compressed language models", parts), options)


if __name__ == "__main__":
    main()
