"""`Agent`: NIXL (optional), which lets a source write into a target's memory on another host, without the
target's interpreter or, with the right network, its processor.

    target: RemoteLanding --its own address and key, in Open--> source: RemoteReach
            registered places <===========write, notice=============|  (NIXL: UCX)
                                 <---Given, over the signed connection---'

Descriptors travel as numbers in our own signed letters: NIXL's own form of them is pickle. An agent has no
thread of its own, for that one would spin on a core for good: each end drives it while something is on its
way.

A write that was begun cannot be called back, and is carried out even after its target has taken the memory
for something else. So the memory of a link that broke while the source owed something is kept until the
source has said `Parted`: nothing is on its way any more. A source that ends without a word costs its target
that memory for good; a write that a source gave up costs the source a place.
"""

import importlib
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from plait.kernels.transfer import Bytes
from plait.worker.channel import LONGEST_NAP_S, SHORTEST_NAP_S, Channel, LinkError, Parted
from plait.worker.config import Way

log = logging.getLogger(__name__)


class Where(msgspec.Struct, frozen=True, array_like=True):
    """What a source has to know of a landing."""

    metadata: bytes
    """NIXL's: name and addresses of the agent, key of the memory."""
    address: int
    landing: int
    """Number of the landing among those of its agent."""


class Agent:
    """One per worker, made when it is first needed: that takes half a second. May be used from any thread."""

    def __init__(self, name: bytes, patience_s: float) -> None:
        """`name`: the worker's identity. Raises LinkError if there is no NIXL, or it does not work here."""
        try:
            api = importlib.import_module("nixl._api")
        except ImportError as error:
            raise LinkError(f"NIXL is not installed: {error}") from error
        logging.getLogger("nixl").setLevel(logging.WARNING)  # it announces itself on stdout
        self.patience_s = patience_s
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._notices: set[bytes] = set()
        self._made = 0
        self._parting: list[tuple[Channel, RemoteLanding]] = []
        self._kept: list[object] = []
        """What somebody may read or write for as long as the process lives."""
        config = api.nixl_agent_config(
            enable_prog_thread=False, sync_mode=api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        )
        with faults("start NIXL"):
            self._nixl = api.nixl_agent(f"{name.decode()}-{secrets.token_hex(8)}", config)
        if "UCX" not in self._nixl.backends:
            raise LinkError("NIXL has no UCX here")

    # ---- memory --------------------------------------------------------------------------------------

    def register(self, room: Bytes) -> Any:
        """Let NIXL use some memory; what is returned undoes it with `forget`."""
        with faults("register memory"):
            return self._nixl.register_memory([(room.ctypes.data, len(room), 0, "")], "DRAM")

    def keep(self, what: object) -> None:
        """Hold on to something for as long as the process lives."""
        self._kept.append(what)

    def forget(self, registered: Any) -> None:
        """NIXL will not use it any more."""
        with faults("free memory"):
            self._nixl.deregister_memory(registered)

    # ---- the target's side -----------------------------------------------------------------------------

    def landing(self, places: int, place_bytes: int) -> "RemoteLanding":
        """Room for the parts of one link. Raises LinkError."""
        with self._lock:
            self._made += 1
            number = self._made
        return RemoteLanding(self, number, places, place_bytes)

    def where(self, registered: Any, room: Bytes, landing: int) -> bytes:
        """How to reach it."""
        with faults("describe memory"):
            metadata = self._nixl.get_partial_agent_metadata(registered, True, ["UCX"])
        return msgspec.msgpack.encode(Where(metadata, room.ctypes.data, landing))

    def tend(self) -> None:
        """Let what is under way go on, and free what nobody writes to any more."""
        with faults("look for notices"):
            came = self._nixl.get_new_notifs()
        for notices in came.values():
            self._notices.update(notices)
        self._parting = [each for each in self._parting if not self._over(*each)]

    def heard(self, notice: bytes) -> bool:
        """A notice has come; it is told once."""
        if notice not in self._notices:
            return False
        self._notices.remove(notice)
        return True

    def part_from(self, channel: Channel, landing: "RemoteLanding") -> None:
        """Keep a landing until its source says that nothing is under way any more."""
        channel.hang_up()
        self._parting.append((channel, landing))

    @property
    def parting(self) -> bool:
        """`tend` has still to be called now and then."""
        return bool(self._parting)

    def close(self) -> None:
        """Wait for no source any more; what it may write to stays as it is."""
        for channel, landing in self._parting:
            channel.close()
            self.keep(landing)
        self._parting.clear()

    def _over(self, channel: Channel, landing: "RemoteLanding") -> bool:
        """A source has no more to say: free what it wrote to, or keep it for good."""
        try:
            while channel.readable(0):
                letter, _ = channel.receive(self.patience_s)
                if isinstance(letter, Parted):
                    landing.free()
                    channel.close()
                    return True
        except LinkError as error:
            log.warning("%s; memory that it may write to is kept", error)
            self.keep(landing)
            channel.close()
            return True
        return False

    # ---- the source's side -----------------------------------------------------------------------------

    def reach(self, where: bytes, places: int, place_bytes: int) -> "RemoteReach":
        """A landing of somebody else. Raises LinkError."""
        try:
            known = msgspec.msgpack.decode(where, type=Where)
        except msgspec.DecodeError as error:
            raise LinkError(f"a landing is described in another way: {error}") from error
        return RemoteReach(self, known, places, place_bytes)

    def meet(self, metadata: bytes) -> str:
        """The name of another agent, which may be written to until `part`."""
        with self._lock, faults("meet an agent"):
            name: str = self._nixl.add_remote_agent(metadata).decode()
            self._users[name] += 1
        return name

    def part(self, name: str) -> None:
        """One link to another agent less."""
        with self._lock, faults("part from an agent"):
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._nixl.remove_remote_agent(name)

    def write(self, room: Bytes, address: int, name: str, notice: bytes) -> None:
        """Copy memory of this process to another agent's; returns when it is there.

        Raises:
            LinkError: it never came there, or may come later: `room` is kept as it is.
        """
        here, there = ([(at, len(room), 0)] for at in (room.ctypes.data, address))
        with faults("begin to write"):
            described = [self._nixl.get_xfer_descs(each, "DRAM") for each in (here, there)]
            handle = self._nixl.initialize_xfer("WRITE", *described, name, notice)
        try:
            with faults("write"):
                self._drive(handle)
                handle.release()
        except LinkError:
            self.keep((handle, room))
            raise

    def _drive(self, handle: Any) -> None:
        nap_s, past_s = SHORTEST_NAP_S, time.monotonic() + self.patience_s
        state = self._nixl.transfer(handle)
        while state == "PROC":
            if time.monotonic() > past_s:
                raise LinkError(f"the target takes nothing for {self.patience_s:.0f} s")
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, LONGEST_NAP_S)
            state = self._nixl.check_xfer_state(handle)
        if state != "DONE":
            raise LinkError(f"a write ended with {state}")


