"""`Exchange`: what a worker sends to the other members of a step's group, and gets from them.

Links are made when a step first needs them, for a pair of workers in their present epochs; groups cost
nothing. A step that any member cannot carry out is abandoned by all: whoever waits for one that is gone, past
the step, or silent for too long raises `GroupError`, and later steps go on over the same links.
"""

import contextlib
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plait.kernels import exchange
from plait.kernels.transfer import Bytes
from plait.model.dialogue import Script
from plait.spec.errors import ServiceError
from plait.worker.channel import Attach, Channel, LinkError, connect
from plait.worker.config import LinkConfig, Way
from plait.worker.dialogue import LOOK_S, SharedDialogue
from plait.worker.passage import Inlet, Outlet, Receiver, Sender, Shared, make_inlet, make_outlet
from plait.worker.wire import Source

FIRST_S = 0.002
"""A wait for a new link looks this often whether more can be sent."""


class GroupError(ServiceError):
    """Another member of the group is gone, silent, or has given the step up."""


class Exchange:
    """The compute lane's, but for `attach`, which any thread may call."""

    def __init__(self, config: LinkConfig, secret: bytes, name: bytes, patience_s: float) -> None:
        """`name`: this worker's identity; `patience_s`: longest wait for a peer."""
        self._config, self._secret, self._name, self._patience_s = config, secret, name, patience_s
        self.room = config.room_bytes
        """Bytes that are on their way at once on a link; whoever sends more waits for the reader."""
        self.sent_bytes = 0
        """Handed to peers so far."""
        self.layer = -1
        """For errors: what the members compute just now."""
        self._outlets: dict[bytes, Outlet] = {}
        self._inlets: dict[bytes, Inlet] = {}
        self._attached = threading.Condition()
        self._peers: tuple[Source | None, ...] = ()
        self._turn = 1  # turns are positive, and a link that is there before the first is past none: 0
        self._sends: list[tuple[int, ...]] = []
        self._kept: list[Tensor] = []
        self._spin = self._begun = False
        self._cores = os.cpu_count() or 1
        """Not those that this process may use: members that are pinned have one each."""
        self._dialogue: SharedDialogue | None = None
        """Of the step before."""

    def attach(self, channel: Channel, letter: Attach) -> None:
        """A peer wants to send to this worker. Raises LinkError."""
        with self._attached:
            inlet = make_inlet(channel, letter, self._patience_s, self._turn - 1)
            old = self._inlets.pop(letter.name, None)
            self._inlets[letter.name] = inlet
            self._attached.notify_all()
        if old is not None:
            old.close()

    def begin(self, step: int, peers: Sequence[Source | None]) -> None:
        """A step begins, whose group has these members; None: this worker, or one that is lost."""
        with self._attached:
            self._turn = step + 1  # turns are positive
        self._peers, self._begun = tuple(peers), True
        self._sends, self._kept = [], []
        self._spin = self._cores >= len(peers)

    def push(self, member: int, x: Tensor) -> None:
        """Send a dense tensor, which must stay as it is until the next `settle` returns."""
        if not x.nbytes:
            return
        outlet = self._outlet(member)
        self.sent_bytes += x.nbytes
        if isinstance(outlet, Sender):
            outlet.send(self._turn, _bytes(x))
            return
        self._kept.append(x)
        self._sends.append(outlet.flow(x.data_ptr(), x.nbytes))
        flows_F = np.array(self._sends, exchange.FLOW)
        state = exchange.exchange(flows_F, self._turn, spin=False, within_s=0)
        if state >= 0:
            raise self._error(member, "has given the step up")
        self._sends = [tuple(flow) for flow in flows_F.tolist() if flow[4] != flow[5]]

    def settle(self, receives: Sequence[tuple[int, Tensor]] = ()) -> None:
        """Return when all that was pushed is under way, and dense tensors are filled with what members sent.

        Raises:
            GroupError: a member is gone or does not come.
        """
        wanted = [(member, x) for member, x in receives if x.nbytes]
        flows_F, past_s = np.array(self._sends, exchange.FLOW), time.monotonic() + self._patience_s
        members = [-1] * len(flows_F)
        slow: list[tuple[int, Receiver, Bytes]] = []
        while True:
            wanted, fast = self._found(wanted, slow)
            members += [member for member, _ in fast]
            flows_F = np.concatenate([flows_F, np.array([flow for _, flow in fast], exchange.FLOW)])
            # What comes over links that are there is taken while others are made: nobody waits in a circle.
            within_s = FIRST_S if wanted else LOOK_S
            state = (
                exchange.exchange(flows_F, self._turn, spin=self._spin, within_s=within_s) if members else -1
            )
            if state >= 0:
                raise self._error(members[state], "has given the step up")
            if state == exchange.DONE and not wanted:
                break
            self._watch_all(flows_F, members, wanted, past_s)
        for member, inlet, into in slow:
            self._take(member, inlet, into)
        self._sends, self._kept = [], []

    def near(self, told: Sequence[int], heard: Sequence[int]) -> bool:
        """Whether the links to some members, and from others, are there and are memory that is shared."""
        ends = [self._outlets.get(self._peer(member).identity) for member in told]
        return all(isinstance(end, Shared) for end in (*ends, *map(self._inlet, heard)))

    def dialogue(self, script: Script) -> SharedDialogue:
        """Lay a step out with members that are `near`; nothing else may be pushed in it."""
        ends: dict[tuple[int, bool], Shared] = {}
        for outgoing, pieces in (
            (True, script.asks + script.answers),
            (False, script.questions + script.replies),
        ):
            for member in dict.fromkeys(piece.member for piece in pieces):
                end = self._outlet(member) if outgoing else self._inlet(member)
                assert isinstance(end, Shared), "a dialogue is for those who are near"
                ends[member, outgoing] = end
        last = self._dialogue
        if last is None or last.script is not script or last.ends != ends:
            last = self._dialogue = SharedDialogue(self, script, ends)
        last.begin(self._turn, spin=self._spin)
        return last

    def carry(self, flows_F: exchange.Flows, members: list[int], state: int) -> None:
        """Return when flows to and from members are done, of which an attempt gave `state`.

        Raises:
            GroupError: a member is gone or does not come.
        """
        past_s = time.monotonic() + self._patience_s
        while state != exchange.DONE:
            if state >= 0:
                raise self._error(members[state], "has given the step up")
            self._watch_all(flows_F, members, [], past_s)
            state = exchange.exchange(flows_F, self._turn, spin=self._spin, within_s=LOOK_S)

    def _found(
        self, wanted: list[tuple[int, Tensor]], slow: list[tuple[int, Receiver, Bytes]]
    ) -> tuple[list[tuple[int, Tensor]], list[tuple[int, tuple[int, ...]]]]:
        """What is wanted over links that are not there yet, and flows of those that are. `slow` collects what
        comes in frames."""
        missing, fast = [], []
        # Looked up once: a link that appears in between must not let a member's second piece pass its first.
        inlets = {member: self._inlet(member) for member, _ in wanted}
        for member, x in wanted:
            inlet = inlets[member]
            if inlet is None:
                missing.append((member, x))
            elif isinstance(inlet, Receiver):
                slow.append((member, inlet, _bytes(x)))
            else:
                fast.append((member, inlet.flow(x.data_ptr(), x.nbytes)))
        return missing, fast

    def end(self) -> None:
        """The step is done here, or given up: the other members are told, once."""
        if not self._begun:
            return
        self._begun = False
        with self._attached:
            turn = self._turn
            self._turn += 1
            ends: list[Outlet | Inlet] = []
            for peer in self._peers:
                if peer is not None:
                    ends += [self._outlets.get(peer.identity), self._inlets.get(peer.identity)]
        for each in ends:
            if each is not None:
                each.leave(turn)
        self._sends, self._kept = [], []

    def abandon(self) -> None:
        """The step is given up here: members that wait for this one must learn of it, also without a link."""
        if not self._begun:
            return
        for member, peer in enumerate(self._peers):
            if peer is not None:
                with contextlib.suppress(GroupError):  # whoever is gone waits for nobody
                    self._outlet(member)
        self.end()

    def close(self) -> None:
        """Break all links."""
        with self._attached:
            for each in (*self._outlets.values(), *self._inlets.values()):
                each.close()
            self._outlets, self._inlets = {}, {}

    # ---- links -----------------------------------------------------------------------------------

    def _peer(self, member: int) -> Source:
        peer = self._peers[member]
        if peer is None:
            raise GroupError(f"member {member} of the group is lost")
        return peer

    def _outlet(self, member: int) -> Outlet:
        peer = self._peer(member)
        outlet = self._outlets.get(peer.identity)
        if outlet is not None:
            return outlet
        for identity, other in tuple(self._outlets.items()):
            if not other.alive:
                other.close()
                del self._outlets[identity]
        try:
            channel = connect(peer.address, self._secret, self._name, peer.identity, self._config.patience_s)
            outlet = make_outlet(
                channel,
                self._name,
                self.room,
                self._config.patience_s,
                self._turn - 1,
                shared=Way.SHARED in self._config.ways,
            )
        except LinkError as error:
            raise GroupError(f"no link to {_named(peer)}: {error}") from error
        self._outlets[peer.identity] = outlet
        return outlet

    def _inlet(self, member: int) -> Inlet | None:
        """The link from a member; None: it has not made it."""
        peer = self._peer(member)
        with self._attached:
            return self._inlets.get(peer.identity)

    def _watch(self, member: int, past_s: float) -> None:
        """Raise if a member is gone, or it is too late."""
        if not self._outlet(member).alive:
            self._outlets.pop(self._peer(member).identity).close()
            raise self._error(member, "is gone")
        if time.monotonic() > past_s:
            raise self._error(member, f"was not heard for {self._patience_s:g} s")

    def _watch_all(
        self, flows_F: exchange.Flows, members: list[int], wanted: list[tuple[int, Tensor]], past_s: float
    ) -> None:
        """Raise if a member that is waited for is gone, or it is too late."""
        waiting = [m for m, flow in zip(members, flows_F, strict=False) if flow["count"] != flow["done"]]
        waiting += [member for member, _ in wanted]
        for member in dict.fromkeys(waiting):
            for each in [member] if member >= 0 else self._others():
                self._watch(each, past_s)
        if wanted and not waiting[: -len(wanted)]:
            with self._attached:
                self._attached.wait(FIRST_S)

    def _others(self) -> list[int]:
        """Members that something is sent to."""
        return [
            m for m, peer in enumerate(self._peers) if peer is not None and peer.identity in self._outlets
        ]

    def _take(self, member: int, inlet: Receiver, into: Bytes) -> None:
        past_s = time.monotonic() + self._patience_s
        while len(into):
            try:
                taken = inlet.take(self._turn, into, LOOK_S)
            except LinkError as error:
                raise self._error(member, f"is gone: {error}") from error
            if taken < 0:
                raise self._error(member, "has given the step up")
            into = into[taken:]
            if not taken:
                self._watch(member, past_s)

    def _error(self, member: int, what: str) -> GroupError:
        name = _named(self._peer(member)) if member >= 0 else "a member that is sent to"
        where = f"in layer {self.layer}" if self.layer >= 0 else "before the first layer"
        return GroupError(f"worker {self._name.decode()}, step {self._turn - 1}, {where}: {name} {what}")


def _named(peer: Source) -> str:
    instance, epoch, rank = peer.identity.split(b".")
    return f"instance {instance.decode()} (epoch {epoch.decode()}, rank {rank.decode()})"


def _bytes(x: Tensor) -> Bytes:
    data: Bytes = x.view(-1).view(torch.uint8).numpy()
    return data
