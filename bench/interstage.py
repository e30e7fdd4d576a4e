"""Generation and scoring fused: the tail of an iteration on few instances while the others score.

Simulated (the core in virtual time): 512 samples on 32 instances of 8 H100 with a 65B policy. Lengths are
lognormal with their 99.9th percentile at ten times their median, which is also the longest (512, 1,024 and
2,048 tokens); a sample is read by three models. (R_t, m) come from the tuner, which sees other samples of the
distribution. The gain over serial stages is held against 1 + rho, where rho is what scoring takes over what
generation takes. Reported beside: rho of 0.6, and medians of 150, 200 and 250 tokens, where up to 9 % of the
samples end together at the longest length; nothing can hide what is read after that.

Tuner: its choice in the core, over the best of all (R_t, m) tried one by one in the core on the same batches;
the mean over batches, for each of many distributions of lengths, times and costs.

Live: four paced instances of a tiny policy (times stated, tokens real), PPO's four models read. The same
samples are drawn with serial stages and with a tail: equal to the bit. Unpaced, four instances and the ranks
that read share two cores: nobody is ever free there, and the figure is reported.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from alignment import tails
from alignment.contest import prepare
from claim import Claim, arguments, at_least, at_most, finish, reported, together
from numpy.random import Generator

from plait.cost.fitted import Fitted
from plait.cost.reading import StatedReading
from plait.planner.tail import TailModel, TailTuner
from plait.rlhf.core import SERIAL, Tail
from plait.runtime.align_setup import Pace
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.rollout import RolloutScenario, SampleLength
from plait.sim.scenario import Scenario
from plait.spec.cluster import Link, Placement

PROMPT = 128
STEPS = Fitted(5e6, 4e4, 0.0, 0.0, 8.1e6, 163.0, 2e4)
"""65B on 8 H100: weights in 8.1 ms, KV of 2.6 MB a token."""
LINK = Link(200e9, 20_000)
TOKEN_BYTES = 2_620_000
SHARES = (0.4, 0.3, 0.3)
"""Of the reading: reference, reward model, Critic."""
IDEAL, NEAR, LIVE = 0.95, 1.02, 1.15
RHOS = (0.1, 0.2, 0.35)


@dataclass(frozen=True)
class Lengths:
    """Responses: lognormal, cut at the longest."""

    median: float
    sigma: float
    longest: int

    def draw(self, rng: Generator, count: int) -> list[SampleLength]:
        """Samples."""
        drawn = np.exp(rng.normal(np.log(self.median), self.sigma, count))
        return [SampleLength(PROMPT, int(each)) for each in np.clip(np.rint(drawn), 1, self.longest)]


TAILED = tuple(Lengths(most / 10, 0.745, most) for most in (512, 1024, 2048))
CUT = (Lengths(150, 0.9, 512), Lengths(200, 0.9, 1024), Lengths(250, 1.0, 2048))


@dataclass(frozen=True)
class World:
    """Instances that draw and score."""

    instances: int
    steps: Fitted
    reading: StatedReading
    longest: int

    def run(self, samples: Sequence[SampleLength], tail: Tail) -> tuple[float, float]:
        """Nanoseconds until the last is drawn, and until all are scored."""
        network = Network(TOKEN_BYTES, LINK, LINK)
        placed = Scenario(Placement.colocated(self.instances), self.steps, 10**6, ManagerConfig(), network)
        reading = self.reading
        readers, loads = len(reading.shares), reading.load_tokens
        scenario = RolloutScenario(placed, reading, self.longest, readers=readers, load_tokens=loads)
        times = scenario.run(samples, tail)
        return times.drawn_ns, times.scored_ns

    @property
    def tuner(self) -> TailTuner:
        """Of its tails."""
        token_ns = TOKEN_BYTES / LINK.bandwidth * 1e9
        return TailTuner(TailModel(self.instances, self.steps, self.reading, 10**6, token_ns))


def reading_for(
    rho: float, drawn_ns: float, instances: int, samples: Sequence[SampleLength]
) -> StatedReading:
    """Scoring that takes a share of what generation takes. Loading the models takes 0.15 s of it."""
    tokens = sum(each.prompt + each.response for each in samples) / instances
    load_ns = min(150e6, rho * drawn_ns / 10)
    return StatedReading((rho * drawn_ns - load_ns) / tokens, 0.2e6, load_ns, SHARES)


def ideal(lengths: Lengths, rho: float, draws: int, seed: int) -> tuple[float, float, float]:
    """Gain over serial stages, 1 + rho as it turned out, and their ratio: means over draws."""
    rng = np.random.default_rng(seed)
    gains, ideals = [], []
    for _ in range(draws):
        samples = lengths.draw(rng, 512)
        plain = World(32, STEPS, StatedReading(1.0), lengths.longest)
        drawn_ns, _ = plain.run(samples, SERIAL)
        world = World(32, STEPS, reading_for(rho, drawn_ns, 32, samples), lengths.longest)
        tail = world.tuner.tune(lengths.draw(rng, 5 * 512), 512, rng).tail
        serial, fused = (world.run(samples, each) for each in (SERIAL, tail))
        gains.append(serial[1] / fused[1])
        ideals.append(serial[1] / serial[0])
    shares = [gain / best for gain, best in zip(gains, ideals, strict=True)]
    return statistics.mean(gains), statistics.mean(ideals), statistics.mean(shares)


def ideals(quick: bool, seed: int) -> list[Claim]:
    """Every cell of the grid."""
    found, draws = [], 1 if quick else 4
    for lengths in TAILED[:1] if quick else TAILED:
        for rho in RHOS[1:] if quick else RHOS:
            gain, best, share = ideal(lengths, rho, draws, seed)
            said = f"longest {lengths.longest}, rho {best - 1:.2f}: {gain:.3f}x, share of 1 + rho"
            found.append(at_least(said, share, IDEAL))
    others = [] if quick else [*((each, 0.6) for each in TAILED), *((each, 0.35) for each in CUT)]
    for lengths, rho in others:
        gain, best, share = ideal(lengths, rho, draws, seed)
        cut = "" if lengths in TAILED else f", median {lengths.median:g}"
        said = f"longest {lengths.longest}{cut}, rho {best - 1:.2f}: {gain:.3f}x, share of 1 + rho"
        found.append(reported(said, share, (share, share)))
    return found


def oracle(number: int, draws: int, seed: int, coarse: int) -> tuple[float, float]:
    """One distribution with costs of its own: the tuner's mean time over the best (R_t, m)'s, and over that
    of a clairvoyant that chooses anew for every batch."""
    rng = np.random.default_rng((seed, number))
    instances, count = int(rng.choice([4, 6])), int(rng.choice([48, 96]))
    longest = int(rng.choice([128, 256]))
    lengths = Lengths(longest * rng.uniform(0.08, 0.5), rng.uniform(0.3, 1.1), longest)
    steps = Fitted(5e6, 4e4, 0.0, 0.0, 8.1e6, rng.uniform(20, 300), rng.uniform(1e4, 2e5))
    batches = [lengths.draw(rng, count) for _ in range(draws)]
    drawn_ns, _ = World(instances, steps, StatedReading(1.0), longest).run(batches[0], SERIAL)
    reading = reading_for(rng.uniform(0.05, 0.8), drawn_ns, instances, batches[0])
    world = World(instances, steps, reading, longest)
    chosen = world.tuner.tune(lengths.draw(rng, 5 * count), count, rng).tail
    all_tails = world.tuner.model.candidates(count)
    tried = [chosen, *all_tails[::coarse], SERIAL]
    times = np.array([[world.run(batch, tail)[1] for batch in batches] for tail in tried])
    best = times.mean(1).min()
    return float(times[0].mean() / best), float(times[0].mean() / times.min(0).mean())


def oracles(quick: bool, seed: int) -> list[Claim]:
    """The tuner on many distributions."""
    count, draws, coarse = (2, 2, 7) if quick else (16, 5, 1)
    found = [oracle(number, draws, seed, coarse) for number in range(count)]
    over, clear = zip(*found, strict=True)
    named = f"of {count} distributions"
    return [
        at_most(f"tuner over the best of all (R_t, m), mean {named}", statistics.mean(over), NEAR),
        at_most(f"the same, 90th percentile {named}", float(np.quantile(over, 0.9)), NEAR),
        reported(f"the same, worst {named}", max(over), (min(over), max(over))),
        reported(
            f"tuner over a clairvoyant's choice for every batch {named}",
            statistics.mean(clear),
            (min(clear), max(clear)),
        ),
    ]


PACED = Pace(
    Fitted(10e6, 1e5, 0.0, 0.0, 40e6, 100.0, 1e5),
    StatedReading(5e6, 2e6, 50e6, (0.3, 0.3, 0.2, 0.2)),
    Link(1e9, 100_000),
)
"""A step of a few rows takes 40 ms; reading takes 0.4 of what generation does."""


def lives(quick: bool, seed: int) -> list[Claim]:
    """Paced and unpaced."""
    rng = np.random.default_rng(seed)
    lengths = Lengths(tails.LONGEST / 10, 0.745, tails.LONGEST)
    rounds = 1 if quick else 3
    seen = [SampleLength(12, each.response) for each in lengths.draw(rng, 5 * tails.SAMPLES)]
    model = TailModel(tails.INSTANCES, PACED.steps, PACED.reading, 10**5)
    tuned = TailTuner(model).tune(seen, tails.SAMPLES, rng)
    drawn = [[each.response for each in lengths.draw(rng, tails.SAMPLES)] for _ in range(rounds)]
    for each in drawn:
        each[0] = tails.LONGEST  # a tail in every round
    odd = [Tail(tails.SAMPLES // 2, 1), Tail(tails.SAMPLES // 8, 2), Tail(tails.SAMPLES, 3)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        paced = tails.live(root, root / "paced", [(each, [tuned.tail]) for each in drawn], PACED)
        rest = [] if quick else [(each, [tuned.tail, *odd]) for each in drawn]
        free = tails.live(root, root / "unpaced", rest, None) if rest else []
    both = [(serial, other) for serial, *others in (*paced, *free) for other in others]
    moved = sum(other.moves for _, other in both)
    gains = [serial.scored_s / fused.scored_s for serial, fused in paced]
    alone = [serial.scored_s / fused.scored_s for serial, fused, *_ in free]
    rhos = [serial.scored_s / serial.drawn_s - 1 for serial, _ in paced]
    return [
        at_most(
            f"samples of {len(both) * tails.SAMPLES} that differ, {moved} moved",
            sum(serial.differs(other) for serial, other in both),
            0,
        ),
        at_least("samples that were moved", moved, 1),
        at_least(
            f"four paced instances, over serial stages ({tuned.tail.left} left, {tuned.tail.kept} kept, "
            f"rho {statistics.mean(rhos):.2f})",
            statistics.median(gains),
            LIVE,
        ),
        _middle("the same, all rounds", gains),
        reported("foreseen by the tuner", tuned.gain, (tuned.gain, tuned.gain)),
        *([_middle("unpaced on two cores, over serial stages", alone)] if alone else []),
    ]


def _middle(claim: str, values: Sequence[float]) -> Claim:
    return reported(claim, statistics.median(values), (min(values), max(values)))


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    quick, seed = options.quick, options.seed
    parts = [*lives(quick, seed), *ideals(quick, seed), *oracles(quick, seed)]
    finish("interstage", together("generation and scoring overlap, and no token changes", parts), options)


if __name__ == "__main__":
    main()
