"""`Batcher`: turns what sits on an instance into its next step.

Decoding rows go first, one token each; what is left of the step's token budget goes to prompts, oldest
first, cut into chunks. With `prompts_first`, prompts have whole steps of their own instead. Where steps pass
several stages, the decoding rows are divided among as many steps, so that each stage has one. When slots run
out the youngest request yields and is recomputed.
"""

from dataclasses import dataclass

from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Flight, Live, Seat
from plait.spec.step import Row, Span, Step


@dataclass(frozen=True, slots=True)
class BatcherConfig:
    """How large steps are, and how many are in flight."""

    step_tokens: int = 512
    """Tokens that a step computes at most, decoding rows counted. Where more rows than this decode,
    they all go along, and no prompt does. On an instance that only prefills no prompt is cut: whole ones
    are packed up to this, and a longer one goes alone."""
    prompts_first: bool = False
    """Where an instance does both, prompts are computed whole, without rows that decode, and these wait until
    none is left: few steps between a prompt and its first token, and pauses in the middle of answers."""
    depth: int = 2
    """Steps in flight on one instance: 2 plans the next one while one runs."""
    prefix_cache: bool = True
    """Share the KV of equal prompt prefixes."""
    repeat: int = 1
    """Tokens that decoding rows draw at most in a step, where no prompt waits on their instance. More: less
    to decide and to send for each token, and newcomers wait longer. (One where steps pass several stages.)"""


