"""A shadow of the workers: it checks that every step and move of a manager could really be carried out.

It keeps, for every instance, what each KV slot contains: the whole token prefix whose last position
was written there. Before a row may attend to a position, the slot that the steps named for it must
contain exactly the row's own prefix, whoever wrote it. A move copies contents; until it is answered, nobody
may write to its slots at either end, and no step may name its request.
"""

from collections import deque
from dataclasses import dataclass, field

from plait.spec.event import Moved, MoveFailed, StepDone
from plait.spec.move import Move
from plait.spec.step import Row, Span, Step


@dataclass
class ShadowRow:
    slots: list[int] = field(default_factory=list)
    computed: int = 0


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


class Shadow:
    """Instances that execute steps on paper. Tokens are drawn by a rule: they depend on the prefix."""

    def __init__(self, eos: int) -> None:
        self.eos = eos
        self.instances: dict[int, ShadowInstance] = {}
        self.tokens: dict[int, list[int]] = {}
        """Every request's prompt and what was drawn."""
        self.moves: dict[int, ShadowMove] = {}
        self.lately = -1
        """The highest id so far: steps and moves are one order."""
        self.doubtful: set[int] = set()
        """Steps that were in flight when another one of their instance failed: they may read KV that
        was never computed, so whatever they claim to draw must not count."""

    def up(self, instance: int, slots: int) -> None:
        self.instances[instance] = ShadowInstance(slots)

    def lose(self, instance: int) -> None:
        del self.instances[instance]
        moves = self.moves.items()
        self.moves = {id: each for id, each in moves if each.move.target.instance != instance}
        for each in self.moves.values():
            each.orphaned |= each.move.source.instance == instance
            each.doomed |= each.orphaned and not each.copied

    def submit(self, step: Step) -> None:
        (instance,) = step.group
        self._number(step.id)
        named = {*(row.request for row in step.rows), *step.again}
        assert not any(each.move.request in named for each in self.moves.values()), "a step before its Moved"
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

    def execute(self, instance: int) -> StepDone:
        """The oldest unanswered step of an instance."""
        at = self.instances[instance]
        step = at.inbox.popleft()
        for request in step.closed:
            at.rows.pop(request, None)
        for request in step.opened:
            assert request not in at.rows, "opened twice"
            at.rows[request] = ShadowRow()
        fresh = [self._place(at, instance, row) for row in step.rows]
        fresh += [(request, at.rows[request].computed, 1) for request in step.again]
        if step.id in self.doubtful:
            return self._claim_everything(at, step, fresh)
        pinned = self._pinned(instance, step.id)
        for request, first, count in fresh:  # a layer writes all new KV before any row reads
            row, tokens = at.rows[request], self.tokens[request]
            assert not pinned.intersection(row.slots[first : first + count]), "slots of a move are written"
            assert first + count <= len(tokens), "a token that nobody knows"
            for position in range(first, first + count):
                assert position < len(row.slots), "a position without a slot"
                at.content[row.slots[position]] = tuple(tokens[: position + 1])
            row.computed = first + count
        assert step.context_tokens == sum(at.rows[request].computed for request in step.again)
        drawn, stopped = [], []
        draws = [row.draws for row in step.rows] + [True] * len(step.again)
        for index, ((request, _, _), draw) in enumerate(zip(fresh, draws, strict=True)):
            row, tokens = at.rows[request], self.tokens[request]
            for position in range(row.computed):
                assert at.content.get(row.slots[position]) == tuple(tokens[: position + 1]), "foreign KV"
            assert draw == (row.computed == len(tokens)), "draws before, or not at, its last known token"
            drawn.append(int(draw))
            if draw:
                token = hash(tuple(tokens)) % 50
                tokens.append(token)
                if token == self.eos:
                    stopped.append(index)
        return StepDone(step.id, tuple(drawn), tuple(stopped))

    def _claim_everything(
        self, at: ShadowInstance, step: Step, fresh: list[tuple[int, int, int]]
    ) -> StepDone:
        for request, first, count in fresh:
            at.rows[request].computed = first + count
            for slot in at.rows[request].slots[first : first + count]:
                at.content[slot] = ()
        rows = range(len(fresh))
        return StepDone(step.id, tuple(1 for _ in rows), tuple(rows))

    def fail(self, instance: int) -> Step:
        """The oldest unanswered step fails: its rows are forgotten, their slots full of rubbish."""
        at = self.instances[instance]
        step = at.inbox.popleft()
        self.doubtful.update(later.id for later in at.inbox)
        for each in self.moves.values():
            failed = step.id in each.move.after or any(id in self.doubtful for id in each.move.after)
            each.doomed |= failed and not each.copied
        for request in step.closed:
            at.rows.pop(request, None)
        for request in [*step.opened, *(row.request for row in step.rows), *step.again]:
            if row := at.rows.pop(request, None):
                for slot in row.slots[row.computed :]:
                    at.content[slot] = ()
        return step

    def broken(self, instance: int) -> bool:
        """The oldest unanswered step names a row that was forgotten."""
        at = self.instances[instance]
        step = at.inbox[0]
        known = set(at.rows) - set(step.closed) | set(step.opened)
        return any(r not in known for r in [*(row.request for row in step.rows), *step.again])

    def _place(self, at: ShadowInstance, instance: int, row: Row) -> tuple[int, int, int]:
        state = at.rows[row.request]
        for span in row.spans:
            assert span.instance == instance == row.master
            assert span.first == len(state.slots), "extents do not continue the row's slots"
            for extent in span.extents:
                assert extent.count > 0
                assert 0 <= extent.slot <= at.slots - extent.count
                state.slots += range(extent.slot, extent.slot + extent.count)
        if row.first > state.computed:
            assert state.computed == 0, "positions left out"  # the rest was found in the cache or moved
        return row.request, row.first, row.count


def _slots(span: Span) -> list[int]:
    return [slot for extent in span.extents for slot in range(extent.slot, extent.slot + extent.count)]
