"""`GroupTapes`: decode steps of one member of a group as tapes, as `plait.model.decode` plays those of an
instance alone.

A tape is recorded without the others: its exchanges are calls to a `Dialogue`, which is laid out anew for
each step. Members with another tape, or none, notice nothing. Sizes are padded with idle rows and idle
queries, which nobody sees: only the bytes that are there travel.

Legend: B own rows, Q queries of others; see also `plait.model.group`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.kernels import attention as kernels
from plait.kernels.calls import Calls
from plait.model.check import agree
from plait.model.decode import SIZES, fill, fill_tables, idle_inputs
from plait.model.dialogue import Dialogue, Piece, Script, Strip
from plait.model.group import Form, GroupAttention, GroupInputs, Peers, Question, Service, Together
from plait.model.inputs import StepInputs
from plait.model.pool import KvPool
from plait.model.tape import CannotRecord, Recorder, Tape

log = logging.getLogger(__name__)

QUERIES = (0, *(1 << n for n in range(9)))
"""Queries of others that get a tape of their own."""
Compute = Callable[[StepInputs | None, Together], Tensor]
"""A step as `Model` computes it: logits of the wanted tokens."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a tape is for."""

    rows: int
    """Own ones, idle ones included; 0: only the queries of others are answered."""
    queries: int
    """Of others, idle ones included."""
    asked: int
    """Members that own queries go to."""


class Alone:
    """Peers of a member that is not spoken to."""

    room = 1
    layer = -1

    def push(self, member: int, x: Tensor) -> None:
        """See `Peers`."""
        raise AssertionError("nobody is there")

    def settle(self, receives: object = ()) -> None:
        """See `Peers`."""
        assert not receives, "nobody is there"

    def near(self, told: object, heard: object) -> bool:
        """See `Peers`."""
        return False

    def dialogue(self, script: Script) -> Dialogue:
        """See `Peers`."""
        return self

    def ask(self, layer: int) -> None:
        """See `Dialogue`."""

    def hear(self, layer: int) -> None:
        """See `Dialogue`."""

    def answer(self, layer: int) -> None:
        """See `Dialogue`."""


@dataclass(frozen=True, slots=True)
class Strips:
    """Where what is said and heard lies, layer by layer."""

    asks: Strip
    questions: Strip
    answers: tuple[Strip, ...]
    """Outputs, log-sum-exps."""
    replies: tuple[tuple[Strip, Strip], ...]
    """Likewise, of each member that is asked."""

    @staticmethod
    def of(said: "ScriptedAttention") -> "Strips":
        """Of an attention that was recorded in all layers."""
        layers = said.layers
        replies = tuple((Strip.of([out] * layers), Strip.of([lse] * layers)) for out, lse in said.replies)
        answers = tuple(map(Strip.of, zip(*said.answers, strict=True)))
        return Strips(Strip.of(said.asked), Strip.of([said.questions_QHD] * layers), answers, replies)


class ScriptedAttention(GroupAttention):
    """Writes on a tape what `GroupAttention` does in a decode step, exchanges left out."""

    def __init__(
        self, page: int, threads: int, size: Size, recorder: Recorder, form: Form, head_size: int
    ) -> None:
        super().__init__(page, threads)
        self._size, self._recorder = size, recorder
        self.dialogue: Dialogue | None = None
        self.asked: list[Tensor] = []
        """Own queries [B, H, D] of each layer."""
        self.answers: list[tuple[Tensor, Tensor]] = []
        """To others: outputs [Q, H, D] and log-sum-exps [Q, H] of each layer."""
        heads = form.heads
        self.questions_QHD = torch.zeros(size.queries, heads, head_size, dtype=form.dtype)
        self.replies = [
            (torch.zeros(size.rows, heads, head_size), torch.full((size.rows, heads), -torch.inf))
            for _ in range(size.asked)
        ]
        """Of each member that is asked; a row that it was not asked about has minus infinity."""
        self.layers = 0
        """That were written."""

    def __call__(
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        form: Form,
        own: tuple[Tensor, ...] | None,
        together: Together,
    ) -> tuple[Tensor, Tensor]:
        """See `GroupAttention`."""
        group, layer = together.inputs, self.layers
        self.layers += 1
        if own is not None:
            q_THD = q_THD.contiguous()
            self.asked.append(q_THD)
            self._recorder.then(self._ask, layer)
            part = self.partial(q_THD, kv_BKXE, form, (*own, group.places_T))
        self._recorder.then(self._hear, layer)
        if group.service is not None:
            served = group.service
            step = (together.tables_RP, served.rows_R, served.starts_R, served.lens_R, served.places_Q)
            self.answers.append(self.partial(self.questions_QHD, kv_BKXE, form, step))
        self._recorder.then(self._answer, layer)
        if own is None:
            return q_THD, q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
        outs, lses = zip(part, *self.replies, strict=True)
        out_THD, lse_TH = kernels.merge_attention(list(outs), list(lses)) if self.replies else part
        return out_THD.to(q_THD.dtype), lse_TH

    def _ask(self, layer: int) -> None:
        assert self.dialogue is not None
        self.dialogue.ask(layer)

    def _hear(self, layer: int) -> None:
        assert self.dialogue is not None
        self.dialogue.hear(layer)

    def _answer(self, layer: int) -> None:
        assert self.dialogue is not None
        self.dialogue.answer(layer)


