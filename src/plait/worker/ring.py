"""`Ring`: shared memory between two workers of one host, cut into places: both ends of a way."""

import contextlib
import mmap
import os
import re
import secrets
import stat
from pathlib import Path

import numpy as np

from plait.kernels.transfer import Bytes
from plait.worker.channel import Channel
from plait.worker.config import Way

FOLDER = Path("/dev/shm")
LARGEST_BYTES = 256 << 20
_NAME = re.compile(r"plait-[0-9a-f]{32}")


class Ring:
    """A mapped file. The target makes it, the source maps it, and then the target takes its name away: what
    nobody maps any more is gone, however its owners ended."""

    way = Way.SHARED
    tend = None

    def __init__(self, memory: mmap.mmap, name: str, places: int) -> None:
        self.where = name.encode()
        self._memory = np.frombuffer(memory, np.uint8)
        self._places = places
        self._bytes = len(memory) // places

    @staticmethod
    def make(places: int, place_bytes: int) -> "Ring | None":
        """A new one, for this user only; None where the host has no shared memory, or not enough."""
        name = f"plait-{secrets.token_hex(16)}"
        try:
            handle = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None
        try:
            # Taken at once: memory that is missing later would end the process.
            os.posix_fallocate(handle, 0, places * place_bytes)
            return Ring(mmap.mmap(handle, places * place_bytes), name, places)
        except OSError:
            os.unlink(FOLDER / name)
            return None
        finally:
            os.close(handle)

    @staticmethod
    def reach(where: bytes, places: int, place_bytes: int) -> "Ring | None":
        """That of a peer; None if it is not on this host, or not this user's."""
        name = where.decode(errors="replace")
        if not _NAME.fullmatch(name) or not 0 < places * place_bytes <= LARGEST_BYTES:
            return None
        try:
            handle = os.open(FOLDER / name, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            found = os.fstat(handle)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            if not ours or found.st_size != places * place_bytes:
                return None
            return Ring(mmap.mmap(handle, places * place_bytes), name, places)
        finally:
            os.close(handle)

    def settled(self) -> None:
        """Take its name away; who has mapped it keeps it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FOLDER / self.where.decode())

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
