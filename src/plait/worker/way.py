"""Ways that a part may travel, as its two ends see them.

    target: Landing ---Open(way, where)---> source: Reach, or it cannot be reached this way: the next one
            room of a place <====bytes===== room of the same place

Shared memory (`Ring`) is one, the frames of the connection (`Frames`) is another, NIXL (`Remote`) a third;
a link uses the first by which its source can be reached.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from plait.kernels.transfer import Bytes
from plait.worker.channel import Channel, LinkError, Open
from plait.worker.config import LinkConfig, Way
from plait.worker.remote import Agent
from plait.worker.ring import Ring

log = logging.getLogger(__name__)


class Landing(Protocol):
    """The target's end: where the parts of one link arrive."""

    way: Way
    where: bytes
    """What the source has to know to reach it."""
    tend: Callable[[], None] | None
    """Has to be called again and again while something is on its way; None: nothing has."""

    def settled(self) -> None:
        """The source has it, or never will."""

    def part(self, number: int, place: int, payload: Bytes) -> Bytes:
        """The room with the part that ask `number` brought, once it is there. Raises LinkError."""

    def leave(self, channel: Channel, *, owed: bool) -> None:
        """Break the link, and free the memory as soon as nothing can come any more.

        Args:
            owed: the source may be about to write.
        """

    def free(self) -> None:
        """Nobody writes to it, or will."""


class Reach(Protocol):
    """The source's end."""

    def room(self, place: int) -> Bytes:
        """Where to put a part. Raises IndexError if there is no such place."""

    def deliver(self, number: int, place: int, count: int) -> Bytes | None:
        """Bring the first `count` bytes of a room to the target; what has to go as a payload is returned.

        Raises:
            LinkError: they did not arrive.
        """

    def close(self) -> None:
        """Nothing more will be delivered. Raises LinkError: something may be on its way still."""


class Frames:
    """Both ends of the way that is always there: bytes are payloads of the signed frames."""

    way = Way.FRAMES
    where = b""
    tend = None

    def __init__(self, place_bytes: int) -> None:
        self._room = np.empty(place_bytes, np.uint8)

    def settled(self) -> None:
        """Nothing is to be done."""

    def part(self, number: int, place: int, payload: Bytes) -> Bytes:
        """The payload."""
        return payload

    def leave(self, channel: Channel, *, owed: bool) -> None:
        """What comes later comes to nobody."""
        channel.close()

    def free(self) -> None:
        """Nothing is to be done."""

    def room(self, place: int) -> Bytes:
        """One for all: a part has left it when the next is asked for."""
        return self._room

    def deliver(self, number: int, place: int, count: int) -> Bytes:
        """All goes as a payload."""
        return self._room[:count]

    def close(self) -> None:
        """Nothing is to be done."""


class Ways:
    """Those of one worker, in both directions. May be used from any thread."""

    def __init__(self, config: LinkConfig, name: bytes) -> None:
        """`name`: the worker's identity."""
        self.config = config
        self._name = name
        self._lock = threading.Lock()
        self._agent: Agent | None = None
        self._lacks_agent = Way.NIXL not in config.ways

    def landings(self, places: int, place_bytes: int) -> Iterator[Landing]:
        """What can be offered to a source, best first; each one is made when it is asked for."""
        for way in self.config.ways:
            landing = self._landing(way, places, place_bytes)
            if landing is not None:
                yield landing
        yield Frames(0)

    def reach(self, open: Open) -> Reach | None:
        """What a target offers; None: it cannot be reached so."""
        if open.way is Way.FRAMES:
            return Frames(open.place_bytes)
        if open.way not in self.config.ways:
            return None
        if open.way is Way.SHARED:
            return Ring.reach(open.where, open.places, open.place_bytes)
        try:
            return self._made().reach(open.where, open.places, open.place_bytes)
        except LinkError as error:
            log.info("a target is not reached: %s", error)
            return None

    @property
    def parting(self) -> bool:
        """`tend` has to be called now and then."""
        return self._agent is not None and self._agent.parting

    def tend(self) -> None:
        """Look after links that are broken, but not over."""
        if self._agent is None:
            return
        try:
            self._agent.tend()
        except LinkError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """The process leaves: wait for nobody."""
        if self._agent is not None:
            self._agent.close()

    def _landing(self, way: Way, places: int, place_bytes: int) -> Landing | None:
        if way is Way.SHARED:
            return Ring.make(places, place_bytes)
        if way is Way.FRAMES:
            return Frames(0)
        try:
            return self._made().landing(places, place_bytes)
        except LinkError as error:
            log.info("a way is not offered: %s", error)
            return None

    def _made(self) -> Agent:
        """The agent; it is tried to make one once only. Raises LinkError."""
        with self._lock:
            if self._agent is None:
                if self._lacks_agent:
                    raise LinkError("there is no NIXL here")
                self._lacks_agent = True
                self._agent = Agent(self._name, self.config.patience_s)
            return self._agent
