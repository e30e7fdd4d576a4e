"""`Link`: a target's end of the connection to one source, over which it pulls keys and values.

    Ask --> | the source copies into a place of the ring | --> Given --> sums agree? --> into the own pool
                                                                 `-- no: asked again, a few times

`window` asks are under way at a time, each with a place of its own, so that both ends copy at once. On one
host places are shared memory; otherwise bytes come through the connection.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plait.kernels import transfer
from plait.spec.errors import ServiceError
from plait.worker.channel import Ask, Channel, Denied, Given, LinkError, Open, Opened
from plait.worker.config import LinkConfig
from plait.worker.layout import Interval
from plait.worker.parcel import Parcel
from plait.worker.ring import Ring
from plait.worker.store import BLOCK, Store


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

    def __init__(self, config: LinkConfig, store: Store, channel: Channel) -> None:
        """Agree with the source about forms and the ring.

        Raises:
            LinkError: the source is gone, or silent.
            MoveError: it keeps something else than `store`.
        """
        self._config, self._store, self._channel = config, store, channel
        block_bytes = max(store.layer_bytes(store.shard.heads, BLOCK, whole) for whole in (True, False))
        self.part_bytes = max(config.part_bytes, block_bytes)
        """Room of a place."""
        self._number = 0
        ring = Ring.make(config.window, self.part_bytes) if config.shared else None
        try:
            name = ring.name if ring else ""
            channel.send(Open(store.form, store.element, name, config.window, self.part_bytes))
            answer, _ = channel.receive(config.patience_s)
        finally:
            if ring is not None:
                ring.hide()
        if not isinstance(answer, Opened):
            raise LinkError(f"{channel.peer} answers a greeting with {type(answer).__name__}")
        if answer.refusal:
            raise MoveError(f"{channel.peer} cannot give anything: {answer.refusal}")
        self._ring = ring if answer.shared else None
        self.alike = answer.form == store.form
        """Blocks may be copied as they lie."""

    @property
    def shared(self) -> bool:
        """Bytes come through shared memory."""
        return self._ring is not None

    @property
    def usable(self) -> bool:
        """Nothing was said that nobody asked for: between two moves that is the other end's farewell."""
        return not self._channel.readable(0)

    def close(self) -> None:
        """Break the connection; what is under way comes to nothing."""
        self._channel.close()

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
        self._channel.send(ask, within_s=self._config.patience_s)
        return Flight(ask, parcel, tries)

    def _land(self, flying: deque[Flight], places: list[int], cancelled: Callable[[], bool]) -> int:
        """Take in the oldest parcel that is under way; 0 bytes if it has to be asked for again."""
        flight = flying.popleft()
        ask, parcel = flight.ask, flight.parcel
        given, payload = self._answer(ask, cancelled)
        room = payload if self._ring is None else self._ring.place(ask.place)
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
        self._channel.send(ask, within_s=self._config.patience_s)
        self._answer(ask, cancelled)

    def _answer(self, ask: Ask, cancelled: Callable[[], bool]) -> tuple[Given, transfer.Bytes]:
        config = self._config
        wait_s = config.patience_s + (0 if ask.after is None else config.lease_s)
        if config.bytes_per_s is not None:
            wait_s += config.window * self.part_bytes / config.bytes_per_s
        if cancelled() or not self._channel.ready(wait_s, lambda: not cancelled()):
            raise Cancelled("cancelled")
        answer, payload = self._channel.receive(config.patience_s)
        if isinstance(answer, Denied) and answer.number == ask.number:
            raise MoveError(f"{self._channel.peer} denies a part: {answer.reason}")
        if not isinstance(answer, Given) or answer.number != ask.number:
            raise LinkError(f"{self._channel.peer} answers ask {ask.number} with {answer}")
        return answer, payload
