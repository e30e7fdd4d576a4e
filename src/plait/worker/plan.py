"""`Plan`, `Drawing`: what is done in a step of one instance; `Lineup`: what the next one may go on from.
`GroupPlan`: what one member of a group does in a step; drawn up by `plait.worker.group`.

Legend: see `plait.model.group`; a member's number is its place in the ring, I marks a row's new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.model.group import GroupInputs
from plait.model.inputs import Adapted, StepInputs
from plait.spec.step import Step
from plait.worker.rows import Rows, RowState


@dataclass(frozen=True, slots=True)
class Plan:
    """A step in arrays, one entry a row (rows, then again)."""

    states: list[RowState]
    indices_R: NDArray[np.int64]
    firsts_R: NDArray[np.int64]
    counts_R: NDArray[np.int64]
    draws: list[bool]
    """Which rows draw here."""
    own_R: list[range]
    """Positions that are computed here; none is told where rows go on from the step before."""
    requests: tuple[int, ...] = ()
    """All of a step's, in its order, if it describes none of them."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Which rows of a step draw, and how. D marks them; arrays are named as in `plait.worker.rows`."""

    rows: list[int]
    """Their places in the step."""
    states: list[RowState]
    at_D: NDArray[np.int64]
    """The row of logits that each draws from."""
    indices_D: NDArray[np.int64]
    wishes_D: NDArray[Any]
    streams_D: NDArray[np.uint64]
    plain_D: NDArray[np.int64]
    asking: list[int]
    """Places in D of those that want log-probabilities."""
    tops: list[int]
    """How many likeliest tokens each of these wants."""
    prompts: list[tuple[int, int]]
    """(place in the step, first of its logits) of rows that want log-probabilities of prompt tokens."""

    @staticmethod
    def of(plan: Plan, owned_R: Sequence[slice], rows: Rows) -> "Drawing":
        """Of the rows of a step.

        Args:
            owned_R: of the logits those of each row, the last for what it draws.
        """
        drawing = [r for r, draws in enumerate(plan.draws) if draws]
        states, indices_D = [plan.states[r] for r in drawing], plan.indices_R[drawing]
        tops = {d: state.sampling.logprobs for d, state in enumerate(states)}
        asked = {d: top for d, top in tops.items() if top is not None}
        wants = [r for r, state in enumerate(plan.states) if state.sampling.prompt_logprobs is not None]
        return Drawing(
            rows=drawing,
            states=states,
            at_D=np.array([owned_R[r].stop - 1 for r in drawing], np.int64),
            indices_D=indices_D,
            wishes_D=rows.wishes_R[indices_D],
            streams_D=rows.streams_R[indices_D],
            plain_D=rows.plain_R[indices_D],
            asking=list(asked),
            tops=list(asked.values()),
            prompts=[
                (r, owned_R[r].start) for r in wants if plan.firsts_R[r] < plan.states[r].prompt_tokens - 1
            ],
        )


@dataclass(frozen=True, slots=True)
class Lineup:
    """A decode step, for the next one to go on from where that has the same rows, each one token on."""

    version: int
    """Of the rows."""
    plan: Plan
    inputs: StepInputs
    adapted: Adapted | None
    drawing: Drawing

    def leads_to(self, step: Step, rows: Rows) -> bool:
        """Whether a step has these rows, and nothing was done to them since but computing and drawing."""
        return not step.rows and step.again == self.plan.requests and rows.version == self.version

    def next_plan(self, rows: Rows) -> Plan:
        """The plan of the step that it leads to."""
        last = self.plan
        firsts_R = rows.next_R[last.indices_R]
        return Plan(last.states, last.indices_R, firsts_R, last.counts_R, last.draws, [], last.requests)

    def next_inputs(self, plan: Plan, rows: Rows) -> StepInputs:
        """What that step computes: tokens, positions, slots and lengths are other ones."""
        last, at_R = self.inputs, plan.firsts_R
        return StepInputs(
            tokens_T=torch.from_numpy(rows.tokens_RL[plan.indices_R, at_R].astype(np.int64)),
            positions_T=torch.from_numpy(at_R),
            slots_T=torch.from_numpy(rows.slots(plan.indices_R, at_R)),
            starts_R=last.starts_R,
            lens_R=torch.from_numpy((at_R + 1).astype(np.int32)),
            rows_R=last.rows_R,
            tables_RP=torch.from_numpy(rows.pages_RP),  # a drawn token may have made it grow
            wanted_L=last.wanted_L,
        )


@dataclass(frozen=True, slots=True)
class Shared:
    """A row of the step, as this member sees it."""

    at: int
    """Its place among the rows of the step."""
    state: RowState
    first: int
    count: int
    stride: int
    draws: bool
    """This member draws its next token."""
    master: int
    """Number of the member."""
    held: tuple[int, ...]
    """Tokens before `first` that each member keeps."""
    takers_I: NDArray[np.int64]
    """Member that keeps each new token."""

    def positions(self, member: int) -> range:
        """Positions of new tokens that a member computes."""
        own = self.owned(member)
        return range(self.first + own.start, self.first + own.stop, own.step)

    def owned(self, member: int) -> range:
        """New tokens that a member computes, counted from `first`."""
        if self.stride > 1:
            return range(member, self.count, self.stride)
        return range(self.count if member == self.master else 0)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A member's part of a step."""

    member: int
    """Its number."""
    rows: int
    """Of the step."""
    shares: list[Shared]
    """Those that this member takes part in, in the order of the step."""
    inputs: StepInputs | None
    """None: no token is computed here."""
    group: GroupInputs
    owned_R: list[slice]
    """Of the wanted logits, those of each share."""
    tables_RP: Tensor
    adapted: Adapted | None = None
    """Which own tokens have adapters."""
