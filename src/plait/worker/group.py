"""What one member of a group does in a step: its tokens, its chunk of the ring, whom it asks and answers.

All members draw the same plan up from the same order, each for itself: sizes and order of what they exchange
are not sent but follow. Striped rows come first everywhere, each kind in the order of the step.

Legend: see `plait.model.group`; a member's number is its place in the ring, I marks a row's new tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from plait.model.group import Chunk, GroupInputs, Question, Service, Stripes
from plait.model.inputs import Adapted, StepInputs
from plait.spec.step import Row, Step
from plait.worker.onward import Onward
from plait.worker.plan import GroupPlan, Shared
from plait.worker.rows import Rows, RowState


class Planner:
    """Draws plans up from the state of a member's rows, and brings that up to date when a step is done."""

    def __init__(self, instance: int, rows: Rows, lanes: int) -> None:
        """`lanes`: tokens of a block of the pool."""
        self._instance, self._rows, self._lanes = instance, rows, lanes
        self._onward: Onward | None = None

    def plan(self, step: Step) -> GroupPlan:
        """What this member does in a step. Its rows are opened and not yet described."""
        last, self._onward = self._onward, None
        led = last is not None and last.leads_to(step, self._rows)
        plan = last.next(self._rows) if last is not None and led else self._anew(step)
        self._onward = Onward.of(step, plan, self._rows)
        return plan

    def _anew(self, step: Step) -> GroupPlan:
        self._group, self._me = step.group, step.group.index(self._instance)
        named = step.requests
        assert len(set(named)) == len(named), "a request stands twice in the step"
        shares = self._shares(step)
        for share in shares:
            self._check(share)
        striped = [share for share in shares if share.stride > 1]
        ordered = striped + [share for share in shares if share.stride == 1]
        chunks = [self._layout(striped, member) for member in range(len(step.group))] if striped else []
        mine = [share for share in ordered if share.owned(self._me)]
        inputs, wanted = self._inputs(mine, chunks)
        owned_R = [wanted.get(share.at, slice(0, 0)) for share in shares]
        group = self._group_inputs(mine, ordered, striped, chunks)
        tables_RP = torch.from_numpy(self._rows.pages_RP)
        adapted = self._adapted(mine)
        return GroupPlan(self._me, len(named), shares, inputs, group, owned_R, tables_RP, adapted)

    def done(self, plan: GroupPlan, group: Sequence[int]) -> None:
        """The step is computed: its tokens' keys are where they should be."""
        for share in plan.shares:
            state = share.state
            kept = np.bincount(share.takers_I, minlength=len(group)) + share.held
            state.others = {
                instance: int(count)
                for instance, count in zip(group, kept, strict=True)
                if count and instance != self._instance
            }
            state.master = group[share.master]
            self._rows.next_R[state.index] = share.first + share.count

    # ---- rows ------------------------------------------------------------------------------------

    def _shares(self, step: Step) -> list[Shared]:
        """The rows that this member takes part in: those that are striped, and of the others those that it
        computes or keeps some of. What it knows of yet others may be out of date."""
        found = [self._described(at, row, row.request in step.opened) for at, row in enumerate(step.rows)]
        found += [self._again(at, request) for at, request in enumerate(step.again, len(step.rows))]
        return [share for share in found if share is not None]

    def _described(self, at: int, row: Row, opened: bool) -> Shared | None:
        group, state = self._group, self._rows.known_state(row.request)
        if state is None:
            assert row.stride == 1 and row.master != self._instance, "a row that was never opened"  # noqa: PT018
            return None
        assert row.stride in (1, len(group)), f"a stride of {row.stride} in a group of {len(group)}"
        assert row.master in group, "a row's master is not of its group"
        for span in row.spans:
            assert span.instance in group, "slots of an instance that is not of the group"
            if span.instance == self._instance:
                self._rows.extend(state, span)
        if opened:
            self._rows.describe(state, row)
        if row.stride == 1 and row.master != self._instance and not self._rows.here(state):
            return None
        assert row.first == self._rows.next_R[state.index], (
            "positions were left out that this member did not see"
        )
        master = group.index(row.master)
        takers_I = np.full(row.count, master)
        for keep in row.keep:
            begin, past = max(0, keep.first - row.first), keep.first + keep.count - row.first
            takers_I[begin : max(0, past)] = group.index(keep.instance)
        draws = row.draws and row.master == self._instance
        return Shared(at, state, row.first, row.count, row.stride, draws, master, self._held(state), takers_I)

    def _again(self, at: int, request: int) -> Shared | None:
        state = self._rows.known_state(request)
        if state is None or not self._rows.here(state):
            return None  # its master keeps at least what it computed last
        master = self._group.index(state.master)
        first, draws = int(self._rows.next_R[state.index]), state.master == self._instance
        return Shared(at, state, first, 1, 1, draws, master, self._held(state), np.array([master]))

    def _held(self, state: RowState) -> tuple[int, ...]:
        strangers = [instance for instance in state.others if instance not in self._group]
        assert not strangers, f"instance {strangers} keeps some of a row and is not of its group"
        here = self._rows.here(state)
        return tuple(here if i == self._instance else state.others.get(i, 0) for i in self._group)

    def _check(self, share: Shared) -> None:
        rows, index, past = self._rows, share.state.index, share.first + share.count
        assert share.count > 0, "a row computes nothing"
        kept = share.held[self._me] + int((share.takers_I == self._me).sum())
        assert kept <= rows.covered_R[index], "a row has fewer slots than positions"
        if share.owned(self._me):
            assert past <= rows.known_R[index], "a row has fewer tokens than positions"
        if share.stride == 1:
            assert (share.takers_I == share.master).all(), "only striped rows leave new tokens with others"
        if share.draws:
            assert past == rows.known_R[index], "a row draws too early"
            assert share.owned(self._me)[-1] == share.count - 1, "the master does not compute the last token"

    # ---- own tokens ------------------------------------------------------------------------------

    def _layout(self, striped: list[Shared], member: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of a member's chunk: tokens of each row, and its first block; one more entry for the end."""
        lens_R = np.array([len(share.owned(member)) for share in striped], np.int32)
        blocks_R = np.zeros(len(striped) + 1, np.int32)
        np.cumsum(-(-lens_R // self._lanes), out=blocks_R[1:])
        return lens_R, blocks_R

    def _inputs(
        self,
        mine: list[Shared],
        chunks: list[tuple[NDArray[np.int32], NDArray[np.int32]]],
    ) -> tuple[StepInputs | None, dict[int, slice]]:
        """What is computed here, and of the wanted logits those of each row by its place in the step."""
        owned: dict[int, slice] = {}
        if not mine:
            return None, owned
        at_T, slots_T, wanted, starts, lens = (
            list[NDArray[np.int64]](),
            list[NDArray[np.int32]](),
            list[int](),
            [0],
            [],
        )
        stripe = -1
        for share in mine:
            new = np.array(share.owned(self._me))
            at_T.append(share.first + new)
            if share.stride > 1:
                stripe = self._next_stripe(chunks[self._me][0], stripe)
                slots_T.append(
                    (chunks[self._me][1][stripe] * self._lanes + np.arange(len(new))).astype(np.int32)
                )
                lens.append(share.held[self._me])
            else:
                slots_T.append(self._slots(share, share.held[self._me] + new))
                lens.append(share.held[self._me] + share.count)
            past = starts[-1] + len(new)
            first = self._first_wanted(share, starts[-1], past)
            owned[share.at] = slice(len(wanted), len(wanted) + past - first)
            wanted.extend(range(first, past))
            starts.append(past)
        indices_R = np.array([share.state.index for share in mine], np.int64)
        positions_T, rows_T = np.concatenate(at_T), np.repeat(indices_R, np.diff(starts))
        inputs = StepInputs(
            tokens_T=torch.from_numpy(self._rows.tokens_RL[rows_T, positions_T].astype(np.int64)),
            positions_T=torch.from_numpy(positions_T),
            slots_T=torch.from_numpy(np.concatenate(slots_T)),
            starts_R=torch.tensor(starts, dtype=torch.int32),
            lens_R=torch.tensor(lens, dtype=torch.int32),
            rows_R=torch.from_numpy(indices_R.astype(np.int32)),
            tables_RP=torch.from_numpy(self._rows.pages_RP),
            wanted_L=torch.tensor(wanted, dtype=torch.int64),
        )
        return inputs, owned

    def _adapted(self, mine: list[Shared]) -> Adapted | None:
        """Which of the tokens that are computed here have adapters."""
        indices_R = np.array([share.state.index for share in mine], np.int64)
        counts_R = np.array([len(share.owned(self._me)) for share in mine], np.int64)
        return Adapted.of_rows(self._rows.adapter_R[indices_R], counts_R)

    @staticmethod
    def _next_stripe(lens_R: NDArray[np.int32], stripe: int) -> int:
        """The next striped row of which there are tokens in a chunk."""
        stripe += 1
        while not lens_R[stripe]:
            stripe += 1
        return stripe

    def _first_wanted(self, share: Shared, begin: int, past: int) -> int:
        """The first own token of a row whose logits are wanted."""
        state = share.state
        first_position = share.first + share.owned(self._me)[0]
        if state.sampling.prompt_logprobs is not None and first_position < state.prompt_tokens - 1:
            return begin
        return past - 1 if share.draws else past

    def _slots(self, share: Shared, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Own slots of a row by their numbers."""
        return self._rows.slots(np.full(len(numbers), share.state.index), numbers)

    # ---- between members -------------------------------------------------------------------------

    def _group_inputs(
        self,
        mine: list[Shared],
        ordered: list[Shared],
        striped: list[Shared],
        chunks: list[tuple[NDArray[np.int32], NDArray[np.int32]]],
    ) -> GroupInputs:
        me = self._me
        places = [
            np.full(len(share.owned(me)), share.held[me] - 1)
            if share.stride > 1
            else share.held[me] + np.arange(share.count)
            for share in mine
        ]
        attends = any(share.held[me] or share.stride == 1 for share in mine)
        return GroupInputs(
            places_T=torch.from_numpy(np.concatenate([*places, np.empty(0, np.int64)])),
            attends=attends,
            stripes=self._stripes(striped, chunks) if striped else None,
            questions=self._questions(mine),
            service=self._service(ordered),
        )

    def _questions(self, mine: list[Shared]) -> tuple[Question, ...]:
        counts = [len(share.owned(self._me)) for share in mine]
        found = []
        for member in range(len(self._group)):
            asks = np.repeat([share.held[member] > 0 for share in mine], counts).nonzero()[0]
            if member != self._me and len(asks):
                found.append(Question(member, torch.from_numpy(asks)))
        return tuple(found)

    def _service(self, ordered: list[Shared]) -> Service | None:
        counts, rows, queries, lens = [], [], [], []
        for member in range(len(self._group)):
            asked = [(len(share.owned(member)), share) for share in ordered if share.held[self._me]]
            asked = [(count, share) for count, share in asked if count and member != self._me]
            if asked:
                counts.append((member, sum(count for count, _ in asked)))
                queries += [count for count, _ in asked]
                rows += [share.state.index for _, share in asked]
                lens += [share.held[self._me] for _, share in asked]
        if not counts:
            return None
        return Service(
            counts=tuple(counts),
            starts_R=torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32),
            rows_R=torch.tensor(rows, dtype=torch.int32),
            lens_R=torch.tensor(lens, dtype=torch.int32),
            places_Q=torch.from_numpy(np.repeat(np.array(lens, np.int64) - 1, queries)),
        )

    def _stripes(
        self, striped: list[Shared], chunks: list[tuple[NDArray[np.int32], NDArray[np.int32]]]
    ) -> Stripes:
        owned = [np.array(share.owned(self._me), np.int64) for share in striped]
        starts_R = np.zeros(len(striped) + 1, np.int32)
        np.cumsum([len(new) for new in owned], out=starts_R[1:])
        return Stripes(
            index=self._me,
            chunks=tuple(self._chunk(striped, member, *chunk) for member, chunk in enumerate(chunks)),
            starts_R=torch.from_numpy(starts_R),
            rows_R=torch.arange(len(striped), dtype=torch.int32),
            places_S=torch.from_numpy(np.concatenate(owned)),
        )

    def _chunk(
        self, striped: list[Shared], member: int, lens_R: NDArray[np.int32], blocks_R: NDArray[np.int32]
    ) -> Chunk:
        sources, targets = [], []
        for r, share in enumerate(striped):
            kept = (share.takers_I == self._me).nonzero()[0]
            here = kept % share.stride == member
            sources.append(blocks_R[r] * self._lanes + kept[here] // share.stride)
            targets.append(self._slots(share, share.held[self._me] + here.nonzero()[0]))
        most = int(np.diff(blocks_R).max())
        return Chunk(
            blocks=int(blocks_R[-1]),
            lens_R=torch.from_numpy(lens_R),
            tables_RP=torch.from_numpy(blocks_R[:-1, None] + np.arange(most, dtype=np.int32)),
            from_J=torch.from_numpy(np.concatenate(sources).astype(np.int32)),
            to_J=torch.from_numpy(np.concatenate(targets)),
        )
