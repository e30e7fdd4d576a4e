"""`Crossings`: what becomes of a request when moves of it are answered, or when an end of them is lost.

What `Handover` and `Relocations` said comes back here. A request goes on where it was brought, waits anew
where it is, or is recomputed; the manager alone ends requests.
"""

from collections.abc import Callable

from plait.serving.ensemble import Ensemble
from plait.serving.handover import Handover
from plait.serving.live import Live, Relocation, Seat, Transfer
from plait.serving.relocations import Relocations

Fate = Callable[[Seat | None, Live], None]
"""What is done to a request that has something on an instance; None: on one that is gone, or on several."""


class Crossings:
    """Takes answers; `settle` frees who ended or yielded, `lose` has a request recomputed."""

    def __init__(
        self, handover: Handover, relocations: Relocations, ensemble: Ensemble, settle: Fate, lose: Fate
    ) -> None:
        self._handover = handover
        self._relocations = relocations
        self._ensemble = ensemble
        self._settle = settle
        self._lose = lose

    def answered(self, move: int, arrived: bool) -> None:
        """A move succeeded, or failed."""
        self._settled(self._relocations.answered(move, arrived))
        transfer = self._handover.answered(move)
        if transfer is None:
            return
        if transfer.void:
            self.back(transfer)
        elif arrived:
            self._handover.land(transfer)
        elif not self._handover.retry(transfer):
            self.back(transfer, lost=True)

    def survives(self, live: Live, lost: Seat) -> bool:
        """An instance where a request has slots is gone; whether it still has all its KV, and was seen to."""
        if live.transfer is not None and live.transfer.target is lost:
            self._handover.forsake(live.transfer)
            self.back(live.transfer)
            return True
        return live.relocation is not None and self._spared(live, live.relocation, lost)

    def _spared(self, live: Live, relocation: Relocation, lost: Seat) -> bool:
        whole = lost.instance in relocation.targets
        ended = self._relocations.lost(relocation, lost.instance)
        if whole:
            self._settled(ended)
        elif ended is not None:
            self._relocations.retreat(ended)
        return whole

    def _settled(self, relocation: Relocation | None) -> None:
        """All moves of a request between elastic instances were answered."""
        if relocation is None:
            return
        live = relocation.live
        if not (relocation.broken or live.over or live.leaving):
            self._relocations.arrive(relocation)
            return
        self._relocations.retreat(relocation)
        if live.over or live.leaving:
            self._settle(None, live)
        elif relocation.spent and self._ensemble.away_from_home(live):
            live.attempts += 1
            self._lose(None, live)
        else:
            self._relocations.offer(live)

    def turn_back(self, transfer: Transfer) -> None:
        """The target does not have what it had of a request: it is to be moved anew."""
        self._handover.revoke(transfer.live)
        if transfer.live.transfer is None:
            self._handover.offer(transfer.live)

    def back(self, transfer: Transfer, lost: bool = False) -> None:
        """A request has nothing of use at its target. Unless `lost`, its source still has all."""
        live = transfer.live
        self._handover.retreat(transfer)
        if live.over or live.leaving:
            self._settle(transfer.source, live)
        elif lost or transfer.source is None:
            live.attempts += 1
            self._lose(transfer.source, live)
        else:
            self._handover.offer(live)
