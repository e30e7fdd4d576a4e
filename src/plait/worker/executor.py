"""`Executor`: carries out steps on one model. It decides nothing."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.kernels.attention import lanes_of
from plait.model import sample, sample_there
from plait.model.inputs import Adapted, StepInputs
from plait.model.model import Model
from plait.model.sample import Entry, Turn
from plait.model.world import WorldError
from plait.spec.errors import ServiceError, Unsupported
from plait.spec.sampling import Draw, Opened, TokenLogprob
from plait.spec.step import Row, Step
from plait.text.matcher import GrammarFault, Grammars, Matcher
from plait.text.tokenizer import Tokenizer
from plait.worker.exchange import Exchange
from plait.worker.group import Planner
from plait.worker.plan import GroupPlan
from plait.worker.rows import Rows, RowState
from plait.worker.wire import Source


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
    """Which rows draw here."""
    own_R: list[range]
    """Positions that are computed here."""


class Executor:
    """One model with the state of its open rows.

    Rows of a step take their tokens from their own state: the token of
    position p is the p-th of the row's prompt and draws.
    """

    def __init__(self, model: Model, instance: int) -> None:
        self.model, self.instance, self.threads = model, instance, model.config.threads
        self.draws_there = model.device.type != "cpu"
        """Tokens are drawn where the logits are, unless their rows alter them."""
        self.rows = Rows(instance, model.pool.page, model.pool.slots)
        self.exchange: Exchange | None = None
        """The way to the other members of a group."""
        lanes = lanes_of(model.pool.layers[0], model.pool.head_sizes[0]) if not self.draws_there else 1
        self._planner = Planner(instance, self.rows, lanes)
        self._folder = model.config.folder
        self._grammars: Grammars | None = None
        """Made for the first row that has one."""

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
            for request in dict.fromkeys((*step.opened, *(r.request for r in step.rows), *step.again)):
                self.rows.forget(request, request in step.opened)
            reason = str(error) or type(error).__name__
            raise StepFault(f"step {step.id} failed: {type(error).__name__}: {reason}") from error

    def _run(self, step: Step, opened: tuple[Opened, ...], members: tuple[Source, ...]) -> tuple[Draw, ...]:
        assert self.instance in step.group, f"group {step.group} came to instance {self.instance}"
        if len(step.group) > 1:
            return self._run_together(step, opened, members)
        self._take_rows(step, opened)
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
            plan = self._planner.plan(step)
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
        return self._draw(self._drawn(plan), logits_LV, plan.owned_R)

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
        inputs, wanted_R = self._inputs(plan)
        adapted = Adapted.of_rows(self.rows.adapter_R[plan.indices_R], plan.counts_R)
        return self._draw(plan, self.model.forward(inputs, adapted), wanted_R)

    def _plan(self, step: Step) -> Plan:
        states = [self._described(row, row.request in step.opened) for row in step.rows]
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
        own_R = [range(first, past) for first, past in zip(firsts_R.tolist(), pasts_R.tolist(), strict=True)]
        return Plan(states, indices_R, firsts_R, counts_R, draws, own_R)

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
        vocab, faults = logits_LV.shape[1], dict[int, str]()
        turns = {r: self._turn(r, owned_R[r].stop - 1, plan, vocab, faults) for r in _drawing(plan)}
        tokens = dict(zip(turns, self._tokens(logits_LV, list(turns.values())), strict=True))
        tops = {r: turn.params.logprobs for r, turn in turns.items() if turn.params.logprobs is not None}
        entries = [Entry(turns[r].at, tokens[r], top) for r, top in tops.items()]
        logprobs = dict(zip(tops, self._logprobs(logits_LV, entries), strict=True))
        answers = []
        for r, state in enumerate(plan.states):
            prompt_logprobs = self._logprobs(logits_LV, self._prompt_entries(plan, r, owned_R[r].start))
            if r not in tokens:
                answers.append(Draw((), prompt_logprobs=prompt_logprobs))
                continue
            self.rows.append(state.index, tokens[r])
            own = (logprobs[r],) if r in logprobs else ()
            stopped, fault = tokens[r] in state.stop_ids, faults.get(r, "")
            answers.append(Draw((tokens[r],), stopped, own, prompt_logprobs, fault))
        return tuple(answers)

    def _turn(self, r: int, at: int, plan: Plan, vocab: int, faults: dict[int, str]) -> Turn:
        """How row `r` of the step draws from row `at` of its logits. `faults` learns why it cannot go on."""
        state = plan.states[r]
        known, allowed_V = self.rows.known(state.index), None
        if state.sampling.grammar:
            try:
                allowed_V = self._matcher(state).allowed(known[state.prompt_tokens :], vocab)
            except GrammarFault as fault:
                faults[r] = str(fault)
                allowed_V = np.isin(np.arange(vocab), state.stop_ids)
        return Turn(at, state.sampling, known, state.prompt_tokens, state.stop_ids, allowed_V)

    def _matcher(self, state: RowState) -> Matcher:
        """Found again from the row's tokens, wherever it drew them."""
        if self._grammars is None:
            self._grammars = Grammars(Tokenizer.load(self._folder))
        if state.matcher is None:
            state.matcher = self._grammars.matcher(state.sampling.grammar, state.stop_ids)
        return state.matcher

    def _tokens(self, logits_LV: Tensor, turns: list[Turn]) -> list[int]:
        if self.draws_there:
            return sample_there.draw_rows(logits_LV, turns, self.threads)
        return sample.draw_rows(logits_LV.numpy(), turns, self.threads)

    def _logprobs(self, logits_LV: Tensor, entries: list[Entry]) -> tuple[TokenLogprob, ...]:
        if not entries:
            return ()
        return tuple(sample.logprobs(*sample_there.brought(logits_LV, entries), self.threads))

    def _prompt_entries(self, plan: Plan, r: int, start: int) -> list[Entry]:
        """The prompt's tokens that this step's positions precede, if the row asks for them."""
        state = plan.states[r]
        top = state.sampling.prompt_logprobs
        if top is None:
            return []
        known, past = self.rows.known(state.index), state.prompt_tokens - 1
        own = enumerate(plan.own_R[r], start)
        return [Entry(at, int(known[p + 1]), top) for at, p in own if p < past]


def _drawing(plan: Plan) -> list[int]:
    """Rows of a step that draw here."""
    return [r for r, draws in enumerate(plan.draws) if draws]
