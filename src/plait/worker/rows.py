"""What a worker knows of each row between steps: its tokens, where its KV lies and how it draws."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plait.kernels.sampling import WISH
from plait.model.sample import always_alters, stream_of, wish_of
from plait.spec.sampling import Opened, SamplingParams
from plait.spec.step import Row, Span
from plait.text.matcher import Matcher

NEVER = 1 << 62
"""More tokens than any row has."""


@dataclass(slots=True)
class RowState:
    """The parts of a row's state that no array holds."""

    index: int
    """Its place in the arrays of `Rows`."""
    prompt_tokens: int
    sampling: SamplingParams
    stop_ids: tuple[int, ...]
    others: dict[int, int] = field(default_factory=dict)
    """Tokens that other instances keep; all the others are here."""
    master: int = 0
    """Instance that computes its next token, once it was described."""
    matcher: Matcher | None = None
    """Of a row with a grammar that has drawn here: it has seen what the row drew so far."""


class Rows:
    """All open rows. Arrays are indexed [row, position] and grow by doubling.

    tokens_RL   tokens[:known] are the prompt and what was drawn
    pages_RP    pages[:covered / page] hold the keys and values of the positions that are kept here, in order;
                of all positions, where no other instance keeps any
    next_R      the position that is computed next
    adapter_R   number of the row's adapter, 0 for none
    wishes_R    how the row draws (`plait.model.sample`), without random numbers
    streams_R   number of the row's stream of random numbers
    plain_R     from so many known tokens on it draws from the model's own logits
    """

    def __init__(self, instance: int, page: int, slots: int) -> None:
        """For an instance whose pool has `slots` slots in pages of `page`."""
        self.instance, self.page, self.slots_in_pool = instance, page, slots
        self.states: dict[int, RowState] = {}
        self.forgotten: dict[int, None] = {}
        """Requests whose rows a failed step took along; steps that were under way may still name them."""
        self.stopped: set[int] = set()
        """Requests whose rows drew a stop token here."""
        self.version = 0
        """Grows with whatever is done to rows beside computing and drawing."""
        self.free: list[int] = []
        self.tokens_RL = np.zeros((8, 256), np.int32)
        self.pages_RP = np.zeros((8, -(-256 // page)), np.int32)
        self.known_R = np.zeros(8, np.int64)
        self.next_R = np.zeros(8, np.int64)
        self.covered_R = np.zeros(8, np.int64)
        self.adapter_R = np.zeros(8, np.int64)
        self.wishes_R = np.zeros(8, WISH)
        self.streams_R = np.zeros(8, np.uint64)
        self.plain_R = np.zeros(8, np.int64)
        self.free.extend(reversed(range(8)))

    def open(self, opened: Opened) -> None:
        """Start a row from its whole state."""
        assert opened.request not in self.states, f"row {opened.request} is opened twice"
        self.forgotten.pop(opened.request, None)
        self.version += 1
        if not self.free:
            self._add_rows()
        index, known = self.free.pop(), len(opened.tokens)
        self._reach(known)
        self.tokens_RL[index, :known] = opened.tokens
        self.known_R[index], self.next_R[index], self.covered_R[index] = known, 0, 0
        self.adapter_R[index] = opened.adapter
        params = opened.sampling
        self.wishes_R[index] = wish_of(params)
        self.streams_R[index] = stream_of(params.seed, params.choice)
        short = NEVER if always_alters(params) else opened.prompt_tokens + params.min_tokens
        self.plain_R[index] = min(short, NEVER)
        self.states[opened.request] = RowState(index, opened.prompt_tokens, params, opened.stop_ids)

    def close(self, request: int) -> None:
        """Forget a row; one that is not known was forgotten by a failed step."""
        self.forgotten.pop(request, None)
        self.stopped.discard(request)
        self.version += 1
        state = self.states.pop(request, None)
        if state:
            self.free.append(state.index)

    def forget(self, request: int, opened: bool) -> None:
        """A step failed that named the row, and may have opened it."""
        known = opened or request in self.states
        self.close(request)
        if known:
            self.forgotten[request] = None

    def known_state(self, request: int) -> RowState | None:
        """A row's state; None if this instance was never told of it."""
        assert request not in self.forgotten, f"row {request} was lost in a step that failed"
        return self.states.get(request)

    def describe(self, state: RowState, row: Row) -> None:
        """Note who keeps what of an opened row, of which so far only its tokens are known."""
        self.version += 1
        state.others, state.master = {}, row.master
        for keep in row.keep:
            kept = min(keep.count, row.first - keep.first)
            if kept > 0 and keep.instance != self.instance:
                state.others[keep.instance] = state.others.get(keep.instance, 0) + kept
        if not row.keep and row.master != self.instance and row.first:
            state.others[row.master] = row.first
        self.next_R[state.index] = row.first

    def here(self, state: RowState) -> int:
        """Tokens that this instance keeps."""
        return int(self.next_R[state.index]) - sum(state.others.values())

    def extend(self, state: RowState, span: Span) -> None:
        """Note the slots of the positions from `span.first` on."""
        self.version += 1
        assert span.instance == self.instance, f"a span of instance {span.instance} came to {self.instance}"
        parts = [np.arange(e.slot, e.slot + e.count, dtype=np.int32) for e in span.extents]
        slots_T = np.concatenate(parts) if parts else np.empty(0, np.int32)
        past = span.first + len(slots_T)
        assert ((slots_T >= 0) & (slots_T < self.slots_in_pool)).all(), "slots are not of this pool"
        assert span.first <= self.covered_R[state.index], f"positions before {span.first} have no slots"
        self._reach(past)
        at_T = np.arange(span.first, past)
        heads = at_T % self.page == 0
        assert np.array_equal(slots_T % self.page, at_T % self.page), "slots are not aligned to pages"
        self.pages_RP[state.index, at_T[heads] // self.page] = slots_T[heads] // self.page
        assert np.array_equal(self.pages_RP[state.index, at_T // self.page], slots_T // self.page), (
            "a page's positions lie in different pages of the pool"
        )
        self.covered_R[state.index] = past

    def slots(self, rows_T: NDArray[np.int64], at_T: NDArray[np.int64]) -> NDArray[np.int32]:
        """The slot of each (row, position)."""
        slots_T = self.pages_RP[rows_T, at_T // self.page] * self.page + at_T % self.page
        return slots_T.astype(np.int32)

    def append(self, indices_R: NDArray[np.int64], tokens_R: NDArray[np.int64]) -> None:
        """Add a drawn token to each of some rows."""
        if not len(indices_R):
            return
        known_R = self.known_R[indices_R]
        self._reach(int(known_R.max()) + 1)
        self.tokens_RL[indices_R, known_R] = tokens_R
        self.known_R[indices_R] = known_R + 1

    def known(self, index: int) -> NDArray[np.int32]:
        """The row's prompt and what it drew."""
        return self.tokens_RL[index, : self.known_R[index]]

    def _reach(self, length: int) -> None:
        """Make room for `length` positions in each row."""
        have = self.tokens_RL.shape[1]
        if length <= have:
            return
        more = max(length, 2 * have) - have
        self.tokens_RL = np.pad(self.tokens_RL, ((0, 0), (0, more)))
        pages = -(-(have + more) // self.page) - self.pages_RP.shape[1]
        self.pages_RP = np.pad(self.pages_RP, ((0, 0), (0, pages)))

    def _add_rows(self) -> None:
        have = len(self.known_R)
        self.tokens_RL = np.pad(self.tokens_RL, ((0, have), (0, 0)))
        self.pages_RP = np.pad(self.pages_RP, ((0, have), (0, 0)))
        for name in ("known_R", "next_R", "covered_R", "adapter_R", "wishes_R", "streams_R", "plain_R"):
            held = getattr(self, name)
            setattr(self, name, np.concatenate((held, np.zeros(have, held.dtype))))
        self.free.extend(reversed(range(have, 2 * have)))
