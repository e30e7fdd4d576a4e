"""`Onward`: a decode step of a group whose rows are those of the step before it, each one token on.

Who computes, asks and answers what is then as it was; positions, the slots of new tokens and what masters
hold are one further. Such a step is drawn up in a few array operations: anew, it takes as long as three
layers of a small model. Legend: see `plait.worker.group`; M marks rows that are computed here.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from plait.model.inputs import StepInputs
from plait.spec.step import Step
from plait.worker.plan import GroupPlan, Shared
from plait.worker.rows import Rows


@dataclass(frozen=True, slots=True)
class Onward:
    """Goes on from one step."""

    group: tuple[int, ...]
    requests: tuple[int, ...]
    """Of the step, in its order."""
    plan: GroupPlan
    version: int
    """Of the rows."""
    indices_R: NDArray[np.int64]
    nexts_R: NDArray[np.int64]
    """Of the shares: their places in the arrays of `Rows`, and the positions that come next."""
    here_R: NDArray[np.bool_]
    """Which of the shares are computed here."""

    @staticmethod
    def of(step: Step, plan: GroupPlan, rows: Rows) -> "Onward | None":
        """What may follow a step that was planned; None: it is no decode step."""
        shares = plan.shares
        if not all(share.count == share.stride == 1 for share in shares):
            return None
        if any(share.draws != (share.master == plan.member) for share in shares):
            return None  # a prompt's last token but one, or the like
        indices_R = np.fromiter((share.state.index for share in shares), np.int64, len(shares))
        nexts_R = np.fromiter((share.first + 1 for share in shares), np.int64, len(shares))
        here_R = np.fromiter((share.draws for share in shares), bool, len(shares))
        requests = step.requests
        return Onward(step.group, requests, plan, rows.version, indices_R, nexts_R, here_R)

    def leads_to(self, step: Step, rows: Rows) -> bool:
        """Whether a step has the same rows, and nothing was done to them since."""
        return (
            not step.rows
            and step.again == self.requests
            and step.group == self.group
            and rows.version == self.version
            and bool((rows.next_R[self.indices_R] == self.nexts_R).all())
        )

    def next(self, rows: Rows) -> GroupPlan:
        """The plan of the step that it leads to."""
        before, me = self.plan, self.plan.member
        shares = [_one_on(share) for share in before.shares]
        held_M = np.array([share.held[me] for share in shares if share.draws], np.int64)
        inputs = None if before.inputs is None else self._inputs(before.inputs, rows, held_M)
        return replace(
            before,
            shares=shares,
            inputs=inputs,
            group=replace(before.group, places_T=torch.from_numpy(held_M)),
            tables_RP=torch.from_numpy(rows.pages_RP),  # a drawn token may have made it grow
        )

    def _inputs(self, before: StepInputs, rows: Rows, held_M: NDArray[np.int64]) -> StepInputs:
        indices_M, nexts_M = self.indices_R[self.here_R], self.nexts_R[self.here_R]
        assert (held_M < rows.covered_R[indices_M]).all(), "a row has fewer slots than positions"
        assert (nexts_M + 1 == rows.known_R[indices_M]).all(), "a row has fewer or more tokens than positions"
        return replace(
            before,
            tokens_T=torch.from_numpy(rows.tokens_RL[indices_M, nexts_M].astype(np.int64)),
            positions_T=torch.from_numpy(nexts_M),
            slots_T=torch.from_numpy(rows.slots(indices_M, held_M)),
            lens_R=before.lens_R + 1,
            tables_RP=torch.from_numpy(rows.pages_RP),
        )


def _one_on(share: Shared) -> Shared:
    """A row after its master has computed and kept one token."""
    master, held = share.master, share.held
    held = (*held[:master], held[master] + 1, *held[master + 1 :])
    return Shared(share.at, share.state, share.first + 1, 1, 1, share.draws, master, held, share.takers_I)
