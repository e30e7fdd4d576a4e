"""`Verdict`: what runs under faults came to, and the claims that follow."""

from collections import Counter
from dataclasses import dataclass, field

import claim

BOUND_S = 30.0
"""By then a request that was accepted has ended, with its tokens or with an error."""


@dataclass
class Verdict:
    """Of several runs together."""

    faults: Counter[str] = field(default_factory=Counter)
    """What was done, and at which stage, in words -> how often."""
    ends: Counter[str] = field(default_factory=Counter)
    """How requests ended -> how many."""
    wrong: list[str] = field(default_factory=list)
    """Requests that lost, doubled or changed a token, ended twice or never, in words."""
    leaked: int = 0
    """Slots held with nothing left to do."""
    longest_s: float = 0.0
    """From an arrival to its end."""
    recomputed: int = 0
    """Times that a request lost its place with a worker or a move, and went on elsewhere."""

    def add(self, other: "Verdict") -> None:
        """Take in what another run came to."""
        self.faults += other.faults
        self.ends += other.ends
        self.wrong += other.wrong
        self.leaked += other.leaked
        self.longest_s = max(self.longest_s, other.longest_s)
        self.recomputed += other.recomputed

    def claims(self, world: str, least: int) -> list[claim.Claim]:
        """Held against bars; `least`: faults that there must be."""
        exact = sum(self.ends[reason] for reason in ("stop", "length"))
        return [
            claim.at_least(f"{world}: faults", self.faults.total(), least),
            claim.at_most(
                f"{world}: requests with a wrong, lost or doubled token or end", len(self.wrong), 0
            ),
            claim.at_most(f"{world}: slots leaked", self.leaked, 0),
            claim.at_most(f"{world}: longest from arrival to end, s", self.longest_s, BOUND_S),
            claim.Claim(f"{world}: kinds of faults at stages", len(self.faults), None, True),
            claim.Claim(f"{world}: requests with all their tokens", exact, None, True),
            claim.Claim(f"{world}: requests with an error", self.ends.total() - exact, None, True),
        ]

    def recovered(self, world: str) -> claim.Claim:
        """Where it is known: requests whose instance or move was lost went on elsewhere."""
        return claim.at_least(f"{world}: requests recomputed", self.recomputed, 1)
