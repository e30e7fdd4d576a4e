"""`Masters`: who computes a decoding row's next tokens and keeps their KV.

Existing KV never moves: another master only means that later tokens lie elsewhere (LoongServe, section 4.2).
The fullest instance of a request's own that has room and few enough rows is taken first, so that groups stay
small; beyond that the group grows, by an idle instance if there is one.
"""

from plait.serving import reasons
from plait.serving.ensemble import Ensemble
from plait.serving.groups import Group
from plait.serving.ledger import KvLedger
from plait.serving.live import Live

Choice = tuple[int, str]
"""An instance, and why it is chosen; in no words where there was no choice."""


class Masters:
    """Chooses; `Ensemble` appoints."""

    def __init__(self, rows: int, ensemble: Ensemble, ledger: KvLedger) -> None:
        """`rows`: from so many on a master is bound by arithmetic."""
        self._rows = rows
        self._ensemble = ensemble
        self._ledger = ledger

    def rows(self) -> dict[int, int]:
        """Decoding rows of each master."""
        count = dict.fromkeys(self._ensemble.seats, 0)
        for live in self._ensemble.decoding.values():
            count[live.master] += 1
        return count

    def first(self, live: Live) -> Choice:
        """For a request that begins to decode where it is."""
        own = [i for i in live.instances if i in self._ensemble.seats]
        count = self.rows()
        able = [i for i in own if self._roomy(live, i)]
        easy = [i for i in able if count[i] < self._rows]
        if easy:
            master = max(easy, key=lambda i: (self._ledger.used(i), -i))
            return master, reasons.of_first_master(master, len(own))
        more = self._emptiest(live, idle_only=bool(able))
        if more is None:
            master = min(able or own, key=lambda i: (count[i], i))
            return master, reasons.of_last_resort(master, len(own))
        return more, reasons.of_added_master(more, own, self._rows if able else None)

    def other(self, live: Live, group: Group) -> Choice | None:
        """For a row whose master is full: one of its group if possible, else the emptiest. None: all are."""
        able = [i for i in group.members if self._roomy(live, i)]
        if able:
            count = self.rows()
            master = min(able, key=lambda i: (count[i], -self._ensemble.unused(i), i))
            return master, reasons.of_relief(live.master, master, len(group.members))
        more = self._emptiest(live)
        return None if more is None else (more, reasons.of_added_master(more, group.members, None))

    def spread(self, group: Group) -> None:
        """Where a master has too many rows and an instance is idle, half of them get that one as master."""
        if len(group.lives) <= self._rows:
            return
        count = self.rows()
        for master in group.members:
            idle = [seat.instance for seat in self._ensemble.spare() if seat.instance not in group.members]
            if count[master] <= self._rows or not idle:
                continue
            new = max(idle, key=lambda i: (self._ensemble.unused(i), -i))
            rows = [live for live in group.lives.values() if live.master == master]
            why = reasons.of_spread(master, new, len(rows) // 2, len(rows), self._rows)
            for live in rows[: len(rows) // 2]:
                self._ensemble.appoint(live, new, why)
            return

    def _roomy(self, live: Live, instance: int) -> bool:
        """It has a page, or slots of the request's own that are not filled."""
        assert live.parts is not None
        if self._ensemble.unused(instance) >= self._ledger.page:
            return True
        if instance not in live.parts:
            return False
        mine = live.planned - live.away if instance == live.master else live.parts[instance]
        return self._ledger.held(instance, live.id) > mine

    def _emptiest(self, live: Live, idle_only: bool = False) -> int | None:
        seats = self._ensemble.spare() if idle_only else self._ensemble.able()
        able = [seat.instance for seat in seats if self._roomy(live, seat.instance)]
        return max(able, key=lambda i: (self._ensemble.unused(i), -i), default=None)