class Batcher:
    """Builds steps. While one is built, `yielded` receives requests that lost their place, and `computed`
    those of which the last known token is in it and which are to decode elsewhere."""

    def __init__(self, config: BatcherConfig, ledger: KvLedger, counts: Counts, model: str = "") -> None:
        self.config = config
        self._ledger = ledger
        self._counts = counts
        self._model = model
        self.yielded: list[Live] = []
        self.computed: list[Live] = []

    def limit(self, seat: Seat) -> int:
        """Tokens that saturate an instance."""
        return seat.step_tokens or self.config.step_tokens

    def found(self, seat: Seat, live: Live, tokens: int) -> tuple[int, ...]:
        """Hashes of the leading blocks within the first `tokens` tokens of a request that an instance has."""
        hashes = live.request.block_hashes if self.config.prefix_cache else ()
        hashes = hashes[: tokens // self._ledger.page]
        return hashes[: self._ledger.match(seat.instance, hashes)]

    def seat(self, seat: Seat, live: Live) -> None:
        """Put a request on an instance, with what is known there of its prompt."""
        # The last known token is always computed: its logits are what the first draw needs.
        hashes = self.found(seat, live, live.known - 1)
        self._ledger.open(seat.instance, live.id, hashes)
        live.instance, live.planned = seat.instance, len(hashes) * self._ledger.page
        live.room, live.opened, live.leaving = 0, False, False
        live.passing, live.step = not seat.decodes, -1
        seat.lives[live.id] = seat.prefilling[live.id] = live
        seat.promised += live.promise
        seat.taken(live.least if live.passing else live.presumed)
        self._counts.prefix_queries += live.request.prompt_tokens
        self._counts.prefix_hits += live.planned

    def unseat(self, seat: Seat, live: Live) -> None:
        """Take a request off its instance and give back its slots."""
        assert live.flying == 0
        assert live.transfer is None
        self.idle(seat, live)
        self.vacate(seat, live)
        live.leaving = False
        live.instance = -1

    def vacate(self, seat: Seat, live: Live) -> None:
        """Give back what a request has where it ran; it goes on elsewhere or not at all."""
        self._ledger.release(seat.instance, live.id)
        del seat.lives[live.id]
        seat.promised -= live.promise
        seat.stir()
        if live.opened:
            seat.closed.append(live.id)

    def decode(self, seat: Seat, live: Live) -> None:
        """A request whose known tokens are all planned takes one more in each step from now on."""
        seat.decoding[live.id] = live
        self._set_room(seat, live)
        seat.stir()

    def idle(self, seat: Seat, live: Live) -> None:
        """Issue no more steps for a request that stays for its steps in flight."""
        seat.prefilling.pop(live.id, None)
        seat.decoding.pop(live.id, None)

    def build(self, seat: Seat, step: int) -> tuple[Step, Flight] | None:
        """The next step of an instance, or None if nothing on it can run."""
        rows: list[Row] = []
        opened: list[int] = []
        chunks: list[Live] = []
        grown: list[Live] = []
        again: list[Live] = []
        context, repeat = 0, self._repeat(seat)
        if self.config.prompts_first:
            chunks = self._prefill(seat, self.limit(seat), rows, opened)
        if not chunks:
            grown, again, context = self._decode(seat, rows, opened, repeat)
        if not self.config.prompts_first:
            chunks = self._prefill(seat, self.limit(seat) - len(grown) - len(again), rows, opened)
        lives = (*grown, *chunks, *again)
        if not lives:
            return None
        if seat.stages > 1:
            seat.turn += 1
            for live in lives:
                live.turn = seat.turn
        made = Step(
            id=step,
            group=(seat.instance,),
            rows=tuple(rows),
            again=tuple([live.id for live in again]),
            opened=tuple(opened),
            closed=tuple(seat.closed),
            context_tokens=context,
            repeat=repeat,
            model=self._model,
        )
        seat.closed.clear()
        return made, Flight((seat,), lives)

    def _repeat(self, seat: Seat) -> int:
        """Tokens that every decoding row draws in the next step: none of them more than it may."""
        if self.config.repeat == 1 or seat.prefilling or seat.stages > 1:
            return 1
        undrawn = (live.undrawn for live in seat.decoding.values())
        return min((each for each in undrawn if 0 < each < self.config.repeat), default=self.config.repeat)

    def _decode(
        self, seat: Seat, rows: list[Row], opened: list[int], count: int
    ) -> tuple[list[Live], list[Live], int]:
        """So many more tokens for every decoding row, or for a share of them where steps pass several stages:
        those that get new slots, the others, and the context of the latter in tokens."""
        grown: list[Live] = []
        again: list[Live] = []
        context = 0
        share = -(-len(seat.decoding) // seat.stages)
        for live in self._in_turn(seat):
            if len(grown) + len(again) == share:
                break
            if live.room >= count:
                context += live.planned + 1
                live.room -= count
                live.planned += count
                live.flying += 1
                again.append(live)
            elif live.id in seat.decoding and self._regrow(seat, live, rows, opened, count):
                grown.append(live)
        if seat.stages > 1:  # who was planned last stands last
            for live in (*again, *grown):
                if live.id in seat.decoding:  # an older row may have made it yield
                    seat.decoding[live.id] = seat.decoding.pop(live.id)
        return grown, again, context

    def _in_turn(self, seat: Seat) -> tuple[Live, ...]:
        """Decoding rows that may go along in the next step.

        No stage can begin with a row that is in another one, so with several stages these are the rows that
        the last steps, one fewer than there are stages, do not have: newcomers join those whose turn it is.
        Where every row is in one of them, those with the fewest steps in flight go on.
        """
        rows = tuple(seat.decoding.values())
        if seat.stages == 1:
            return rows
        past = seat.turn - seat.stages + 1
        ready = tuple(live for live in rows if not live.flying or live.turn <= past)
        fewest = min((live.flying for live in rows), default=0)
        return ready or tuple(live for live in rows if live.flying == fewest)

    def _regrow(self, seat: Seat, live: Live, rows: list[Row], opened: list[int], count: int) -> bool:
        """Plan so many tokens of a decoding row that needs slots first, or is new here. False: not in this
        step."""
        if live.undrawn <= 0:
            self.idle(seat, live)  # every token it may draw is in flight
            return False
        spans = self._own(seat, live, live.planned + count)
        if spans is None:
            return False
        if not live.opened:
            spans = self._open(seat, live, opened)
        row = Row(live.id, live.planned, 1, given=False, draws=True, spans=spans, master=seat.instance)
        rows.append(row)
        live.planned += count
        live.flying += 1
        self._set_room(seat, live)
        return True

    def _prefill(self, seat: Seat, budget: int, rows: list[Row], opened: list[int]) -> list[Live]:
        """Known tokens within the budget, oldest request first: cut into chunks beside rows that decode,
        whole where only prompts are computed."""
        chunks: list[Live] = []
        whole = self.config.prompts_first or not (seat.decodes or seat.decoding)
        for live in sorted(seat.prefilling.values(), key=lambda live: live.order):
            count = live.known - live.planned
            if whole and chunks and count > budget:
                break
            if not whole:
                count = min(budget, count)
            if count <= 0:
                break
            # An older row may have made this one yield.
            if live.id in seat.prefilling and self._chunk(seat, live, count, rows, opened):
                chunks.append(live)
                budget -= count
        return chunks

    def _chunk(self, seat: Seat, live: Live, count: int, rows: list[Row], opened: list[int]) -> bool:
        """Plan the next `count` known tokens of a row. False: not in this step."""
        start = live.planned
        spans = self._own(seat, live, start + count)
        if spans is None:
            return False
        if not live.opened:
            spans = self._open(seat, live, opened)
        live.planned += count
        live.flying += 1
        draws = live.planned == live.known
        rows.append(Row(live.id, start, count, draws=draws, spans=spans, master=seat.instance))
        if self.config.prefix_cache:
            self.publish(seat, live, start)
        if draws:
            del seat.prefilling[live.id]
            if live.passing:
                self.computed.append(live)
                seat.stir()
            else:
                self.decode(seat, live)
        return True

    def _open(self, seat: Seat, live: Live, opened: list[int]) -> tuple[Span, ...]:
        """A step introduces a row to its instance, with all its slots."""
        live.opened = True
        opened.append(live.id)
        return (Span(seat.instance, 0, self._ledger.extents(seat.instance, live.id)),)

    def publish(self, seat: Seat, live: Live, start: int) -> None:
        """Others may share the blocks from position `start` on. (Those of issued steps count, too: the steps
        of an instance run in order.)"""
        page, hashes = self._ledger.page, live.request.block_hashes
        begin = start // page
        done = hashes[begin : live.planned // page]
        if done:
            self._ledger.publish(seat.instance, live.id, begin, done)

    def _set_room(self, seat: Seat, live: Live) -> None:
        held = self._ledger.held(seat.instance, live.id)
        live.room = max(0, min(held - live.planned, live.undrawn))

    def _own(self, seat: Seat, live: Live, tokens: int) -> tuple[Span, ...] | None:
        """Slots for `tokens` tokens, as the span that is new. None: not in this step.

        Where there are none, the youngest request on the instance yields: the oldest one always
        gets on, so that two requests cannot push each other out for ever.
        """
        first = self._ledger.held(seat.instance, live.id)
        while (extents := self._ledger.grow(seat.instance, live.id, tokens)) is None:
            if any(other.leaving or other.over or other.transfer for other in seat.lives.values()):
                return None  # slots come back, or a younger row arrives, with an answer that will come
            movable = (other for other in seat.lives.values() if not other.held)
            victim = max(movable, key=lambda other: other.order)
            self._counts.preemptions += 1
            self.send_back(seat, victim)
            if victim is live or victim.leaving:
                return None
        return (Span(seat.instance, first, extents),) if extents else ()

    def send_back(self, seat: Seat, live: Live) -> None:
        """A request loses its place; its slots stay pinned until its steps in flight are answered."""
        self.idle(seat, live)
        live.leaving, live.room = True, 0  # the step that is built now may still come to it
        if live.flying == 0 and live.transfer is None:
            self.unseat(seat, live)
            self.yielded.append(live)