@dataclass(slots=True)
class Taped:
    """A tape, what it reads and what it leaves."""

    tape: Tape
    inputs: StepInputs | None
    together: Together
    attention: ScriptedAttention
    logits_BV: Tensor
    strips: Strips
    said: Script | None = None
    """Of the step before."""
    said_of: tuple[tuple[Question, ...], Service | None] = ((), None)
    """What that followed from."""

    def script(self, group: GroupInputs) -> Script:
        """What a step says where; the same one for as long as the same is asked and served."""
        if (
            self.said is None
            or self.said_of[0] is not group.questions
            or self.said_of[1] is not group.service
        ):
            self.said, self.said_of = _script(self.strips, group), (group.questions, group.service)
        return self.said

    def fill(self, inputs: StepInputs | None, group: GroupInputs, tables_RP: Tensor, pool: KvPool) -> None:
        """Put a step in place of the idle one."""
        static = self.together.inputs
        if self.inputs is not None and inputs is not None:
            rows = len(inputs.rows_R)
            fill(self.inputs, inputs, pool)
            static.places_T[:rows], static.places_T[rows:] = group.places_T, 0
            for _, lse_BH in self.attention.replies:
                lse_BH.fill_(-torch.inf)
        if static.service is not None and group.service is not None:
            served, count = group.service, len(group.service.rows_R)
            static.service.lens_R[:count], static.service.lens_R[count:] = served.lens_R, 0
            static.service.places_Q[:count], static.service.places_Q[count:] = served.places_Q, -1
            tables_QP = self.together.tables_RP[:count]
            fill_tables(tables_QP, tables_RP, served.rows_R, served.lens_R, pool.page)


