"""`Pools`: slots that one more request may come to hold, over instances on which it may lie anywhere.

Elastic instances are one pool, or two: where some take prompts only, a prompt needs room for itself there and
for all the rest where it will decode, as `Handover` has it. It is the sorted-remaining rule of `Admission`.
"""

from plait.serving.admission import Admission
from plait.serving.ensemble import Ensemble
from plait.serving.ledger import KvLedger
from plait.serving.live import Live


class Pools:
    """Reckons; nothing is kept from one question to the next."""

    def __init__(
        self, ensemble: Ensemble, ledger: KvLedger, admission: Admission, depth: int, held_share: float
    ) -> None:
        """`depth`: steps in flight on an instance; `held_share`: see `HandoverConfig`."""
        self._ensemble = ensemble
        self._ledger = ledger
        self._admission = admission
        self._depth = depth
        self._held_share = held_share

    def at_least(self) -> int:
        """No more than `to_compute` where nothing is apart, told without a look at every request's slots: as
        if all came to hold the most that they may, with a half empty page on every instance, and those that
        move at both ends."""
        lives, pool = self._ensemble.lives.values(), self._ensemble.decoders
        moving = [live.most for live in lives if live.relocation is not None]
        edges = self._ledger.page * len(pool) * (len(lives) + len(moving))
        most = sum([live.most for live in lives]) + sum(moving)
        return sum(self._ledger.capacity(instance) for instance in pool) - most - edges

    def to_compute(self) -> int:
        """For requests of the queue."""
        if not self._ensemble.apart:
            return self.to_decode()
        ledger, pool = self._ledger, self._ensemble.prefillers
        capacity = sum(ledger.capacity(instance) for instance in pool)
        promised = waiting = 0
        for live in self._ensemble.lives.values():
            there = [instance for instance in live.instances if instance in pool]
            held = sum(ledger.held(instance, live.id) for instance in there)
            if ledger.whole(live.planned) >= live.least:
                waiting += held
            elif live.master < 0:
                held = max(held, live.least + ledger.page * len(there))
            promised += held
        return 0 if waiting > self._held_share * capacity else capacity - promised

    def lacks(self, live: Live) -> int:
        """Slots that a request which waits to decode is to find beyond those that it keeps."""
        away, ledger = self._ensemble.away_from_home(live), self._ledger
        self._admission.presume(live)
        return live.presumed - sum(ledger.held(i, live.id) for i in live.instances if i not in away)

    def to_decode(self) -> int:
        """For requests whose prompt is computed elsewhere, or those that do both here."""
        page, ledger, ensemble = self._ledger.page, self._ledger, self._ensemble
        pool, apart = ensemble.decoders, ensemble.apart
        capacity = sum(ledger.capacity(instance) for instance in pool)
        lockstep: list[tuple[int, int]] = []
        fixed = promised = 0
        for live in ensemble.lives.values():
            parts = [instance for instance in _places(live) if instance in pool]
            if apart and not parts:
                continue
            held = sum(ledger.held(instance, live.id) for instance in parts)
            if apart and live.master < 0 and live.relocation is None:
                fixed, promised = fixed + held, promised + held  # it has no promise of room for the rest
                continue
            edges = page * len(parts)  # a page of each instance may stay half empty
            self._admission.presume(live)
            grown = max(0, live.presumed + edges - held)
            promised += max(held, live.most + edges)
            if live.id in ensemble.decoding:
                lockstep.append((grown, held))
            else:
                fixed += held + grown
        lockstep.sort(reverse=True)
        peak = run = 0
        for count, (grown, held) in enumerate(lockstep, 1):
            run += held
            peak = max(peak, run + grown * count + (page - 1 + self._depth) * (count - 1))
        return capacity - min(promised, fixed + peak)


def _places(live: Live) -> tuple[int, ...]:
    """Where it has slots."""
    if live.relocation is None:
        return live.instances
    return (*live.instances, *live.relocation.targets)
