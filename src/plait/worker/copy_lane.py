"""`CopyLane`: a worker's second lane. It pulls one move after another, beside the compute lane.

    driver --Pull--> waiting --in order of ids--> links to sources --> own pool --Pulled, PullFault--> driver
    driver --Drop--> whatever is said of that move next is its answer

Only this lane writes moved keys and values, so that once a move is answered nothing of it can come.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from plait.spec.errors import ServiceError
from plait.worker.channel import LinkError, connect
from plait.worker.layout import Interval, parts
from plait.worker.link import Link, MoveError
from plait.worker.parcel import parcels
from plait.worker.store import Store
from plait.worker.way import Ways
from plait.worker.wire import Message, Pull, Pulled, PullFault, Source

log = logging.getLogger(__name__)

TEND_S = 0.01
"""An idle lane looks this often after links that are broken, but not over."""


class CopyLane:
    """`pull` and `drop` may be called from any thread. Every pull is answered once through `send`."""

    def __init__(
        self, ways: Ways, store: Store, secret: bytes, name: bytes, send: Callable[[Message], None]
    ) -> None:
        """`name`: this worker's identity."""
        self._ways, self._store = ways, store
        self._secret, self._name, self._send = secret, name, send
        self._changed = threading.Condition()
        self._waiting: deque[Pull] = deque()
        self._current: int | None = None
        """The move in hand."""
        self._dropped: str | None = None
        """Why the move in hand is not wanted any more."""
        self._closed = False
        self._links: dict[bytes, Link] = {}
        self._thread = threading.Thread(target=self._run, name="copy lane", daemon=True)

    def start(self) -> None:
        """Carry out moves from now on."""
        self._thread.start()

    def pull(self, pull: Pull) -> None:
        """Take a move, after those given before."""
        with self._changed:
            self._waiting.append(pull)
            self._changed.notify()

    def drop(self, move: int, reason: str) -> None:
        """Answer a move soon; one that was answered stays so."""
        with self._changed:
            if self._current == move:
                self._dropped = reason
            found = [pull for pull in self._waiting if pull.move.id == move]
            for pull in found:
                self._waiting.remove(pull)
        for _ in found:
            self._send(PullFault(move, reason))

    def close(self) -> None:
        """Drop everything."""
        with self._changed:
            self._closed, self._dropped = True, "the worker leaves"
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout=5)
        for link in self._links.values():
            link.close()
        self._ways.close()

    def _run(self) -> None:
        while (pull := self._next()) is not None:
            begin_ns = time.monotonic_ns()
            try:
                wire_bytes = self._carry_out(pull)
                took_ns = time.monotonic_ns() - begin_ns
                answer: Message = Pulled(pull.move.id, wire_bytes, begin_ns, took_ns)
            except Exception as error:
                if not isinstance(error, ServiceError):
                    log.exception("move %d failed", pull.move.id)
                answer = PullFault(pull.move.id, self._dropped or str(error) or type(error).__name__)
            with self._changed:
                self._current = None
            self._send(answer)

    def _next(self) -> Pull | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._ways.tend()
                self._changed.wait(TEND_S if self._ways.parting else None)
            if self._closed:
                return None
            pull = self._waiting.popleft()
            self._current, self._dropped = pull.move.id, None
            return pull

    def _carry_out(self, pull: Pull) -> int:
        """Copy this worker's share, source after source; returns its bytes on the way."""
        move, shard = pull.move, self._store.shard
        positions = [Interval(move.target.first, move.target.first + move.count)]
        held = [source.shard.box(positions) for source in pull.sources]
        pulled = 0
        for part in parts(shard.box(positions), held, pull.turn):
            source = pull.sources[part.source]
            link = self._link(source)
            try:
                wanted = parcels(part, move, self._store, link.part_bytes, alike=link.alike)
                pulled += link.pull(wanted, max(move.after, default=None), lambda: self._dropped is not None)
            except (LinkError, MoveError):
                # Something may be under way on it still; a new link has places of its own.
                link.close()
                del self._links[source.identity]
                raise
        return pulled

    def _link(self, source: Source) -> Link:
        """The link to a source, made when it is first needed, or when the source let it go."""
        for identity, other in tuple(self._links.items()):
            if not other.usable:
                other.close()
                del self._links[identity]
        link = self._links.get(source.identity)
        if link is None:
            channel = connect(
                source.address, self._secret, self._name, source.identity, self._ways.config.patience_s
            )
            try:
                link = Link(self._ways, self._store, channel)
            except ServiceError:
                channel.close()
                raise
            self._links[source.identity] = link
        return link
