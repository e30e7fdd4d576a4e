"""`Ring`: shared memory between two workers of one host, cut into places: both ends of a way."""

import mmap
import os
import re
import secrets

import numpy as np

from plait.kernels.transfer import Bytes
from plait.worker.channel import Channel
from plait.worker.config import Way

LARGEST_BYTES = 256 << 20
_WHERE = re.compile(r"([1-9]\d{0,9}) (\d{1,9}) (plait-[0-9a-f]{32})")
"""Process, descriptor, name."""


class Ring:
    """Mapped memory without a name in any folder. The target makes it, the source opens the target's
    descriptor, and then the target closes that. What nobody maps any more is gone, however its owners ended.
    """

    way = Way.SHARED
    tend = None

    def __init__(self, memory: mmap.mmap, where: str, places: int, handle: int | None = None) -> None:
        """`handle`: the descriptor by which a source can reach it."""
        self.where = where.encode()
        self._memory = np.frombuffer(memory, np.uint8)
        self._places = places
        self._bytes = len(memory) // places
        self._handle = handle

    @staticmethod
    def make(places: int, place_bytes: int) -> "Ring | None":
        """A new one, for this user only; None where the host has no shared memory, or not enough."""
        name = f"plait-{secrets.token_hex(16)}"
        try:
            handle = os.memfd_create(name, os.MFD_CLOEXEC)
        except (AttributeError, OSError):  # not Linux, or no descriptor is left
            return None
        try:
            # Taken at once: memory that is missing later would end the process.
            os.posix_fallocate(handle, 0, places * place_bytes)
            memory = mmap.mmap(handle, places * place_bytes)
        except OSError:
            os.close(handle)
            return None
        return Ring(memory, f"{os.getpid()} {handle} {name}", places, handle)

    @staticmethod
    def reach(where: bytes, places: int, place_bytes: int) -> "Ring | None":
        """That of a peer; None if it is not on this host, or not this user's."""
        told = _WHERE.fullmatch(where.decode(errors="replace"))
        if told is None or places < 1 or not 0 < places * place_bytes <= LARGEST_BYTES:
            return None
        pid, descriptor, name = told.groups()
        try:
            handle = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return None
        try:
            # On another host the same numbers are something else; the name is drawn from 128 bits.
            found = os.fstat(handle)
            same = os.readlink(f"/proc/self/fd/{handle}") == f"/memfd:{name} (deleted)"
            if not same or found.st_uid != os.geteuid() or found.st_size != places * place_bytes:
                return None
            return Ring(mmap.mmap(handle, places * place_bytes), told.group(), places)
        finally:
            os.close(handle)

    def settled(self) -> None:
        """Close the way to it; who has mapped it keeps it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def room(self, place: int) -> Bytes:
        """Its bytes. Raises IndexError if there is no such place."""
        if not 0 <= place < self._places:
            raise IndexError(f"there is no place {place} of {self._places}")
        return self._memory[place * self._bytes : (place + 1) * self._bytes]

    def part(self, number: int, place: int, payload: Bytes) -> Bytes:
        """It lies at its place."""
        return self.room(place)

    def deliver(self, number: int, place: int, count: int) -> None:
        """It is there already."""

    def leave(self, channel: Channel, *, owed: bool) -> None:
        """Who still writes to it keeps it; nobody else sees that."""
        channel.close()

    def free(self) -> None:
        """Nothing is to be done: memory goes with its last user."""

    def close(self) -> None:
        """Nothing is to be done: memory goes with its last user."""
