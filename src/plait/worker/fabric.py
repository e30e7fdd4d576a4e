"""`Fabric`: how a worker's keys and values travel: what it gives (`Lender`), what it pulls (`CopyLane`), and
what members of a group exchange within a step (`Exchange`).

Links are made when a move first needs them, for a pair of workers in their present epochs:

    source: Lender <--ask-- link --given--> Store <-- CopyLane :target
"""

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from plait.model.pool import KvPool
from plait.worker.config import WorkerConfig
from plait.worker.copy_lane import CopyLane
from plait.worker.exchange import Exchange
from plait.worker.layout import Shard
from plait.worker.lender import Lender
from plait.worker.progress import Progress
from plait.worker.store import Store
from plait.worker.way import Ways
from plait.worker.wire import Message


class Fabric:
    """Both ends that a worker has."""

    def __init__(
        self,
        config: WorkerConfig,
        pool: KvPool,
        shard: Shard,
        progress: Progress,
        send: Callable[[Message], None],
    ) -> None:
        """`shard`: what `pool` holds of every request; `send`: hands the answers to moves to the driver."""
        secret = bytes.fromhex(config.secret)
        self.store = Store(pool, shard)
        interface = _own_address(config.address)
        self.exchange = Exchange(config.links, secret, config.identity, config.patience_s)
        attach = self.exchange.attach
        ways = Ways(config.links, config.identity)
        self.lender = Lender(ways, self.store, progress, secret, config.identity, interface, attach)
        self.lane = CopyLane(ways, self.store, secret, config.identity, send)

    def start(self) -> None:
        """Give and pull from now on."""
        self.lender.start()
        self.lane.start()

    def close(self) -> None:
        """Drop what is under way."""
        self.lane.close()
        self.lender.close()
        self.exchange.close()


def _own_address(driver: str) -> str:
    """This host's address on its way to the driver: where the other workers are, too."""
    there = urlsplit(driver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((there.hostname, there.port))  # a datagram socket sends nothing by this
        address: str = probe.getsockname()[0]
    return address
