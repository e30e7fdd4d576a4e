"""`RlhfJob`: an iteration of PPO as a planner sees it, and the file that says so.

actor: llama-65b        # names of the catalog, or folders; the reference is the Actor's size
critic: llama-33b       # the reward model is the Critic's size
samples: 512
mini_batches: 8
prompt: 128             # tokens
median: 200             # of responses, lognormal before they are cut at the longest
sigma: 0.9
longest: 1024
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from numpy.random import Generator
from numpy.typing import NDArray

from plait.cost.catalog import shape_named
from plait.sim.rollout import SampleLength
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfJob:
    """See the module."""

    actor: str
    critic: str
    samples: int = 512
    """Of an iteration."""
    mini_batches: int = 8
    """Each is one step of both optimisers."""
    micro_batch: int = 1
    """Samples that pass a pipeline together."""
    prompt: int = 128
    """Tokens of a prompt."""
    median: float = 200.0
    """Tokens of a response."""
    sigma: float = 0.9
    """Of the logarithm of a response's length."""
    longest: int = 1024
    """Tokens at which responses are cut."""

    def __post_init__(self) -> None:
        counts = (self.samples, self.mini_batches, self.micro_batch, self.prompt, self.longest)
        if min(counts) < 1 or min(self.median, self.sigma) <= 0:
            raise UserError("an RLHF job counts from 1, and its lengths are above 0", "job")
        if self.samples % (self.mini_batches * self.micro_batch):
            raise UserError(
                f"{self.samples} samples do not divide into {self.mini_batches} mini-batches of whole "
                f"micro-batches of {self.micro_batch}",
                "mini_batches",
            )

    @property
    def shapes(self) -> tuple[ModelShape, ModelShape]:
        """Of Actor and Critic."""
        return shape_named(self.actor), shape_named(self.critic)

    def draw(self, rng: Generator, count: int) -> list[SampleLength]:
        """Samples of its distribution."""
        return [SampleLength(self.prompt, int(each)) for each in self._responses(rng, count)]

    @property
    def mean_tokens(self) -> float:
        """Of a sample, prompt and response, to a percent or so."""
        return self.prompt + float(self._responses(np.random.default_rng(0), 20_000).mean())

    def _responses(self, rng: Generator, count: int) -> NDArray[np.float64]:
        drawn = np.exp(rng.normal(np.log(self.median), self.sigma, count))
        return np.clip(np.rint(drawn), 1, self.longest)


def read_job(path: Path) -> RlhfJob:
    """Read a job's file.

    Raises:
        UserError: it cannot be read, or a field is unknown, missing or wrong.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the RLHF job {path}: {error}", "job") from error
    if not isinstance(raw, dict):
        raise UserError(f"the RLHF job {path} has no fields; it needs actor and critic", "job")
    known = list(RlhfJob.__dataclass_fields__)
    for key in raw:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"the RLHF job {path} has an unknown field {key}: {hint}", str(key))
    try:
        return msgspec.convert(raw, RlhfJob)
    except msgspec.ValidationError as error:
        raise UserError(f"the RLHF job {path}: {error}", "job") from error
