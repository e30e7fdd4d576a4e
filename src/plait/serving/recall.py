"""`Recall`: prompts on elastic instances go on from a prefix that another one left there.

A prefix is known where one instance has all of it. It is published once the prompt is computed and answered,
so nobody ever reads what a failed step left out. A prompt that goes on from one needs a step of its own, on a
group with that instance: that is worth it if it saves more than the fixed part of such a step.
"""

from collections.abc import Sequence

from plait.search.batching import Width
from plait.serving.admission import Admission
from plait.serving.ensemble import Ensemble
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Live


class Recall:
    """Finds and publishes prefixes."""

    def __init__(self, ensemble: Ensemble, ledger: KvLedger, admission: Admission, counts: Counts) -> None:
        self._ensemble = ensemble
        self._ledger = ledger
        self._admission = admission
        self._counts = counts

    def left(self, lives: Sequence[Live], one: Width) -> list[Live]:
        """Have requests of the queue go on from prefixes that are known: they are computed in part then. The
        others are returned.

        Args:
            one: time of a prompt on one instance.
        """
        return [live for live in lives if not (live.request.block_hashes and self._take(live, one))]

    def _take(self, live: Live, one: Width) -> bool:
        page, ledger = self._ledger.page, self._ledger
        # The last known token is always computed: its logits are what the first draw needs.
        hashes = live.request.block_hashes[: (live.known - 1) // page]
        seats = self._ensemble.prefillers.values()
        found = [(ledger.match(seat.instance, hashes), -seat.instance) for seat in seats if not seat.retiring]
        count, negative = max(found, default=(0, 0))
        tokens = count * page
        if one.beta * tokens + one.gamma * tokens * tokens <= one.alpha:
            return False
        self._counts.prefix_hits += tokens
        self._admission.drop(live)
        self._ensemble.enter_behind(live, -negative, hashes[:count])
        return True

    def publish(self, live: Live) -> None:
        """A request's prompt is computed: others may share the blocks of which one instance has all from the
        first on."""
        self._counts.prefix_queries += live.request.prompt_tokens
        first = live.kept[0]
        hashes = live.request.block_hashes[: first.count // self._ledger.page]
        self._ledger.publish(first.instance, live.id, 0, hashes)
