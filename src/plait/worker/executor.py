"""`Executor`: carries out steps on one model. It decides nothing."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.kernels.attention import lanes_of
from plait.model.inputs import Adapted, StepInputs
from plait.model.model import Model
from plait.model.world import WorldError
from plait.spec.errors import ServiceError, Unsupported
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Row, Step
from plait.worker.drawer import Drawer
from plait.worker.exchange import Exchange
from plait.worker.group import Planner
from plait.worker.plan import Drawing, GroupPlan, Lineup, Plan
from plait.worker.rows import Rows, RowState
from plait.worker.wire import Source


class StepFault(ServiceError):
    """A step could not be carried out; the executor has forgotten every row of it."""


class Executor:
    """One model with the state of its open rows.

    Rows of a step take their tokens from their own state: the token of
    position p is the p-th of the row's prompt and draws.
    """

    def __init__(self, model: Model, instance: int) -> None:
        self.model, self.instance = model, instance
        on_cpu = model.device.type == "cpu"
        self.rows = Rows(instance, model.pool.page, model.pool.slots)
        self.drawer = Drawer(self.rows, model.config.folder, model.config.threads, there=not on_cpu)
        self.exchange: Exchange | None = None
        """The way to the other members of a group."""
        lanes = lanes_of(model.pool.layers[0], model.pool.head_sizes[0]) if on_cpu else 1
        self._planner = Planner(instance, self.rows, lanes)
        self._lineup: Lineup | None = None
        """The step before, if the one at hand goes on from it or the next one may."""

    def run(
        self, step: Step, opened: tuple[Opened, ...], members: tuple[Source, ...] = ()
    ) -> tuple[Draw, ...]:
        """Carry out a step: forget `closed`, open `opened`, compute, draw.

        Args:
            opened: the state of each request in `step.opened`.
            members: all workers of the step's group, where it has several instances.

        Returns:
            One draw for each row, in the order of `step.rows`, then `step.again`.

        Raises:
            StepFault: anything went wrong. Every row of the step is forgotten; others live on.
            WorldError: other processes of the instance are gone or out of step.
        """
        try:
            return self._run(step, opened, members)
        except WorldError:
            raise  # nothing can be carried out any more
        except Exception as error:
            for request in step.closed:
                self.rows.close(request)
            for request in dict.fromkeys((*step.opened, *step.requests)):
                self.rows.forget(request, request in step.opened)
            reason = str(error) or type(error).__name__
            raise StepFault(f"step {step.id} failed: {type(error).__name__}: {reason}") from error

    def _run(self, step: Step, opened: tuple[Opened, ...], members: tuple[Source, ...]) -> tuple[Draw, ...]:
        assert self.instance in step.group, f"group {step.group} came to instance {self.instance}"
        if len(step.group) > 1:
            return self._run_together(step, opened, members)
        self._take_rows(step, opened)
        if self.model.config.rank.pp == 1:
            return self._rounds(step)
        assert step.repeat == 1, "stages do not know in time what the last one drew"
        return self._round(step)

    def _rounds(self, step: Step) -> tuple[Draw, ...]:
        """Round after round, without those that have drawn a stop token."""
        found: dict[int, list[Draw]] = {request: [] for request in step.requests}
        for number in range(step.repeat):
            if number:
                step = replace(step, rows=(), again=step.requests, opened=())
            step = self._going(step)
            for request, draw in zip(step.requests, self._round(step), strict=True):
                found[request].append(draw)
                if draw.stopped:
                    self.rows.stopped.add(request)
        return tuple([joined(draws) for draws in found.values()])

    def _going(self, step: Step) -> Step:
        """A round without rows that have stopped. Nobody wants what follows; and where they stopped before a
        step's last round, the next step, made before that was known, presumes tokens that they lack."""
        stopped = self.rows.stopped
        if stopped.isdisjoint(step.requests):
            return step
        rows = tuple([row for row in step.rows if row.request not in stopped])
        return replace(step, rows=rows, again=tuple([each for each in step.again if each not in stopped]))

    def _round(self, step: Step) -> tuple[Draw, ...]:
        """One forward."""
        plan = self._plan(step)
        if not plan.states:
            return ()
        draws = self._compute(plan)
        self.rows.next_R[plan.indices_R] = plan.firsts_R + plan.counts_R
        return draws

    def _take_rows(self, step: Step, opened: tuple[Opened, ...]) -> None:
        """Forget rows, and open others."""
        for request in step.closed:
            self.rows.close(request)
        assert tuple(o.request for o in opened) == step.opened, "opened states do not match the step"
        elastic = {row.request for row in step.rows if row.keep}
        for state in opened:
            assert state.adapter in self.model.adapters, f"adapter {state.adapter} is not here"
            if state.request in elastic:
                self.rows.close(state.request)  # what was known of it does not count any more
            self.rows.open(state)

    def _run_together(
        self, step: Step, opened: tuple[Opened, ...], members: tuple[Source, ...]
    ) -> tuple[Draw, ...]:
        """As a member of a group. The others learn at once of a step that is not carried out here."""
        assert self.exchange is not None, "groups need an exchange"
        if self.model.refusal_of_groups:
            raise Unsupported(f"no groups of instances: {self.model.refusal_of_groups}", "model")
        self.exchange.begin(step.id, self._column(step, members))
        try:
            self._take_rows(step, opened)
            plan, self._lineup = self._planner.plan(step), None
            draws = self._compute_together(plan, self.exchange)
            self._planner.done(plan, step.group)
        except Exception:
            self.exchange.abandon()
            raise
        answers = [Draw(())] * plan.rows
        for share, draw in zip(plan.shares, draws, strict=True):
            answers[share.at] = draw
        return tuple(answers)

    def _column(self, step: Step, members: tuple[Source, ...]) -> list[Source | None]:
        """Of each member the worker with this one's share of heads; None for this one, and who is lost."""
        rank = self.model.config.rank
        found = {tuple(int(part) for part in each.identity.split(b".")): each for each in members}
        sizes = {instance: sum(i == instance for i, _, _ in found) for instance, _, _ in found}
        assert rank.pp == 1 and set(sizes.values()) == {rank.tp}, (  # noqa: PT018
            "instances of a group have equal tp and pp 1"
        )
        mine = {i: each for (i, _, column), each in found.items() if column == rank.column}
        return [None if i == self.instance else mine.get(i) for i in step.group]

    def _compute_together(self, plan: GroupPlan, exchange: Exchange) -> tuple[Draw, ...]:
        logits_LV = self._forward_together(plan, exchange)
        exchange.end()
        drawn = self._drawn(plan)
        return self._draw(drawn, logits_LV, Drawing.of(drawn, plan.owned_R, self.rows))

    def _forward_together(self, plan: GroupPlan, exchange: Exchange) -> Tensor:
        return self.model.forward_together(plan.inputs, plan.group, plan.tables_RP, exchange, plan.adapted)

    def _drawn(self, plan: GroupPlan) -> Plan:
        """A member's plan as its draws need it."""
        shares = plan.shares
        firsts_R = np.array([share.first for share in shares], np.int64)
        counts_R = np.array([share.count for share in shares], np.int64)
        indices_R = np.array([share.state.index for share in shares], np.int64)
        own_R = [share.positions(plan.member) for share in shares]
        return Plan(
            [share.state for share in shares], indices_R, firsts_R, counts_R, [s.draws for s in shares], own_R
        )

    def _compute(self, plan: Plan) -> tuple[Draw, ...]:
        if (last := self._lineup) is not None:
            inputs, adapted, drawing = last.next_inputs(plan, self.rows), last.adapted, last.drawing
        else:
            inputs, owned_R = self._inputs(plan)
            adapted = Adapted.of_rows(self.rows.adapter_R[plan.indices_R], plan.counts_R)
            drawing = Drawing.of(plan, owned_R, self.rows)
            if plan.requests:
                self._lineup = Lineup(self.rows.version, plan, inputs, adapted, drawing)
        return self._draw(plan, self.model.forward(inputs, adapted), drawing)

    def _plan(self, step: Step) -> Plan:
        last = self._lineup
        if last is not None and last.leads_to(step, self.rows):
            return self._checked(last.next_plan(self.rows))
        self._lineup = None
        return self._checked(self._plan_anew(step))

    def _plan_anew(self, step: Step) -> Plan:
        states = [self._described(row, row.request in step.opened) for row in step.rows]
        states += [self.rows.states[request] for request in step.again]
        indices_R = np.fromiter((state.index for state in states), np.int64, len(states))
        described = len(step.rows)
        firsts_R, counts_R = self.rows.next_R[indices_R], np.ones(len(states), np.int64)
        firsts_R[:described] = [row.first for row in step.rows]
        counts_R[:described] = [row.count for row in step.rows]
        draws = [row.draws for row in step.rows] + [True] * len(step.again)
        ranges = zip(firsts_R.tolist(), (firsts_R + counts_R).tolist(), strict=True)
        assert len({state.index for state in states}) == len(states), "a request stands twice in the step"
        assert (counts_R > 0).all(), "a row computes nothing"
        requests = () if step.rows else step.again
        return Plan(states, indices_R, firsts_R, counts_R, draws, [range(*each) for each in ranges], requests)

    def _checked(self, plan: Plan) -> Plan:
        pasts_R, known_R = plan.firsts_R + plan.counts_R, self.rows.known_R[plan.indices_R]
        assert (pasts_R <= self.rows.covered_R[plan.indices_R]).all(), "a row has fewer slots than positions"
        assert (pasts_R <= self.model.max_len).all(), "a row is longer than the model's context"
        assert (pasts_R <= known_R).all(), "a row has fewer tokens than positions"
        assert (pasts_R == known_R)[plan.draws].all(), "a row draws too early"
        return plan

    def _described(self, row: Row, opened: bool) -> RowState:
        assert row.stride == 1, "strides other than 1 are not supported"
        assert row.master == self.instance, "a row's master is not of its group"
        state = self.rows.states[row.request]
        for span in row.spans:
            self.rows.extend(state, span)
        if opened:
            self.rows.describe(state, row)
        state.master = row.master
        assert not state.others, "other instances keep some of the row"
        return state

    def _inputs(self, plan: Plan) -> tuple[StepInputs, list[slice]]:
        """The step's tensors, and which of the wanted logits each row owns."""
        rows, total = self.rows, int(plan.counts_R.sum())
        starts_R = np.zeros(len(plan.states) + 1, np.int64)
        np.cumsum(plan.counts_R, out=starts_R[1:])
        rows_T = np.repeat(plan.indices_R, plan.counts_R)
        at_T = np.arange(total) + np.repeat(plan.firsts_R - starts_R[:-1], plan.counts_R)
        wanted, owned_R = self._wanted(plan, starts_R)
        inputs = StepInputs(
            tokens_T=torch.from_numpy(rows.tokens_RL[rows_T, at_T].astype(np.int64)),
            positions_T=torch.from_numpy(at_T),
            slots_T=torch.from_numpy(rows.slots(rows_T, at_T)),
            starts_R=torch.from_numpy(starts_R.astype(np.int32)),
            lens_R=torch.from_numpy((plan.firsts_R + plan.counts_R).astype(np.int32)),
            rows_R=torch.from_numpy(plan.indices_R.astype(np.int32)),
            tables_RP=torch.from_numpy(rows.pages_RP),
            wanted_L=torch.from_numpy(wanted),
        )
        return inputs, owned_R

    @staticmethod
    def _wanted(plan: Plan, starts_R: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[slice]]:
        """The tokens whose logits are wanted, and which of these each row owns."""
        pasts_R = starts_R[1:]
        firsts_R = pasts_R - np.array(plan.draws, np.int64)
        for r, state in enumerate(plan.states):
            if state.sampling.prompt_logprobs is not None and plan.firsts_R[r] < state.prompt_tokens - 1:
                firsts_R[r] = starts_R[r]
        ends_R = np.cumsum(pasts_R - firsts_R)
        wanted = np.arange(ends_R[-1]) + np.repeat(pasts_R - ends_R, pasts_R - firsts_R)
        begins = [0, *ends_R.tolist()]
        return wanted, [slice(*each) for each in itertools.pairwise(begins)]

    def _draw(self, plan: Plan, logits_LV: Tensor, drawing: Drawing) -> tuple[Draw, ...]:
        return self.drawer.draw(plan, logits_LV, drawing)


def joined(draws: Sequence[Draw]) -> Draw:
    """What a row drew in one round after another."""
    if len(draws) == 1:
        return draws[0]
    if not draws:
        return Draw(())
    return Draw(
        tokens=tuple([token for draw in draws for token in draw.tokens]),
        stopped=draws[-1].stopped,
        logprobs=tuple([each for draw in draws for each in draw.logprobs]),
        prompt_logprobs=draws[0].prompt_logprobs,
        fault=draws[-1].fault,
    )
