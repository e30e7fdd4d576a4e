"""A shadow of the workers: it checks that every step and move of a manager could really be carried out.

It keeps, for every instance, what each KV slot contains: the whole token prefix whose last position
was written there. Before a row may attend to a position, the slot that the steps named for it, on whichever
instance of the group, must contain exactly the row's own prefix, whoever wrote it. A move copies contents;
until it is answered, nobody may write to its slots at either end, and no step may name its request.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from plait.spec.event import Moved, MoveFailed, StepDone
from plait.spec.move import Move
from plait.spec.step import Row, Span, Step


@dataclass
class ShadowRow:
    """What one instance has of a row."""

    slots: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """The positions in these slots, in order."""


@dataclass
class ShadowMove:
    """A move without an answer."""

    move: Move
    copied: bool = False
    """All has arrived, though nobody was told yet."""
    doomed: bool = False
    """A step that it follows failed, or its source was lost before all arrived."""
    orphaned: bool = False
    """Its source was lost: what is there now is another worker's."""


@dataclass
class ShadowInstance:
    slots: int
    content: dict[int, tuple[int, ...]] = field(default_factory=dict)
    rows: dict[int, ShadowRow] = field(default_factory=dict)
    inbox: deque[Step] = field(default_factory=deque)
    stopped: set[int] = field(default_factory=set)
    """Rows that drew their last token here."""


