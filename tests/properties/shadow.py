"""A shadow of the workers: it checks that every step a manager issues could really be carried out.

It keeps, for every instance, what each KV slot contains: the whole token prefix whose last position
was written there. Before a row may attend to a position, the slot that the steps named for it must
contain exactly the row's own prefix, whoever wrote it.
"""

from collections import deque
from dataclasses import dataclass, field

from plait.spec.event import StepDone
from plait.spec.step import Row, Step


@dataclass
class ShadowRow:
    slots: list[int] = field(default_factory=list)
    computed: int = 0


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
        self.doubtful: set[int] = set()
        """Steps that were in flight when another one of their instance failed: they may read KV that
        was never computed, so whatever they claim to draw must not count."""

    def up(self, instance: int, slots: int) -> None:
        self.instances[instance] = ShadowInstance(slots)

    def submit(self, step: Step) -> None:
        (instance,) = step.group
        self.instances[instance].inbox.append(step)

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
        for request, first, count in fresh:  # a layer writes all new KV before any row reads
            row, tokens = at.rows[request], self.tokens[request]
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
            assert state.computed == 0, "positions left out"  # the rest was found in the cache
        return row.request, row.first, row.count
