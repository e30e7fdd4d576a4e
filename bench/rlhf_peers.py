"""Samples a second of PPO and GRPO against TRL's (PPO at 1.9.0, the last that has it, GRPO at 1.16.0).

The same tiny Llama, reward model or reward function, prompts and response length, float32, and two cores
for each: TRL with one thread or two, whichever is faster; ours two generating processes of one thread, then
two that train, of one thread, each on half of the samples. Seconds are those of an update from end to end
(generation, scoring, training, weights), the first one left out; the median over all updates and seeds.
Both must learn alike: the difference of the mean reward over the last fifth, resampled over seeds 10,000
times, has 0 in its middle 95 %. The value is the worse of the two ratios. Where TRL is not installed (`make
peers`), a run says so and fails.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignment.contest import Contest, prepare
from claim import Claim, arguments, at_least, at_most, finish, reported, together
from peers.install import REQUIREMENTS, install

HERE = Path(__file__).parent / "peers"
CONTESTS = {"ppo": Contest(), "grpo": Contest(prompts=8, samples=4)}
QUICK_UPDATES, SEEDS, RESAMPLED, BAR = 3, 5, 10_000, 2.0


@dataclass(frozen=True)
class Run:
    """What a contender printed."""

    seconds: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def last(self) -> float:
        """Mean score over the last fifth."""
        return statistics.mean(self.scores[-max(1, len(self.scores) // 5) :])


def run(*command: str) -> Run:
    """Run a program to its end; its last line is JSON."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(tuple(told["seconds"]), tuple(told["scores"]))


def ours(root: Path, seed: int, algorithm: str) -> Run:
    """Plait on the contest below `root`."""
    return run(sys.executable, str(HERE / "plait_align_run.py"), str(root), str(seed), "1", algorithm)


def theirs(root: Path, seed: int, algorithm: str, threads: int) -> Run:
    """TRL on it."""
    python = install(f"trl-{algorithm}", REQUIREMENTS).folder / "bin" / "python"
    return run(str(python), str(HERE / f"trl_{algorithm}_run.py"), str(root), str(seed), str(threads))


def interval(one: Sequence[Run], other: Sequence[Run]) -> tuple[float, float]:
    """Middle 95 % of the difference of mean last scores, seeds drawn with replacement."""
    dice = random.Random(0)
    a, b = [each.last for each in one], [each.last for each in other]
    found = sorted(
        statistics.mean(dice.choices(a, k=len(a))) - statistics.mean(dice.choices(b, k=len(b)))
        for _ in range(RESAMPLED)
    )
    return found[RESAMPLED // 40], found[-RESAMPLED // 40]


def pace(runs: Sequence[Run], samples: int) -> float:
    """Samples a second at the median update."""
    return samples / statistics.median(second for each in runs for second in each.seconds)


def _spread(runs: Sequence[Run], samples: int) -> tuple[float, float]:
    """The slowest and the fastest seed's."""
    paces = [pace([each], samples) for each in runs]
    return min(paces), max(paces)


def contest(algorithm: str, told: Contest, seeds: int) -> list[Claim]:
    """Both on one algorithm."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        replace(told, updates=QUICK_UPDATES).write(root / "contest.json")
        tried = {threads: theirs(root, 0, algorithm, threads) for threads in (1, 2)}
        threads = min(tried, key=lambda each: statistics.median(tried[each].seconds))
        told.write(root / "contest.json")
        mine, trl = [], []
        for seed in range(seeds):
            mine.append(ours(root, seed, algorithm))
            trl.append(theirs(root, seed, algorithm, threads))
    samples = told.prompts * told.samples
    ratio = pace(mine, samples) / pace(trl, samples)
    name = algorithm.upper()
    low, high = interval(mine, trl)
    rise = statistics.mean(each.last - each.scores[0] for each in mine)
    parts = [
        at_least(f"{name}: samples/s over TRL's ({threads} threads)", ratio, BAR),
        reported(f"{name}: samples/s of ours", pace(mine, samples), _spread(mine, samples)),
        reported(f"{name}: samples/s of TRL", pace(trl, samples), _spread(trl, samples)),
        reported(f"{name}: rise of our mean reward", rise, (rise, rise)),
    ]
    if seeds > 1:
        distance = max(low, -high, 0.0)
        parts.append(at_most(f"{name}: distance of 0 from [{low:.4f}, {high:.4f}]", distance, 0.0))
    return parts


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    parts: list[Claim] = []
    for algorithm, told in CONTESTS.items():
        shorter = replace(told, updates=QUICK_UPDATES)
        parts += contest(algorithm, shorter if options.quick else told, 1 if options.quick else SEEDS)
    finish("rlhf_peers", together("PPO and GRPO are faster than TRL's and learn alike", parts), options)


if __name__ == "__main__":
    main()