class Shadow:
    """Instances that execute steps on paper. Tokens are drawn by a rule: they depend on the prefix."""

    def __init__(self, eos: int, skips: bool) -> None:
        """`skips`: instances leave out rows that have stopped, as those of one stage do."""
        self.eos, self.skips = eos, skips
        self.instances: dict[int, ShadowInstance] = {}
        self.tokens: dict[int, list[int]] = {}
        """Every request's prompt and what was drawn."""
        self.moves: dict[int, ShadowMove] = {}
        self.lately = -1
        """The highest id so far: steps and moves are one order."""
        self._last: dict[int, int] = {}
        """Request -> its master in the last step that was issued."""
        self.masters: dict[tuple[int, int], int] = {}
        """(step, request) -> its master there."""
        self.drawers: dict[int, int] = {}
        """Request -> who drew its last token, and so knows it without being told."""
        self._takers: dict[tuple[int, int], int] = {}
        """Who keeps a position that the step in hand computes."""
        self.counts: dict[int, int] = {}
        """Request -> tokens that it drew in the last step that was carried out."""
        self.doubtful: set[int] = set()
        """Steps that were in flight when another one of their instance failed: they may read KV that
        was never computed, so whatever they claim to draw must not count."""

    def up(self, instance: int, slots: int) -> None:
        self.instances[instance] = ShadowInstance(slots)

    def lose(self, instance: int) -> None:
        for step in [step for step in self.instances[instance].inbox if len(step.group) > 1]:
            self._drop(step)  # the others of its group forget its rows
        del self.instances[instance]
        moves = self.moves.items()
        self.moves = {id: each for id, each in moves if each.move.target.instance != instance}
        for each in self.moves.values():
            each.orphaned |= each.move.source.instance == instance
            each.doomed |= each.orphaned and not each.copied

    def submit(self, step: Step) -> None:
        self._number(step.id)
        named = {*(row.request for row in step.rows), *step.again}
        assert not any(each.move.request in named for each in self.moves.values()), "a step before its Moved"
        assert len(set(step.group)) == len(step.group)
        self._last |= {row.request: row.master for row in step.rows}
        self.masters |= {(step.id, request): self._last[request] for request in named}
        for instance in step.group:
            self.instances[instance].inbox.append(step)

    def begin(self, move: Move) -> None:
        self._number(move.id)
        assert move.source.instance != move.target.instance
        assert move.source.first == move.target.first
        counts = [sum(extent.count for extent in span.extents) for span in (move.source, move.target)]
        assert counts[0] == counts[1] >= move.count >= 1
        doomed = any(step in self.doubtful for step in move.after)
        self.moves[move.id] = ShadowMove(move, doomed=doomed)

    def able(self, id: int) -> bool:
        """The copy can be made now."""
        each = self.moves[id]
        if each.copied or each.doomed:
            return each.copied
        return not any(step.id in each.move.after for step in self.instances[each.move.source.instance].inbox)

    def copy(self, id: int) -> None:
        """All that a move is to copy arrives."""
        each = self.moves[id]
        if each.copied:
            return
        each.copied, move, tokens = True, each.move, self.tokens[each.move.request]
        source, target = self.instances[move.source.instance], self.instances[move.target.instance]
        pairs = zip(_slots(move.source), _slots(move.target), strict=True)
        for position, (here, there) in enumerate(list(pairs)[: move.count], move.target.first):
            content = source.content.get(here)
            assert content == tuple(tokens[: position + 1]), "what is moved is not the request's"
            target.content[there] = content

    def complete(self, id: int) -> Moved:
        self.copy(id)
        del self.moves[id]
        return Moved(id)

    def break_off(self, id: int) -> MoveFailed:
        """A move fails, and leaves rubbish at its target."""
        move = self.moves.pop(id).move
        for slot in _slots(move.target):
            self.instances[move.target.instance].content[slot] = ()
        return MoveFailed(id, "made to fail")

    def _number(self, id: int) -> None:
        assert id > self.lately, "ids are out of order"
        self.lately = id

    def _pinned(self, instance: int, step: int) -> set[int]:
        """Slots that a step must not write: targets of moves, and sources unless the move waits for it."""
        spans = [each.move.target for each in self.moves.values()]
        kept = [each.move for each in self.moves.values() if not each.orphaned]
        spans += [move.source for move in kept if step > max(move.after, default=-1)]
        return {slot for span in spans if span.instance == instance for slot in _slots(span)}

    def next(self, instance: int) -> int:
        """An instance whose oldest step can run: that of `instance` waits for all of its group."""
        while True:
            step = self.instances[instance].inbox[0]
            others = [m for m in step.group if self.instances[m].inbox[0] is not step]
            if not others:
                return instance
            instance = others[0]

    def execute(self, instance: int) -> StepDone:
        """The oldest unanswered step of an instance."""
        step = self.instances[instance].inbox[0]
        for member in step.group:
            assert self.instances[member].inbox.popleft() is step, "its group does other things first"
        self._close(step)
        self._open(step)
        asked = step.requests
        step = self._going(step)
        fresh = [self._place(step, row) for row in step.rows]
        fresh += [self._go_on(step, request) for request in step.again]
        if step.id in self.doubtful:
            return self._claim_everything(step, fresh, len(asked))
        for request, first, count in fresh:  # a layer writes all new KV before any row reads
            self._write(step, request, first, count)
        ends = [first + count for _, first, count in fresh]
        assert step.requests != asked or step.context_tokens == sum(ends[len(step.rows) :])
        drawn, stopped = [], list[int]()
        draws = [row.draws for row in step.rows] + [True] * len(step.again)
        for index, ((request, _, _), end, draw) in enumerate(zip(fresh, ends, draws, strict=True)):
            tokens = self.tokens[request]
            self._read(step, request, end)
            assert draw == (end == len(tokens)), "draws before, or not at, its last known token"
            drawn.append(int(draw))
            if draw and self._draw(step, request):
                stopped.append(index)
        for _ in range(1, step.repeat):
            self._repeat(step, drawn, stopped)
        self.counts = dict.fromkeys(asked, 0) | dict(zip(step.requests, drawn, strict=True))
        over = {step.requests[index] for index in stopped}
        stops = tuple(index for index, request in enumerate(asked) if request in over)
        return StepDone(step.id, tuple(self.counts.values()), stops)

    def _going(self, step: Step) -> Step:
        """An instance alone leaves out what has stopped."""
        stopped = self.instances[step.group[0]].stopped
        if not self.skips or len(step.group) > 1 or stopped.isdisjoint(step.requests):
            return step
        rows = tuple(row for row in step.rows if row.request not in stopped)
        return replace(step, rows=rows, again=tuple(each for each in step.again if each not in stopped))

    def _draw(self, step: Step, request: int) -> bool:
        """Whether that is its end."""
        tokens = self.tokens[request]
        tokens.append(hash(tuple(tokens)) % 50)
        self.drawers[request] = master = self.masters[step.id, request]
        if tokens[-1] == self.eos:
            self.instances[master].stopped.add(request)
        return tokens[-1] == self.eos

    def _repeat(self, step: Step, drawn: list[int], stopped: list[int]) -> None:
        """One more round of those that have not stopped."""
        assert all(drawn), "a row goes on that has not drawn"
        going = [(i, request) for i, request in enumerate(step.requests) if i not in stopped]
        fresh = [self._go_on(step, request) for _, request in going]
        for request, first, count in fresh:
            self._write(step, request, first, count)
        for (index, request), (_, first, _) in zip(going, fresh, strict=True):
            self._read(step, request, first + 1)
            drawn[index] += 1
            if self._draw(step, request):
                stopped.append(index)

    def _close(self, step: Step) -> None:
        for member in step.group:
            for request in step.closed:
                self.instances[member].rows.pop(request, None)
                self.instances[member].stopped.discard(request)

    def _open(self, step: Step) -> None:
        """An opened row is described whole; only elastic ones, which say who keeps what, are opened again."""
        again = {row.request for row in step.rows if row.keep}
        for member in step.group:
            rows = self.instances[member].rows
            for request in step.opened:
                assert request not in rows or request in again, "opened twice"
                rows[request] = ShadowRow()
                self.instances[member].stopped.discard(request)
        for request in step.opened:
            self.drawers.pop(request, None)

    def _place(self, step: Step, row: Row) -> tuple[int, int, int]:
        """Take a row's new slots, and, if it is opened, what is in them already."""
        states = self._states(step, row.request)
        assert row.master in states
        for span in row.spans:
            state = states[span.instance]
            assert span.first == len(state.slots), "extents do not continue the row's slots"
            for extent in span.extents:
                assert extent.count > 0
                assert 0 <= extent.slot <= self.instances[span.instance].slots - extent.count
                state.slots += range(extent.slot, extent.slot + extent.count)
        if row.request in step.opened:
            for keep in row.keep:
                states[keep.instance].kept += range(keep.first, min(row.first, keep.first + keep.count))
            if not row.keep:
                states[row.master].kept += range(row.first)  # found in the cache, or moved
        else:
            assert row.given or self.drawers.get(row.request, row.master) == row.master, "an unknown token"
        known = sum(len(state.kept) for state in states.values())
        assert row.first == known, "positions left out"
        assert row.stride in (1, len(step.group))
        for position in range(row.first, row.first + row.count):
            self._takers[row.request, position] = row.master
        for keep in row.keep:
            for position in range(max(keep.first, row.first), keep.first + keep.count):
                self._takers[row.request, position] = keep.instance
        return row.request, row.first, row.count

    def _states(self, step: Step, request: int) -> dict[int, ShadowRow]:
        """What the members know of a row; who was not told of it keeps nothing of it."""
        rows = {member: self.instances[member].rows.get(request) for member in step.group}
        return {member: row for member, row in rows.items() if row is not None}

    def _go_on(self, step: Step, request: int) -> tuple[int, int, int]:
        states, master = self._states(step, request), self.masters[step.id, request]
        first = sum(len(state.kept) for state in states.values())
        assert master in states
        assert self.drawers.get(request, master) == master, "an unknown token"
        self._takers[request, first] = master
        return request, first, 1

    def _write(self, step: Step, request: int, first: int, count: int) -> None:
        tokens = self.tokens[request]
        assert first + count <= len(tokens), "a token that nobody knows"
        for position in range(first, first + count):
            member = self._takers.pop((request, position))
            at = self.instances[member]
            row = at.rows[request]
            assert len(row.kept) < len(row.slots), "a position without a slot"
            slot = row.slots[len(row.kept)]
            assert slot not in self._pinned(member, step.id), "slots of a move are written"
            at.content[slot] = tuple(tokens[: position + 1])
            row.kept.append(position)

    def _read(self, step: Step, request: int, end: int) -> None:
        """All positions up to `end` are in the group, once, and contain what they should."""
        tokens, found = self.tokens[request], []
        for member, row in self._states(step, request).items():
            assert row.kept == sorted(row.kept)
            found += row.kept
            for slot, position in zip(row.slots, row.kept, strict=False):
                assert self.instances[member].content.get(slot) == tuple(tokens[: position + 1]), "foreign KV"
        assert sorted(found) == list(range(end)), "a position is missing, or in two places"

    def _claim_everything(self, step: Step, fresh: list[tuple[int, int, int]], rows: int) -> StepDone:
        for request, first, count in fresh:
            for position in range(first, first + count):
                at = self.instances[self._takers.pop((request, position))]
                row = at.rows[request]
                at.content[row.slots[len(row.kept)]] = ()
                row.kept.append(position)
        return StepDone(step.id, (step.repeat,) * rows, tuple(range(rows)))

    def fail(self, instance: int) -> Step:
        """The oldest unanswered step fails: its rows are forgotten, their slots full of rubbish."""
        step = self.instances[instance].inbox[0]
        self._drop(step)
        for member in step.group:
            self.doubtful.update(later.id for later in self.instances[member].inbox)
        for each in self.moves.values():
            failed = step.id in each.move.after or any(id in self.doubtful for id in each.move.after)
            each.doomed |= failed and not each.copied
        return step

    def _drop(self, step: Step) -> None:
        """A step is begun and never done."""
        self._close(step)
        for member in step.group:
            at = self.instances[member]
            at.inbox.remove(step)
            for request in [*step.opened, *(row.request for row in step.rows), *step.again]:
                at.stopped.discard(request)
                if row := at.rows.pop(request, None):
                    for slot in row.slots[len(row.kept) :]:
                        at.content[slot] = ()

    def broken(self, instance: int) -> bool:
        """The oldest unanswered step names a row that was forgotten."""
        step = self.instances[instance].inbox[0]
        named = {*(row.request for row in step.rows), *step.again}
        for request in named - set(step.opened):
            master = self.masters[step.id, request]
            if request in step.closed or request not in self.instances[master].rows:
                return True
        return False


def _slots(span: Span) -> list[int]:
    return [slot for extent in span.extents for slot in range(extent.slot, extent.slot + extent.count)]
