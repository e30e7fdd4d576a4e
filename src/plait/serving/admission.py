"""`Admission`: the bounded queue, deadlines, and whether a request fits an instance.

The memory test is the sorted-remaining rule of LightLLM and LoongServe (research: LoongServe 5.1):
if rows decode in lockstep and leave when their tokens are used up, memory peaks at one of the
moments just before a row leaves. Two things make the others larger than that at this moment, and
both are counted: slots come in pages, whose edges rows reach at different steps; and with several
steps in flight the others grow on while the last step of the row that leaves is not answered. A row
whose prompt is not computed yet does not grow in lockstep, so it counts with the most it can hold.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """How many requests wait, and how much memory is promised."""

    max_queue: int = 4096
    """Requests that may wait; one more is refused."""
    max_rows: int = 256
    """Requests on one instance."""
    bypass: int = 16
    """Times in a row that the request at the head may be passed by younger ones that fit."""
    look: int = 8
    """How far behind a blocked head to look for one that fits, in requests."""
    ttft_ns: int | None = None
    """Refuse a request whose first token would come later than this, as far as can be foretold; None: refuse
    none for that."""
    priority_ns: int = 0
    """A request of priority p goes as if it had come p times this later. So it is passed only by those that
    come within its difference in priority times this, however many there are. 0: priorities are ignored."""
    output_share: float = 1.0
    """Share of their remaining tokens that requests are presumed to draw. 1: preemption never
    happens; less: more rows at once, and recomputation when the presumption fails."""


class Admission:
    """Keeps the requests that wait, in their order: by arrival, and by priority where it counts. A preempted
    request goes before those that come after it in this order."""

    def __init__(self, config: AdmissionConfig, ledger: KvLedger, ahead: int = 0) -> None:
        """`ahead`: tokens that others may be given between a row's last one and its answer."""
        self.config = config
        self._ledger = ledger
        self._ahead = ledger.whole(ledger.page - 1 + ahead)
        self._queue: deque[Live] = deque()
        self.version = 0
        """Changes when another request may come into an instance's view of the queue."""
        self._open_ended = True
        """An instance has looked at the whole queue in vain: what joins at the end comes into its view."""
        self._least = (-1, 0, 0)
        """Version of the queue, and the fewest slots that a request in the view of it asks for where its
        prompt is computed only, and where it decodes too."""
        self._deadlines: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Live]:
        return iter(self._queue)

    @property
    def full(self) -> bool:
        """No more arrivals may wait."""
        return len(self._queue) >= self.config.max_queue

    def order(self, priority: int, now_ns: int) -> int:
        """The place of a request that comes now: lower goes first."""
        return now_ns + priority * self.config.priority_ns

    def before(self, order: int) -> Iterator[Live]:
        """Those that go before a request of this order."""
        return takewhile(lambda live: live.order < order, self._queue)

    def push(self, live: Live) -> None:
        """A new request joins: at the end, unless its priority is better than that of others."""
        if self._queue and live.order < self._queue[-1].order:
            self.put_back(live)
            return
        self._measure(live)
        self._queue.append(live)
        if self._open_ended:
            self.version += 1
            self._open_ended = False

    def put_back(self, live: Live) -> None:
        """A request that ran before, or has a better priority, takes its place among the others."""
        at = 0
        while at < len(self._queue) and self._queue[at].order <= live.order:
            at += 1
        self._measure(live)
        self._queue.insert(at, live)
        self.version += 1

    def drop(self, live: Live) -> None:
        """A waiting request ended."""
        self._queue.remove(live)
        self.version += 1

    def head(self) -> Live | None:
        """The request whose turn it is."""
        return self._queue[0] if self._queue else None

    def hopeless(self, seat: Seat) -> bool:
        """Cheaply: nothing in the queue can go to `seat` before something there changes."""
        if seat.blocked == self.version or len(seat.lives) >= self.config.max_rows:
            return True
        if seat.room is None or self._ledger.capacity(seat.instance) < self._ledger.most:
            return False  # a smaller instance looks past requests that it could never hold
        if self._least[0] != self.version:
            view = islice(self._queue, self.config.look + 1)
            asked = [(live.least, live.presumed) for live in view] or [(0, 0)]
            self._least = (self.version, min(asked)[0], min(presumed for _, presumed in asked))
            self._open_ended |= len(self._queue) <= self.config.look + 1
        return seat.room < self._least[1 + seat.decodes]

    def take(self, seat: Seat) -> Live | None:
        """The next request that `seat` can run now, removed from the queue; None if none fits.

        A request that the whole of `seat` could not hold stands in nobody's way there.
        """
        first: Live | None = None
        look = self.config.look
        for at, live in enumerate(self._queue):
            if not self.fits_alone(seat, live):
                continue
            if (live.presumed if seat.decodes else live.least) <= self.room(seat):
                del self._queue[at]
                self.version += 1
                if first is not None:
                    first.bypassed += 1
                return live
            first = first or live
            look -= 1
            if look < 0 or first.bypassed >= self.config.bypass:
                break
        else:
            self._open_ended = True
        seat.blocked = self.version
        return None

    def room(self, seat: Seat) -> int:
        """Slots that one more request may come to hold on `seat`."""
        if seat.room is None:
            capacity = self._ledger.capacity(seat.instance)
            seat.room = capacity - min(seat.promised, self._peak(seat))
        return seat.room

    def fits_alone(self, seat: Seat, live: Live) -> bool:
        """Whether `live` could ever run on `seat`."""
        return (live.most if seat.decodes else live.least) <= self._ledger.capacity(seat.instance)

    def presume(self, live: Live) -> None:
        """Reckon anew what a request will need where it decodes."""
        live.presumed = self._ledger.whole(self._presumed(live))

    def _measure(self, live: Live) -> None:
        live.most = self._ledger.whole(live.longest)
        live.least = self._ledger.whole(live.known)
        self.presume(live)

    def _presumed(self, live: Live) -> int:
        left = live.longest - live.known + 1
        return live.known - 1 + max(1, int(left * self.config.output_share + 0.999))

    def _peak(self, seat: Seat) -> int:
        """Slots at the worst coming moment."""
        page, holdings = self._ledger.page, self._ledger.holdings(seat.instance)
        whole_share = self.config.output_share == 1.0
        lockstep: list[tuple[int, int]] = []
        fixed, mine = 0, 0
        for id, live in seat.lives.items():
            holding = holdings[id]
            private = holding.private * page
            mine += private
            if live.passing and live.instance == seat.instance:
                final = live.least
            else:
                final = live.most if whole_share else self._ledger.whole(self._presumed(live))
            grown = max(0, final - holding.count * page)
            if id in seat.decoding:
                lockstep.append((grown, private))
            else:
                fixed += private + grown
        shared = self._ledger.used(seat.instance) - mine
        lockstep.sort(reverse=True)
        peak, run = 0, 0
        for count, (grown, private) in enumerate(lockstep, 1):
            run += private
            peak = max(peak, run + grown * count + self._ahead * (count - 1))
        return shared + fixed + peak

    def watch(self, live: Live) -> None:
        """Remember the request's deadline, if it has one."""
        if live.request.deadline_ns is not None:
            heapq.heappush(self._deadlines, (live.request.deadline_ns, live.id))

    @property
    def next_deadline_ns(self) -> int | None:
        """The earliest deadline that has not passed."""
        return self._deadlines[0][0] if self._deadlines else None

    def passed(self, now: int) -> list[int]:
        """Requests whose deadline has come, earliest first."""
        due: list[int] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            due.append(heapq.heappop(self._deadlines)[1])
        return due
