"""`Application`: prompt and output lengths of the workloads that DistServe was evaluated on.

The data sets behind them are not here. What is known are the means that its figure 7 shows (read off a
figure, so with that precision) and how its scripts cut the data: prompt and output together below 2,048
tokens. Lengths are therefore fits: log-normal, with a spread that is assumed, their means solved for so that
what is left after the cut has the published ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.spec.errors import NotFound, UserError
from plait.workload.arrivals import Times
from plait.workload.lengths import Lengths, workload
from plait.workload.trace import TraceRow

Array = NDArray[np.float64]
GRID, ROUNDS, ENOUGH = 200, 200, 1e-4


@dataclass(frozen=True, slots=True)
class Application:
    """Two lengths in tokens, independent but for the cut."""

    name: str
    prompt_mean: float
    output_mean: float
    prompt_cv: float
    """Spread before the cut: standard deviation over mean. Assumed."""
    output_cv: float
    longest: int = 2048
    """Prompt and output together are shorter than this."""
    from_above: bool = False
    """Prompts crowd below `longest` (texts that were cut to fit), so what is log-normal is what they lack."""

    def rows(self, rng: Generator, times: Times) -> list[TraceRow]:
        """Requests with these lengths at these times."""
        prompts, outputs = self.draw(rng, len(times))
        return workload(times, prompts, outputs)

    def draw(self, rng: Generator, count: int) -> tuple[Lengths, Lengths]:
        """Prompt and output lengths of `count` requests."""
        means = self._means()
        prompts, outputs = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(prompts) < count:
            lengths = self._lengths(means, *rng.standard_normal((2, count)))
            kept = self._kept(*lengths)
            prompts, outputs = (
                np.concatenate([old, new[kept]]) for old, new in zip((prompts, outputs), lengths, strict=True)
            )
        return prompts[:count], outputs[:count]

    def _means(self) -> tuple[float, float]:
        """Means before the cut that give the published ones after it, by integration over quantiles."""
        ends = (np.arange(GRID) + 0.5) / GRID
        normal = np.array([NormalDist().inv_cdf(end) for end in ends])
        prompt_z, output_z = (axis.ravel() for axis in np.meshgrid(normal, normal))
        goal = np.array([self._gap(self.prompt_mean), self.output_mean])
        means = goal.copy()
        for _ in range(ROUNDS):
            prompts, outputs = self._lengths((float(means[0]), float(means[1])), prompt_z, output_z)
            kept = self._kept(prompts, outputs)
            if not kept.any():
                break
            found = np.array([self._gap(float(prompts[kept].mean())), outputs[kept].mean()])
            if np.abs(found / goal - 1).max() < ENOUGH:
                return float(means[0]), float(means[1])
            means = means * goal / found
        raise UserError(
            f"no log-normal cut at {self.longest} tokens has the means of {self.name}: lower its cv"
        )

    def _gap(self, prompt: float) -> float:
        return self.longest - prompt if self.from_above else prompt

    def _lengths(
        self, means: tuple[float, float], prompt_z: Array, output_z: Array
    ) -> tuple[Lengths, Lengths]:
        drawn = []
        for mean, cv, z in ((means[0], self.prompt_cv, prompt_z), (means[1], self.output_cv, output_z)):
            variance = np.log1p(cv**2)
            drawn.append(np.exp(np.minimum(np.log(mean) - variance / 2 + np.sqrt(variance) * z, 40.0)))
        prompts = self.longest - drawn[0] if self.from_above else drawn[0]
        return np.rint(prompts).astype(np.int64), np.maximum(np.rint(drawn[1]), 1).astype(np.int64)

    def _kept(self, prompts: Lengths, outputs: Lengths) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = (prompts >= 1) & (prompts + outputs < self.longest)
        return kept


# Means: DistServe (OSDI 2024), figure 7, with the OPT tokenizer. Spreads: ours.
APPLICATIONS: Mapping[str, Application] = MappingProxyType(
    {
        each.name: each
        for each in (
            Application("sharegpt", 755.5, 200.3, prompt_cv=1.0, output_cv=0.9),
            Application("humaneval", 171.3, 98.2, prompt_cv=0.4, output_cv=0.7),
            Application("longbench", 1738.3, 90.7, prompt_cv=0.5, output_cv=1.0, from_above=True),
        )
    }
)


def application_named(name: str) -> Application:
    """Raises NotFound, with the known names."""
    if name not in APPLICATIONS:
        raise NotFound(f"no application {name!r}; known are {', '.join(APPLICATIONS)}", param="application")
    return APPLICATIONS[name]
