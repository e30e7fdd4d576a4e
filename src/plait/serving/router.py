"""`Router`: which instance takes a request that could run on several."""

from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat


class Router:
    """Sends a request where its first token comes soonest: few prompt tokens ahead of it, many of
    its own already computed. Ties go to the instance that has promised the fewest slots."""

    def __init__(self, ledger: KvLedger) -> None:
        self._ledger = ledger

    def order(self, seats: list[Seat], live: Live) -> list[Seat]:
        """`seats`, best first."""
        page, hashes = self._ledger.page, live.request.block_hashes

        def cost(seat: Seat) -> tuple[int, int, int]:
            known = page * self._ledger.match(seat.instance, hashes) if hashes else 0
            return (seat.backlog - known, seat.promised, seat.instance)

        return sorted(seats, key=cost)
