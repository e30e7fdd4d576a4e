"""`Drawer`: from the logits of a step to what its rows drew, for all rows at once.

Legend: L rows of logits, V tokens of the vocabulary, R rows of the step, D rows that draw.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plait.model import sample, sample_there
from plait.model.sample import Round, Turn, shares
from plait.spec.sampling import Draw, TokenLogprob
from plait.text.matcher import GrammarFault, Grammars, Matcher
from plait.text.tokenizer import Tokenizer
from plait.worker.plan import Drawing, Plan
from plait.worker.rows import Rows, RowState


class Drawer:
    """Draws for the rows of one model, and adds to them what they drew."""

    def __init__(self, rows: Rows, folder: str, threads: int, there: bool) -> None:
        """`there`: tokens are drawn where the logits are, unless their rows alter them."""
        self.there = there
        self._rows, self._folder, self._threads = rows, folder, threads
        self._grammars: Grammars | None = None
        """Made for the first row that has one."""

    def draw(self, plan: Plan, logits_LV: Tensor, drawing: Drawing) -> tuple[Draw, ...]:
        """One answer for each row."""
        answers = [Draw(())] * len(plan.states)
        if drawing.rows:
            for r, answer in zip(drawing.rows, self._answers(drawing, logits_LV), strict=True):
                answers[r] = answer
        for r, start in drawing.prompts:
            told = self._of_prompt(plan, r, start, logits_LV)
            answers[r] = replace(answers[r], prompt_logprobs=told)
        return tuple(answers)

    def _answers(self, drawing: Drawing, logits_LV: Tensor) -> list[Draw]:
        faults: dict[int, str] = {}
        drawn = self._round(drawing, logits_LV.shape[1], faults)
        if self.there:
            tokens_D = sample_there.draw_rows(logits_LV, drawn, self._threads)
        else:
            tokens_D = sample.draw_rows(logits_LV.numpy(), drawn, self._threads)
        logprobs = self._logprobs(drawing, logits_LV, tokens_D)
        self._rows.append(drawing.indices_D, tokens_D)
        return [
            Draw((token,), token in state.stop_ids, logprobs.get(d, ()), (), faults.get(d, ""))
            for d, (state, token) in enumerate(zip(drawing.states, tokens_D.tolist(), strict=True))
        ]

    def _round(self, drawing: Drawing, vocab: int, faults: dict[int, str]) -> Round:
        """How rows draw. `faults` learns which cannot go on, and why."""
        known_D, wishes_D = self._rows.known_R[drawing.indices_D], drawing.wishes_D.copy()
        wishes_D["share"] = shares(drawing.streams_D, known_D)
        altering = np.flatnonzero(known_D < drawing.plain_D).tolist()
        turns = {d: self._turn(d, drawing.states[d], vocab, faults) for d in altering}
        return Round(drawing.at_D, wishes_D, turns)

    def _turn(self, d: int, state: RowState, vocab: int, faults: dict[int, str]) -> Turn:
        known, allowed_V = self._rows.known(state.index), None
        if state.sampling.grammar:
            try:
                allowed_V = self._matcher(state).allowed(known[state.prompt_tokens :], vocab)
            except GrammarFault as fault:
                faults[d] = str(fault)
                allowed_V = np.isin(np.arange(vocab), state.stop_ids)
        return Turn(state.sampling, known, state.prompt_tokens, state.stop_ids, allowed_V)

    def _matcher(self, state: RowState) -> Matcher:
        """Found again from the row's tokens, wherever it drew them."""
        if self._grammars is None:
            self._grammars = Grammars(Tokenizer.load(self._folder))
        if state.matcher is None:
            state.matcher = self._grammars.matcher(state.sampling.grammar, state.stop_ids)
        return state.matcher

    def _logprobs(
        self, drawing: Drawing, logits_LV: Tensor, tokens_D: NDArray[np.int64]
    ) -> dict[int, tuple[TokenLogprob]]:
        """Place of a row -> how likely its token was, where it asks for that."""
        asking = drawing.asking
        if not asking:
            return {}
        logits, at = sample_there.brought(logits_LV, drawing.at_D[asking])
        found = sample.logprobs(logits, at, tokens_D[asking], drawing.tops, self._threads)
        return {d: (each,) for d, each in zip(asking, found, strict=True)}

    def _of_prompt(self, plan: Plan, r: int, start: int, logits_LV: Tensor) -> tuple[TokenLogprob, ...]:
        """How likely the prompt's tokens were that this step's positions precede."""
        state = plan.states[r]
        top = state.sampling.prompt_logprobs
        assert top is not None, "a row that asks"
        positions = [(at, p) for at, p in enumerate(plan.own_R[r], start) if p < state.prompt_tokens - 1]
        if not positions:
            return ()
        at_T, before_T = np.array(positions, np.int64).T
        tokens_T = self._rows.known(state.index)[before_T + 1].astype(np.int64)
        logits, at = sample_there.brought(logits_LV, np.ascontiguousarray(at_T))
        return tuple(sample.logprobs(logits, at, tokens_T, [top] * len(tokens_T), self._threads))
