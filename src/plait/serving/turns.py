"""`Turns`: rows that decode are not put off for ever by prompts that come one after the other.

Where prompts are computed rows ride in their steps, but not all can: those of a group of several instances
need all of them at once, and a row whose master is full needs another one first. So when rows of a group have
waited for too long, nothing new begins on any of its instances until they have taken a step.
"""

from collections.abc import Callable, Iterable

from plait.serving.ensemble import Ensemble, Made
from plait.serving.groups import Group


class Turns:
    """Owns when rows took their last step, by instance, and whose turn it is."""

    def __init__(self, ensemble: Ensemble, longest_ns: float, slack_ns: Callable[[Group], float]) -> None:
        """
        Args:
            longest_ns: rows wait for prompts, if they are late.
            slack_ns: for how long the rows of a group may wait and keep to their objective.
        """
        self._ensemble = ensemble
        self._longest_ns = longest_ns
        self._slack_ns = slack_ns
        self._stepped_ns: dict[int, int] = {}

    def look(self, now_ns: int) -> None:
        """Find the groups that have waited for too long: prompts leave their instances alone."""
        late = (group for group in self._ensemble.groups if self._starves(group, now_ns))
        self._ensemble.reserved = {member for group in late for member in group.members}

    def forget(self) -> None:
        """It is nobody's turn."""
        self._ensemble.reserved = set()

    def _starves(self, group: Group, now_ns: int) -> bool:
        last_ns = min(self._stepped_ns.get(member, 0) for member in group.members)
        return now_ns - last_ns > self._longest_ns and self._slack_ns(group) < 0

    def yields(self, members: Iterable[int]) -> bool:
        """Rows on some of these instances go before prompts."""
        return not self._ensemble.reserved.isdisjoint(members)

    def stepped(self, members: Iterable[int], now_ns: int) -> None:
        """The rows of a group on these instances take a step."""
        for member in members:
            self._stepped_ns[member] = now_ns

    def computed(self, made: Made, now_ns: int) -> None:
        """A step with prompts is issued; it counts for the groups of which all rows ride."""
        step, flight = made
        taken, members = {live.id for live in flight.lives}, set(step.group)
        for group in self._ensemble.groups:
            if members.issuperset(group.members) and group.lives.keys() <= taken:
                self.stepped(group.members, now_ns)
