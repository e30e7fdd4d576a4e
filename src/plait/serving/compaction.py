"""`Compaction`: instances that prompts get because the rows that decode there go on elsewhere.

LoongServe's instance allocation (section 5.2): idle instances first; then the least used one is freed by
moving its KV to others that decode, as long as prompts gain more than its rows lose; only then do rows pause.
Prompts need not wait for the copies: they take the slots that are free already.
"""

from collections.abc import Callable, Collection, Sequence

from plait.search.batching import Job, Width
from plait.serving import reasons
from plait.serving.allocation import Gain, gain_of
from plait.serving.ensemble import Ensemble
from plait.serving.groups import Group
from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat
from plait.serving.relocations import Relocations


class Compaction:
    """Decides; `Relocations` carries out."""

    def __init__(
        self, token_ns: float, tpot_ns: float, ensemble: Ensemble, ledger: KvLedger, relocations: Relocations
    ) -> None:
        """`token_ns`: time to move the KV of a token; 0: nothing is moved. `tpot_ns`: see `ElasticConfig`."""
        self._token_ns = token_ns
        self._tpot_ns = tpot_ns
        self._ensemble = ensemble
        self._ledger = ledger
        self._relocations = relocations

    def freed(
        self,
        jobs: Sequence[Job],
        widths: Sequence[Width],
        have: int,
        wait_ns: Callable[[Group], float],
        slack_ns: Callable[[Group], float],
        share: float,
    ) -> list[Seat]:
        """Instances from which everything goes on elsewhere from now on.

        Args:
            have: instances that the jobs have without.
            wait_ns: until rows of a group have ended, on average.
            slack_ns: for how long rows of a group may wait and keep to their objective.
            share: of the tokens that rows may still draw, those that they are presumed to.
        """
        found: list[Seat] = []
        if not self._token_ns:
            return found
        for seat, group in self._candidates():
            lives = list(seat.lives.values())
            if any(live.id not in self._ensemble.decoding for live in lives):
                continue
            tokens = sum(self._tokens(live, seat.instance) for live in lives)
            move_ns = tokens * self._token_ns
            lengths = [live.known + live.undrawn * share for live in lives]
            gain = gain_of(jobs, widths, have + len(found), 1, wait_ns(group))
            late = self._tpot_ns and slack_ns(group) < move_ns
            if late or not self._pays(gain, move_ns, lengths) or not self._room(lives, seat, found):
                break
            why = reasons.of_compaction(seat.instance, len(lives), tokens, move_ns, gain)
            for live in lives:
                self._relocations.rest(live, (seat.instance,), why)
            found.append(seat)
        return found

    def _candidates(self) -> list[tuple[Seat, Group]]:
        """Instances where rows decode, the least used first."""
        ensemble = self._ensemble
        free = {seat.instance: seat for seat in ensemble.free()}
        found = [
            (free[member], group)
            for group in ensemble.groups
            if not ensemble.pausing(group)
            for member in group.members
            if member in free and member in ensemble.decoders
        ]
        return sorted(found, key=lambda each: (self._ledger.used(each[0].instance), each[0].instance))

    @staticmethod
    def _pays(gain: Gain, move_ns: float, lengths: Sequence[float]) -> bool:
        """Prompts gain more than rows lose, and rows lose less than if they paused."""
        return move_ns < gain.with_ns and gain.value > move_ns * sum(1 / max(each, 1.0) for each in lengths)

    def _room(self, lives: Sequence[Live], seat: Seat, found: Collection[Seat]) -> bool:
        """Every row finds one other instance for all that it keeps here, in pages of its own."""
        gone = {seat.instance, *(each.instance for each in found)}
        targets = (each.instance for each in self._relocations.crowd() if each.instance not in gone)
        unused = {target: self._ensemble.unused(target) for target in targets}
        for live in lives:
            need = self._ledger.whole(self._tokens(live, seat.instance)) + self._ledger.page
            able = (i for i, room in unused.items() if room >= need and i not in live.instances)
            target = next(able, None)
            if target is None:
                return False
            unused[target] -= need
        return True

    def _tokens(self, live: Live, instance: int) -> int:
        assert live.parts is not None
        return live.planned - live.away if instance == live.master else live.parts[instance]
