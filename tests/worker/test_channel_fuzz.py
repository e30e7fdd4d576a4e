"""Connections between workers whose other end says anything: an error of ours, soon, and no more."""

import contextlib
import socket
import struct
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.worker.channel import (
    Ask,
    Attach,
    Attached,
    Channel,
    Denied,
    Given,
    Letter,
    LinkError,
    Open,
    Opened,
    Parted,
    Passed,
    _mac,
    accept,
)
from plait.worker.config import LinkConfig, Way
from plait.worker.layout import Interval
from plait.worker.wire import Pulled
from tests.scale import scaled
from tests.worker.fabrics import SECRET, peers
from tests.worker.test_links import pair

KEY = b"k" * 32
LETTERS = (
    Open("whole", "float32", Way.SHARED, b"1 2 plait-0", 2, 4096),
    Opened("whole", True),
    Ask(1, Interval(0, 2), Interval(0, 1), (), True, 0, 3),
    Given(1, 100, (1, 2)),
    Denied(1, "no"),
    Attach(b"0.1.0", b"", 4096),
    Attached(False),
    Passed(1, over=True),
    Parted(),
)
PATIENCE_S = 0.2


@contextlib.contextmanager
def ends():
    """A channel, and the bare socket of its other end."""
    here, there = socket.socketpair()
    with here, there:
        yield Channel(here, "somebody", KEY, KEY), there


def frame(body: bytes, payload: bytes = b"") -> bytes:
    lengths = struct.pack(">II", len(body), len(payload))
    return lengths + _mac(KEY, 0, lengths, body, payload) + body + payload


def body_of(letter: Letter) -> bytes:
    return msgspec.msgpack.encode((type(letter).__name__, letter))


def test_every_letter_is_among_those_that_are_damaged():
    assert {type(letter) for letter in LETTERS} == set(get_args(Letter))
    for letter in LETTERS:
        with ends() as (channel, other):
            other.sendall(frame(body_of(letter), b"abc"))
            got, payload = channel.receive(PATIENCE_S)
            assert (got, bytes(payload)) == (letter, b"abc")


@settings(max_examples=scaled(2000), deadline=None)
@given(st.sampled_from(LETTERS), st.data())
def test_a_letter_that_is_damaged_by_somebody_with_the_secret(letter, data):
    body = bytearray(body_of(letter))
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        del body[at:]
    else:
        body[at] = data.draw(st.integers(0, 255))
    with ends() as (channel, other):
        other.sendall(frame(bytes(body)))
        with contextlib.suppress(LinkError):
            assert isinstance(channel.receive(PATIENCE_S)[0], get_args(Letter))


@settings(max_examples=scaled(2000), deadline=None)
@given(st.sampled_from(LETTERS), st.data())
def test_a_frame_that_is_damaged_on_its_way(letter, data):
    whole = bytearray(frame(body_of(letter), b"payload"))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    with ends() as (channel, other):
        other.sendall(whole)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkError):
            channel.receive(PATIENCE_S)


def test_a_letter_that_is_nested_too_deeply_is_refused():
    with ends() as (channel, other):
        other.sendall(frame(b"\x92\xa6Parted" + b"\x91" * 100_000 + b"\0"))
        with pytest.raises(LinkError, match="malformed"):
            channel.receive(PATIENCE_S)


@settings(max_examples=scaled(400), deadline=None)
@given(st.binary(max_size=200))
def test_a_greeting_of_anything_ends_soon(data):
    here, there = socket.socketpair()
    with here, there:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkError):
            accept(here, SECRET, b"0.1", PATIENCE_S).receive(PATIENCE_S)


def test_a_lender_outlives_strangers_and_serves_its_peers():
    config = LinkConfig(patience_s=5)
    here, there, order, arrived = pair(config)
    with peers(here, there):
        host, _, port = here.lender.address.rpartition(":")
        for data in (
            b"",
            b"\0",
            b"\xff" * 100,
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x04name" + b"n" * 16 + b"\0" * 200,
        ):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.settimeout(10)
                with contextlib.suppress(OSError):  # closed while something of ours was unread
                    stranger.sendall(data)
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
        there.lane.pull(order(1))
        assert isinstance(there.answer(), Pulled)
        assert arrived()
