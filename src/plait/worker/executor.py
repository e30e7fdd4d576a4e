"""`Executor`: carries out steps on one model. It decides nothing."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.model.inputs import StepInputs
from plait.model.model import Model
from plait.model.sample import draw, logprob
from plait.model.sample_there import draw_rows, drawable
from plait.spec.errors import ServiceError
from plait.spec.sampling import Draw, Opened, TokenLogprob
from plait.spec.step import Row, Step
from plait.worker.rows import Rows, RowState


class StepFault(ServiceError):
    """A step could not be carried out; the executor has forgotten every row of it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A step in arrays, one entry a row (rows, then again)."""

    states: list[RowState]
    indices_R: NDArray[np.int64]
    firsts_R: NDArray[np.int64]
    counts_R: NDArray[np.int64]
    draws: list[bool]


class Executor:
    """One model with the state of its open rows.

    Groups of one instance only. Rows of a step take their tokens from their own state: the token of
    position p is the p-th of the row's prompt and draws.
    """

    def __init__(self, model: Model, instance: int) -> None:
        self.model, self.instance = model, instance
        self.draws_there = model.device.type != "cpu"
        """Tokens are drawn where the logits are, as far as that knows their wishes."""
        self.rows = Rows(instance, model.pool.page, model.pool.slots)

    def run(self, step: Step, opened: tuple[Opened, ...]) -> tuple[Draw, ...]:
        """Carry out a step: forget `closed`, open `opened`, compute, draw.

        Args:
            opened: the state of each request in `step.opened`.

        Returns:
            One draw for each row, in the order of `step.rows`, then `step.again`.

        Raises:
            StepFault: anything went wrong. Every row of the step is forgotten; others live on.
        """
        try:
            return self._run(step, opened)
        except Exception as error:
            for request in (*step.closed, *step.opened, *(r.request for r in step.rows), *step.again):
                self.rows.close(request)
            reason = str(error) or type(error).__name__
            raise StepFault(f"step {step.id} failed: {type(error).__name__}: {reason}") from error

    def _run(self, step: Step, opened: tuple[Opened, ...]) -> tuple[Draw, ...]:
        assert step.group == (self.instance,), (
            f"group {step.group}: only groups of one instance are supported"
        )
        for request in step.closed:
            self.rows.close(request)
        assert tuple(o.request for o in opened) == step.opened, "opened states do not match the step"
        for state in opened:
            self.rows.open(state)
        plan = self._plan(step)
        if not plan.states:
            return ()
        inputs, wanted_R = self._inputs(plan)
        logits_LV = self.model.forward(inputs)
        draws = self._draw(plan, logits_LV, wanted_R)
        self.rows.next_R[plan.indices_R] = plan.firsts_R + plan.counts_R
        return draws

    def _plan(self, step: Step) -> Plan:
        states = [self._described(row) for row in step.rows]
        states += [self.rows.states[request] for request in step.again]
        indices_R = np.fromiter((state.index for state in states), np.int64, len(states))
        described = len(step.rows)
        firsts_R, counts_R = self.rows.next_R[indices_R], np.ones(len(states), np.int64)
        firsts_R[:described] = [row.first for row in step.rows]
        counts_R[:described] = [row.count for row in step.rows]
        pasts_R = firsts_R + counts_R
        assert len({state.index for state in states}) == len(states), "a request stands twice in the step"
        assert (counts_R > 0).all(), "a row computes nothing"
        assert (pasts_R <= self.rows.covered_R[indices_R]).all(), "a row has fewer slots than positions"
        assert (pasts_R <= self.model.max_len).all(), "a row is longer than the model's context"
        assert (pasts_R <= self.rows.known_R[indices_R]).all(), "a row has fewer tokens than positions"
        draws = [row.draws for row in step.rows] + [True] * len(step.again)
        ends_R = pasts_R == self.rows.known_R[indices_R]
        assert all(end or not wants for end, wants in zip(ends_R, draws, strict=True)), (
            "a row draws too early"
        )
        return Plan(states, indices_R, firsts_R, counts_R, draws)

    def _described(self, row: Row) -> RowState:
        assert row.stride == 1, "strides other than 1 are not supported"
        assert row.master == self.instance, "a row's master is not of its group"
        state = self.rows.states[row.request]
        for span in row.spans:
            self.rows.extend(state, span)
        return state

    def _inputs(self, plan: Plan) -> tuple[StepInputs, list[slice]]:
        """The step's tensors, and which of the wanted logits each row owns."""
        rows, total = self.rows, int(plan.counts_R.sum())
        starts_R = np.zeros(len(plan.states) + 1, np.int64)
        np.cumsum(plan.counts_R, out=starts_R[1:])
        rows_T = np.repeat(plan.indices_R, plan.counts_R)
        at_T = np.arange(total) + np.repeat(plan.firsts_R - starts_R[:-1], plan.counts_R)
        wanted, owned_R = [], []
        for r, state in enumerate(plan.states):
            past = int(starts_R[r + 1])
            first = past - 1 if plan.draws[r] else past
            if state.sampling.prompt_logprobs is not None and plan.firsts_R[r] < state.prompt_tokens - 1:
                first = int(starts_R[r])
            owned_R.append(slice(len(wanted), len(wanted) + past - first))
            wanted.extend(range(first, past))
        inputs = StepInputs(
            tokens_T=torch.from_numpy(rows.tokens_RL[rows_T, at_T].astype(np.int64)),
            positions_T=torch.from_numpy(at_T),
            slots_T=torch.from_numpy(rows.slots(rows_T, at_T)),
            starts_R=torch.from_numpy(starts_R.astype(np.int32)),
            lens_R=torch.from_numpy((plan.firsts_R + plan.counts_R).astype(np.int32)),
            rows_R=torch.from_numpy(plan.indices_R.astype(np.int32)),
            tables_RP=torch.from_numpy(rows.pages_RP),
            wanted_L=torch.tensor(wanted, dtype=torch.int64),
        )
        return inputs, owned_R

    def _draw(self, plan: Plan, logits_LV: Tensor, owned_R: list[slice]) -> tuple[Draw, ...]:
        if not len(logits_LV):
            return tuple(Draw(()) for _ in plan.states)
        best_L = logits_LV.argmax(-1)
        # The largest of a row that holds a NaN is NaN: one look at the winners finds it.
        assert bool(logits_LV.gather(1, best_L[:, None]).isfinite().all()), "logits are not finite"
        best = best_L.tolist()
        there = self._draw_there(plan, logits_LV, owned_R) if self.draws_there else {}
        # Logits leave the device only for rows that wish for what is drawn on the host.
        here = any(not state.plain and r not in there for r, state in enumerate(plan.states))
        logits = logits_LV.cpu().numpy() if here else None
        answers = []
        for r, state in enumerate(plan.states):
            owned = owned_R[r]
            if state.plain:
                answers.append(self._end(state, best[owned.start], ()) if plan.draws[r] else Draw(()))
            elif r in there:
                answers.append(self._end(state, there[r], ()))
            else:
                answers.append(self._draw_row(state, plan, r, logits[owned]))
        return tuple(answers)

    def _draw_there(self, plan: Plan, logits_LV: Tensor, owned_R: list[slice]) -> dict[int, int]:
        """Row of the plan -> its token, for rows that can be drawn without the host."""
        rows = [
            r for r, s in enumerate(plan.states) if plan.draws[r] and not s.plain and drawable(s.sampling)
        ]
        if not rows:
            return {}
        at = torch.tensor([owned_R[r].stop - 1 for r in rows], device=logits_LV.device)
        states = [plan.states[r] for r in rows]
        lengths = [int(self.rows.known_R[state.index]) for state in states]
        tokens = draw_rows(logits_LV[at], [state.sampling for state in states], lengths)
        return dict(zip(rows, tokens, strict=True))

    def _draw_row(self, state: RowState, plan: Plan, r: int, logits_LV: NDArray[np.float32]) -> Draw:
        """Draw with all of the row's wishes; the row's last logits are those of its next token."""
        params, known = state.sampling, self.rows.known(state.index)
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        first = int(plan.firsts_R[r])
        if params.prompt_logprobs is not None and first < state.prompt_tokens - 1:
            count = min(int(plan.counts_R[r]), state.prompt_tokens - 1 - first)
            prompt_logprobs = tuple(
                logprob(logits_LV[i], int(known[first + 1 + i]), params.prompt_logprobs) for i in range(count)
            )
        if not plan.draws[r]:
            return Draw((), prompt_logprobs=prompt_logprobs)
        token = draw(logits_LV[-1], params, known, state.prompt_tokens, state.stop_ids)
        logprobs = () if params.logprobs is None else (logprob(logits_LV[-1], token, params.logprobs),)
        return self._end(state, token, logprobs, prompt_logprobs)

    def _end(
        self,
        state: RowState,
        token: int,
        logprobs: tuple[TokenLogprob, ...],
        prompt_logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Draw:
        self.rows.append(state.index, token)
        return Draw((token,), token in state.stop_ids, logprobs, prompt_logprobs)
