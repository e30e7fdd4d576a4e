"""`Link`: a target's end of the connection to one source, over which it pulls keys and values.

    Ask --> | the source copies into a place of the ring | --> Given --> sums agree? --> into the own pool
                                                                 `-- no: asked again, a few times

`window` asks are under way at a time, each with a place of its own, so that both ends copy at once. Where
places are, and how bytes get there, is the link's way: see `plait.worker.way`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plait.kernels import transfer
from plait.spec.errors import ServiceError
from plait.worker.channel import Ask, Channel, Denied, Given, LinkError, Open, Opened, Parted
from plait.worker.layout import Interval
from plait.worker.parcel import Parcel
from plait.worker.store import BLOCK, Store
from plait.worker.way import Landing, Ways


class MoveError(ServiceError):
    """A move cannot be completed; says why."""


class Cancelled(MoveError):
    """Nobody wants the move any more."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A parcel that is under way."""

    ask: Ask
    parcel: Parcel
    tries: int
    """Times that it came with a wrong checksum."""


class Link:
    """Not thread-safe: the copy lane's. One that failed is closed and not used again."""

    def __init__(self, ways: Ways, store: Store, channel: Channel) -> None:
        """Agree with the source about forms and the way.

        Raises:
            LinkError: the source is gone, or silent.
            MoveError: it keeps something else than `store`.
        """
        config = ways.config
        self._config, self._store, self._channel = config, store, channel
        block_bytes = max(store.layer_bytes(store.shard.heads, BLOCK, whole) for whole in (True, False))
        self.part_bytes = max(config.part_bytes, block_bytes)
        """Room of a place."""
        self._number = self._owed = 0
        self._landing, form = self._agree(ways)
        self.way = self._landing.way
        """How bytes come."""
        self.alike = form == store.form
        """Blocks may be copied as they lie."""

    def _agree(self, ways: Ways) -> tuple[Landing, str]:
        """The first way by which the source can be reached, and the form of its store."""
        channel, store, window = self._channel, self._store, self._config.window
        for landing in ways.landings(window, self.part_bytes):
            opening = Open(store.form, store.element, landing.way, landing.where, window, self.part_bytes)
            reached = False
            try:
                form, reached = self._open(opening)
            finally:
                landing.settled()
                if not reached:
                    landing.free()
            if reached:
                return landing, form
        raise LinkError(f"{channel.peer} cannot reach this worker by any way")

    def _open(self, opening: Open) -> tuple[str, bool]:
        """The form of the source's store, and whether it can reach this worker so."""
        channel = self._channel
        channel.send(opening)
        answer, _ = channel.receive(self._config.patience_s)
        if not isinstance(answer, Opened):
            raise LinkError(f"{channel.peer} answers a greeting with {type(answer).__name__}")
        if answer.refusal:
            raise MoveError(f"{channel.peer} cannot give anything: {answer.refusal}")
        return answer.form, answer.reached

    @property
    def usable(self) -> bool:
        """Nothing was said that nobody asked for: between two moves that is the other end's farewell."""
        return not self._channel.readable(0)

    def close(self) -> None:
        """Break the connection; what is under way comes to nothing."""
        self._landing.leave(self._channel, owed=self._owed > 0)

    def pull(self, wanted: Iterable[Parcel], after: int | None, cancelled: Callable[[], bool]) -> int:
        """Copy parcels into the store; returns their bytes.

        Args:
            after: the step that writes them, if it is not done yet.

        Raises:
            Cancelled: `cancelled` said so.
            MoveError: the source will not give something.
            LinkError: the connection broke.
        """
        flying: deque[Flight] = deque()
        places = list(range(self._config.window))
        pulled = 0
        for parcel in wanted:
            while not places:
                pulled += self._land(flying, places, cancelled)
            flying.append(self._ask(parcel, places.pop(), after))
        while flying:
            pulled += self._land(flying, places, cancelled)
        if after is not None:
            self._confirm(after, cancelled)
        return pulled

    def _ask(self, parcel: Parcel, place: int, after: int | None, tries: int = 0) -> Flight:
        self._number += 1
        ask = Ask(self._number, parcel.layers, parcel.heads, parcel.extents, parcel.whole, place, after)
        self._say(ask)
        return Flight(ask, parcel, tries)

    def _say(self, ask: Ask) -> None:
        self._owed += 1
        self._channel.send(ask, within_s=self._config.patience_s)

    def _land(self, flying: deque[Flight], places: list[int], cancelled: Callable[[], bool]) -> int:
        """Take in the oldest parcel that is under way; 0 bytes if it has to be asked for again."""
        flight = flying.popleft()
        ask, parcel = flight.ask, flight.parcel
        given, payload = self._answer(ask, cancelled)
        room = self._landing.part(ask.number, ask.place, payload)
        if given.count > len(room):
            raise LinkError(f"{self._channel.peer} names {given.count} bytes of {len(room)}")
        room = room[: given.count]
        if given.sums is not None and transfer.checksum(room) != given.sums:
            if flight.tries == self._config.retries:
                raise MoveError(f"parts of {self._channel.peer} do not have their checksums")
            flying.append(self._ask(parcel, ask.place, ask.after, flight.tries + 1))
            return 0
        copied = self._store.copy(
            parcel.layers, parcel.heads, parcel.target_T, room, whole=parcel.whole, out=False
        )
        if copied != given.count:
            raise LinkError(f"{self._channel.peer} gave {given.count} bytes, not {copied}")
        places.append(ask.place)
        return copied

    def _confirm(self, after: int, cancelled: Callable[[], bool]) -> None:
        """What was copied while a step wrote it counts once that step is done."""
        self._number += 1
        none = Interval(0, 0)
        ask = Ask(self._number, none, none, (), False, 0, after)
        self._say(ask)
        self._answer(ask, cancelled)

    def _answer(self, ask: Ask, cancelled: Callable[[], bool]) -> tuple[Given, transfer.Bytes]:
        config = self._config
        wait_s = config.patience_s + (0 if ask.after is None else config.lease_s)
        if config.bytes_per_s is not None:
            wait_s += config.window * self.part_bytes / config.bytes_per_s
        if cancelled() or not self._channel.ready(wait_s, lambda: not cancelled(), self._landing.tend):
            raise Cancelled("cancelled")
        answer, payload = self._channel.receive(config.patience_s)
        self._owed = 0 if isinstance(answer, Parted) else self._owed - 1
        if isinstance(answer, Denied) and answer.number == ask.number:
            raise MoveError(f"{self._channel.peer} denies a part: {answer.reason}")
        if not isinstance(answer, Given) or answer.number != ask.number:
            raise LinkError(f"{self._channel.peer} answers ask {ask.number} with {answer}")
        return answer, payload
