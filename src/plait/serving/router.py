"""`Router`: which instance takes a request that could run on several."""

from collections.abc import Iterable

from plait.serving.admission import Admission
from plait.serving.batcher import Batcher
from plait.serving.handover import Handover
from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat


class Router:
    """Sends a request where its first token comes soonest: few prompt tokens ahead of it, many of
    its own already computed. Ties go to the instance that has promised the fewest slots."""

    def __init__(self, ledger: KvLedger, admission: Admission, batcher: Batcher, handover: Handover) -> None:
        self._ledger = ledger
        self._admission = admission
        self._batcher = batcher
        self._handover = handover

    def order(self, seats: Iterable[Seat], live: Live) -> list[Seat]:
        """Those of `seats` that are worth trying, best first."""
        ready = [seat for seat in seats if self._ready(seat)]
        if len(ready) < 2:
            return ready
        page, hashes = self._ledger.page, live.request.block_hashes

        def cost(seat: Seat) -> tuple[int, int, int]:
            known = page * self._ledger.match(seat.instance, hashes) if hashes else 0
            return (seat.backlog - known, seat.promised, seat.instance)

        return sorted(ready, key=cost)

    def _ready(self, seat: Seat) -> bool:
        """An instance whose prompts would keep a newcomer waiting for more than a step is not worth trying:
        in the common queue it may still go where there is room first. Nor is one that should give its room
        to requests that wait to be pulled, or that holds too many of them."""
        if not seat.prefills or self._admission.hopeless(seat):
            return False
        if seat.prefilling and seat.backlog >= self._batcher.limit(seat):
            return False
        return not (self._handover.blocked and seat.decodes) and not self._handover.full(seat)
