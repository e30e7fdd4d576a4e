"""`Forecast`: when a newcomer's first token would come, by the speed at which prompts were computed."""

from collections.abc import Iterable

from plait.serving.live import Live, Seat
from plait.spec.step import Step

MEMORY = 0.9
"""Weight of what was known when one more step is answered: about ten steps count."""


class Forecast:
    """Learns nanoseconds per prompt token from steps and their answers. Before the first one it knows
    nothing, and nobody is late."""

    def __init__(self) -> None:
        self._issued: dict[int, tuple[int, int, int]] = {}
        """Step with prompt tokens -> its instance, when it was issued, how many tokens."""
        self._answered_ns: dict[int, int] = {}
        """Instance -> when its last step was answered."""
        self._ns = 0.0
        self._tokens = 0.0

    def issued(self, step: Step, now_ns: int) -> None:
        """A step goes out."""
        if tokens := sum(row.count for row in step.rows if row.given):
            self._issued[step.id] = (step.group[0], now_ns, tokens)

    def answered(self, step: int, instance: int, now_ns: int) -> None:
        """A step was answered, or failed: it began when the one before it on its instance was."""
        found = self._issued.pop(step, None)
        if found is not None:
            _, issued_ns, tokens = found
            began_ns = max(issued_ns, self._answered_ns.get(instance, 0))
            self._ns = MEMORY * self._ns + now_ns - began_ns
            self._tokens = MEMORY * self._tokens + tokens
        self._answered_ns[instance] = now_ns

    def lost(self, instance: int) -> None:
        """The steps of an instance will not be answered."""
        self._issued = {step: found for step, found in self._issued.items() if found[0] != instance}

    def first_token_ns(self, tokens: int, waiting: Iterable[Live], seats: Iterable[Seat]) -> float:
        """Time until a prompt of `tokens` tokens that came now would be computed: what is ahead of it is
        shared by the instances that prefill, and it takes its turn after that."""
        able = [seat for seat in seats if seat.prefills]
        if not self._tokens or not able:
            return 0.0
        ahead = sum(live.known for live in waiting) + sum(seat.backlog for seat in able)
        return (ahead / len(able) + tokens) * self._ns / self._tokens