class RemoteLanding:
    """Registered memory into which one source writes."""

    way = Way.NIXL

    def __init__(self, agent: Agent, number: int, places: int, place_bytes: int) -> None:
        self._agent, self._number, self._place_bytes = agent, number, place_bytes
        self._room = np.empty(places * place_bytes, np.uint8)
        self._registered = agent.register(self._room)
        self.where = agent.where(self._registered, self._room, number)
        self.tend = agent.tend

    def settled(self) -> None:
        """Nothing is to be done."""

    def part(self, number: int, place: int, payload: Bytes) -> Bytes:
        """See `Landing`."""
        past_s = time.monotonic() + self._agent.patience_s
        while not self._agent.heard(notice(self._number, number)):
            if time.monotonic() > past_s:
                raise LinkError(f"part {number} was given, but did not arrive")
            self._agent.tend()
        return self._room[place * self._place_bytes : (place + 1) * self._place_bytes]

    def leave(self, channel: Channel, *, owed: bool) -> None:
        """See `Landing`."""
        if owed:
            self._agent.part_from(channel, self)
        else:
            channel.close()
            self.free()

    def free(self) -> None:
        """Nobody writes to it any more."""
        self._agent.forget(self._registered)


class RemoteReach:
    """Memory of this process, and the landing that it is written to."""

    def __init__(self, agent: Agent, where: Where, places: int, place_bytes: int) -> None:
        self._agent, self._where = agent, where
        self._places, self._place_bytes = places, place_bytes
        self._name = agent.meet(where.metadata)
        self._room = np.empty(place_bytes, np.uint8)
        self._registered = agent.register(self._room)
        self._lost: LinkError | None = None

    def room(self, place: int) -> Bytes:
        """One for all: a part has left it when the next is asked for."""
        if not 0 <= place < self._places:
            raise IndexError(f"there is no place {place} of {self._places}")
        return self._room

    def deliver(self, number: int, place: int, count: int) -> None:
        """See `Reach`."""
        if count:
            address = self._where.address + place * self._place_bytes
            told = notice(self._where.landing, number)
            try:
                self._agent.write(self._room[:count], address, self._name, told)
            except LinkError as error:
                self._lost = error
                raise

    def close(self) -> None:
        """See `Reach`."""
        if self._lost is not None:
            raise self._lost
        self._agent.forget(self._registered)
        self._agent.part(self._name)


def notice(landing: int, number: int) -> bytes:
    """What a target is told when a part has arrived."""
    return b"%d.%d" % (landing, number)


@contextmanager
def faults(doing: str) -> Iterator[None]:
    """NIXL's errors have no common ancestor but Exception."""
    try:
        yield
    except LinkError:
        raise
    except Exception as error:
        raise LinkError(f"NIXL cannot {doing}: {str(error) or type(error).__name__}") from error