class GroupTapes:
    """Plays decode steps. `play` gives None where there is no tape: then the caller computes the step."""

    def __init__(
        self, compute: Compute, plain: GroupAttention, native: Calls, pool: KvPool, max_len: int, threads: int
    ) -> None:
        """`compute`: the model's own, which tapes are held against; `plain`: its attention."""
        self._compute, self._plain, self._native = compute, plain, native
        self._pool, self._threads = pool, threads
        self._pages = -(-max_len // pool.page)
        self._tapes: dict[Size, Taped] = {}
        self._able = True

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of the tapes that there are."""
        return tuple(self._tapes)

    def play(
        self,
        inputs: StepInputs | None,
        group: GroupInputs,
        tables_RP: Tensor,
        peers: Peers,
        form: tuple[Form, int],
    ) -> Tensor | None:
        """Logits [L, V] of the wanted ones of own tokens, valid until the next step; see
        `Model.forward_together`.

        Args:
            form: of the queries, and the size of a head.
        """
        size = _size(inputs, group) if self._able else None
        if size is None or not peers.near(*_spoken(group)):
            return None
        taped = self._tapes.get(size) or self._record(size, inputs, group, tables_RP, form)
        if taped is None:
            return None
        taped.fill(inputs, group, tables_RP, self._pool)
        taped.attention.dialogue = peers.dialogue(taped.script(group))
        taped.tape.play()
        if inputs is None:
            return taped.logits_BV
        wanted, rows = inputs.wanted_L, len(inputs.rows_R)
        return taped.logits_BV[:rows] if len(wanted) == rows else taped.logits_BV[wanted]

    def _record(
        self,
        size: Size,
        inputs: StepInputs | None,
        group: GroupInputs,
        tables_RP: Tensor,
        form: tuple[Form, int],
    ) -> Taped | None:
        """Record the tape of a size, and check it against the forward that it was recorded from."""
        recorder = Recorder(self._native, self._threads)
        attention = ScriptedAttention(self._pool.page, self._threads, size, recorder, *form)
        static = idle_inputs(size.rows, self._pages, self._pool) if size.rows else None
        together = Together(_idle(size), Alone(), torch.zeros(size.queries, self._pages).int(), attention)
        try:
            with torch.inference_mode(), recorder:
                logits_BV = self._compute(static, together)
        except CannotRecord as reason:
            self._give_up(str(reason))
            return None
        taped = Taped(recorder.tape(), static, together, attention, logits_BV, Strips.of(attention))
        if inputs is not None and not self._agrees(taped, inputs, group, tables_RP):
            self._give_up("its logits are not those of the model")
            return None
        log.info("a decode step of a group, %s, is a tape of %d calls", size, len(taped.tape))
        self._tapes[size] = taped
        return taped

    def _agrees(self, taped: Taped, inputs: StepInputs, group: GroupInputs, tables_RP: Tensor) -> bool:
        """Whether the tape gives what the model gives, where both see own keys only."""
        alone = GroupInputs(group.places_T, attends=True)
        taped.fill(inputs, alone, tables_RP, self._pool)
        taped.attention.dialogue = Alone()
        taped.tape.play()
        rows = len(inputs.rows_R)
        every = StepInputs(*(getattr(inputs, n) for n in StepInputs.__slots__[:-1]), torch.arange(rows))
        theirs_BV = self._compute(every, Together(alone, Alone(), tables_RP, self._plain))
        return agree(taped.logits_BV[:rows], theirs_BV, self._pool.layers[0].dtype, 4)

    def _give_up(self, reason: str) -> None:
        log.warning("decode steps of groups go without tapes: %s", reason)
        self._able = False


def _size(inputs: StepInputs | None, group: GroupInputs) -> Size | None:
    """Of the tape that a step is played from; None: it is no decode step, or there is none so large."""
    rows = 0 if inputs is None else len(inputs.rows_R)
    queries = 0 if group.service is None else len(group.service.places_Q)
    single = inputs is None or len(inputs.tokens_T) == rows
    alone = group.service is None or len(group.service.rows_R) == queries
    fits = rows + queries > 0 and rows <= SIZES[-1] and queries <= QUERIES[-1]
    if group.stripes is not None or not (single and alone and fits):
        return None
    padded = next(size for size in (0, *SIZES) if size >= rows)
    return Size(padded, next(size for size in QUERIES if size >= queries), len(group.questions))


def _spoken(group: GroupInputs) -> tuple[list[int], list[int]]:
    """Members that something goes to, and those that something comes from."""
    asked = [question.member for question in group.questions]
    served = [member for member, _ in group.service.counts] if group.service is not None else []
    both = [*dict.fromkeys((*asked, *served))]
    return both, both


def _idle(size: Size) -> GroupInputs:
    """A step in which nobody asks anything."""
    service = Service(
        counts=(),
        starts_R=torch.arange(size.queries + 1, dtype=torch.int32),
        rows_R=torch.arange(size.queries, dtype=torch.int32),
        lens_R=torch.zeros(size.queries, dtype=torch.int32),
        places_Q=torch.full((size.queries,), -1),
    )
    places_T = torch.zeros(size.rows, dtype=torch.int64)
    return GroupInputs(places_T, attends=True, service=service if size.queries else None)


def _script(strips: Strips, group: GroupInputs) -> Script:
    """What a step says where, with the strips of a tape."""
    asks, questions, answers, replies = [], [], [], []
    for question, (outs, lses) in zip(group.questions, strips.replies, strict=True):
        member, parts = question.member, _runs(question)
        asks += [Piece(member, strips.asks, *part) for part in parts]
        replies += [Piece(member, strip, *part) for strip in (outs, lses) for part in parts]
    begin = 0
    for member, count in group.service.counts if group.service is not None else ():
        questions.append(Piece(member, strips.questions, begin, begin + count))
        answers += [Piece(member, strip, begin, begin + count) for strip in strips.answers]
        begin += count
    return Script(tuple(asks), tuple(questions), tuple(answers), tuple(replies))


def _runs(question: Question) -> list[tuple[int, int]]:
    """Intervals of neighbours among the rows that a question is about."""
    rows_Q = question.tokens_Q.numpy()
    cuts = (np.flatnonzero(np.diff(rows_Q) != 1) + 1).tolist()
    return [
        (int(rows_Q[a]), int(rows_Q[b - 1]) + 1)
        for a, b in zip([0, *cuts], [*cuts, len(rows_Q)], strict=True)
    ]
