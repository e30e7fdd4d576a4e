"""`ScalingBase`: times of groups of instances that were measured on a machine.

LoongServe's scaling information base (arXiv 2404.09526, section 5), written by `plait profile --groups` and
read by `plait serve --scaling`.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from plait.cost.by_group import ByGroup
from plait.cost.fitted import Fitted
from plait.search.batching import Width
from plait.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class Chunk:
    """The median step of prompts of one size."""

    tokens: int
    """That it computed."""
    cached: int
    """Computed before them."""
    ns: float


@dataclass(frozen=True, slots=True)
class Degree:
    """A group of `sp` instances of `tp` processes each, as a whole."""

    sp: int
    tp: int
    fitted: Fitted
    """Decode steps are those of one instance: groups that decode are mostly one."""
    chunks: tuple[Chunk, ...] = ()
    """What its prefill was fitted to."""

    @property
    def worst(self) -> float:
        """Largest relative difference between a chunk and what `fitted` says of it."""
        return max((abs(self._fit_ns(chunk) / chunk.ns - 1) for chunk in self.chunks), default=0.0)

    def _fit_ns(self, chunk: Chunk) -> float:
        fitted, square = self.fitted, chunk.tokens * (chunk.tokens + 2 * chunk.cached)
        linear = fitted.prefill_token_ns * chunk.tokens + fitted.prefill_cached_ns * chunk.cached
        return fitted.prefill_ns + linear + fitted.prefill_square_ns * square


@dataclass(frozen=True, slots=True)
class ScalingBase:
    """What was measured of one model on one machine."""

    model: str
    machine: str
    threads: int
    dtype: str
    degrees: tuple[Degree, ...]

    def groups(self, tp: int) -> ByGroup:
        """Of instances of `tp` processes.

        Raises:
            UserError: one such instance alone was not measured.
        """
        found = {each.sp: each.fitted for each in self.degrees if each.tp == tp}
        if 1 not in found:
            have = ", ".join(f"sp {each.sp} tp {each.tp}" for each in self.degrees)
            raise UserError(
                f"one instance of tp {tp} alone was not measured (there are: {have}); "
                f"run plait profile --groups 1,... --tp {tp}",
                "scaling",
            )
        return ByGroup(found)

    def widths(self, tp: int) -> tuple[Width, ...]:
        """Times in ns of prompts on groups of instances of `tp` processes. Raises as `groups` does."""
        return tuple(sorted(self.groups(tp).widths, key=lambda width: width.instances))

    def decode_ns(self, tp: int) -> float:
        """A decode step of a few rows with a thousand tokens each. Raises as `groups` does."""
        one = self.groups(tp).models[1]
        return one.decode_ns + 8 * (one.decode_row_ns + 1000 * one.decode_context_ns)

    def save(self, path: Path) -> None:
        """Write it as one JSON object."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @staticmethod
    def load(path: Path) -> "ScalingBase":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or malformed.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=ScalingBase)
        except (OSError, msgspec.DecodeError, ValueError, RecursionError, UserError) as error:
            raise UserError(
                f"{path} holds no times of groups; write one with `plait profile --groups`: {error}",
                "scaling",
            ) from error
