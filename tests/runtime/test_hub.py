"""The driver's socket among strangers, and a worker whose driver is one: nothing they say is acted on."""

import asyncio
import contextlib
import os
import random
import sys
import threading

import pytest
import zmq

from plait.model.config import ModelConfig
from plait.runtime.hub import MOST_AT_ONCE, Hub
from plait.worker.config import WorkerConfig
from plait.worker.line import Line
from plait.worker.wire import Beat, Codec, Drop, Quit
from tests.scale import seed

SECRET = b"0123456789abcdef0123456789abcdef"
NAME = b"0.1.0"
STRANGE = (
    [b""],
    [b"", b""],
    [b"a", b"b", b"c"],
    [b"\xff" * 5000],
    [Codec(b"another secret of some length", NAME, worker=True).encode(Beat())],
)


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


async def test_frames_of_strangers_are_dropped_and_workers_are_heard(context):
    hub, heard = Hub(SECRET), asyncio.Queue()
    hub.expect(NAME)
    hub.start(lambda identity, message: heard.put_nowait((identity, message)))
    try:
        with context.socket(zmq.DEALER) as stranger, context.socket(zmq.DEALER) as worker:
            for socket, name in ((stranger, b"7.7.7"), (worker, NAME)):
                socket.linger = 0
                socket.identity = name
                socket.connect(hub.address)
            codec = Codec(SECRET, NAME, worker=True)
            for parts in STRANGE:
                stranger.send_multipart(parts)
                worker.send_multipart(parts)
            worker.send(codec.encode(Beat()))
            async with asyncio.timeout(20):
                assert await heard.get() == (NAME, Beat())
            assert heard.empty()
    finally:
        hub.close()


@contextlib.contextmanager
def worker_of(hub, context):
    """What a worker sends messages to a hub with."""
    codec = Codec(SECRET, NAME, worker=True)
    with context.socket(zmq.DEALER) as socket:
        socket.linger, socket.identity = 0, NAME
        socket.connect(hub.address)
        yield lambda message: socket.send(codec.encode(message))


async def test_no_message_waits_for_another_one(context):
    """Messages come in crowds, and while others are sent: each is heard without one after it."""
    hub, rng, heard, wanted = Hub(SECRET), random.Random(seed()), asyncio.Queue(), 0
    hub.expect(NAME)
    hub.start(lambda identity, message: heard.put_nowait(message))
    try:
        with worker_of(hub, context) as send:
            for _ in range(60):
                crowd = rng.choice([1, 1, 2, 3, MOST_AT_ONCE, 3 * MOST_AT_ONCE + 1])
                for _ in range(crowd):
                    send(Beat())
                    if rng.random() < 0.5 and wanted:
                        hub.send(NAME, Drop(rng.randrange(9), "no"))
                wanted += crowd
                async with asyncio.timeout(20):
                    for _ in range(crowd):
                        assert await heard.get() == Beat()
            assert heard.empty()
    finally:
        hub.close()


async def test_who_hears_may_fail(context):
    """What follows is heard all the same."""
    hub, heard, loop = Hub(SECRET), asyncio.Queue(), asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, told: heard.put_nowait(told["exception"]))

    def hear(identity, message):
        raise RuntimeError("deaf")

    hub.expect(NAME)
    hub.start(hear)
    try:
        with worker_of(hub, context) as send:
            for _ in range(3):
                send(Beat())
            async with asyncio.timeout(20):
                for _ in range(3):
                    assert str(await heard.get()) == "deaf"
    finally:
        hub.close()


@contextlib.contextmanager
def led(context, monkeypatch):
    """A worker led by this test: the socket, its name, its first frame, its line, whether it left."""
    reading, writing = os.pipe()
    left = threading.Event()
    with context.socket(zmq.ROUTER) as driver, os.fdopen(reading) as stdin, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        driver.linger = 0
        port = driver.bind_to_random_port("tcp://127.0.0.1")
        model = ModelConfig(folder="none")
        line = Line(WorkerConfig(0, 1, f"tcp://127.0.0.1:{port}", SECRET.hex(), model), left.set)
        line.start()
        name, first = driver.recv_multipart()
        yield driver, name, first, line, left
        line.close()


@pytest.mark.parametrize("parts", [[b""], [b"rubbish"], STRANGE[-1]], ids=["empty", "rubbish", "unsigned"])
def test_a_worker_leaves_a_driver_that_says_what_no_driver_would(context, monkeypatch, parts):
    with led(context, monkeypatch) as (driver, name, first, _, left):
        assert Codec(SECRET, name, worker=False).decode(first) == Beat()
        driver.send_multipart([name, *parts])
        assert left.wait(20)


def test_a_worker_hears_the_driver_that_has_its_secret(context, monkeypatch):
    with led(context, monkeypatch) as (driver, name, _, line, left):
        driver.send_multipart([name, Codec(SECRET, name, worker=False).encode(Quit())])
        assert line.orders.get(timeout=20) is None
    assert not left.is_set()


async def test_a_hub_may_be_closed_again():
    hub = Hub(b"s" * 32)
    hub.start(lambda identity, message: None)
    hub.close()
    hub.close()
