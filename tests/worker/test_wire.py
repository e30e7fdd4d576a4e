"""Frames: everything comes through unchanged, and nothing that was not sent comes through at all."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.adapter import Adapter
from plait.spec.move import Move
from plait.spec.sampling import Draw, Opened, SamplingParams, TokenLogprob
from plait.spec.step import Extent, Row, Span, Step
from plait.worker.layout import Interval, Shard
from plait.worker.wire import (
    Adapt,
    Answer,
    Beat,
    Codec,
    Drop,
    Fault,
    HasAdapter,
    Hello,
    LacksAdapter,
    Load,
    Loaded,
    LoadFault,
    Message,
    Order,
    Pull,
    Pulled,
    PullFault,
    Quit,
    Refusal,
    Source,
    Unadapt,
    WireError,
    _mac,
)
from tests.scale import scaled

SECRET = b"0123456789abcdef0123456789abcdef"
small = st.integers(0, 1000)
floats = st.floats(allow_nan=False)
rows = st.builds(
    Row,
    request=small,
    first=small,
    count=small,
    given=st.booleans(),
    draws=st.booleans(),
    spans=st.lists(
        st.builds(Span, small, small, st.lists(st.builds(Extent, small, small), max_size=2).map(tuple)),
        max_size=2,
    ).map(tuple),
)
tuples = st.lists(small, max_size=4).map(tuple)
steps = st.builds(Step, id=small, group=tuples, rows=st.lists(rows, max_size=3).map(tuple), again=tuples)
sampling = st.builds(
    SamplingParams,
    temperature=floats,
    stop=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    logit_bias=st.lists(st.tuples(small, floats), max_size=2).map(tuple),
    logprobs=st.none() | small,
)
states = st.builds(Opened, small, tuples, small, sampling, tuples)
logprobs = st.builds(TokenLogprob, small, floats, st.lists(st.tuples(small, floats), max_size=2).map(tuple))
draws = st.builds(Draw, tuples, st.booleans(), st.lists(logprobs, max_size=2).map(tuple))
spans = st.builds(Span, small, small, st.lists(st.builds(Extent, small, small), max_size=2).map(tuple))
moves = st.builds(Move, small, small, small, spans, spans, tuples)
intervals = st.builds(Interval, small, small)
shards = st.builds(Shard, intervals, intervals)
KINDS = {
    Order: st.builds(Order, steps, st.lists(states, max_size=2).map(tuple)),
    Pull: st.builds(
        Pull, moves, st.lists(st.builds(Source, st.binary(), st.text(), shards), max_size=2).map(tuple)
    ),
    Drop: st.builds(Drop, small, st.text()),
    Load: st.builds(Load, small, st.text(), st.dictionaries(st.text(), st.text(), max_size=2)),
    Quit: st.just(Quit()),
    Hello: st.builds(Hello, small, st.text(), st.text(), shards),
    Refusal: st.builds(Refusal, st.text()),
    Answer: st.builds(Answer, small, st.lists(draws, max_size=3).map(tuple), small, small),
    Fault: st.builds(Fault, small, st.text()),
    Pulled: st.builds(Pulled, small, small, small, small),
    PullFault: st.builds(PullFault, small, st.text()),
    Loaded: st.builds(Loaded, small),
    LoadFault: st.builds(LoadFault, small, st.text()),
    Adapt: st.builds(Adapt, st.builds(Adapter, small, st.text(), st.text())),
    Unadapt: st.builds(Unadapt, small),
    HasAdapter: st.builds(HasAdapter, small),
    LacksAdapter: st.builds(LacksAdapter, small, st.text()),
    Beat: st.just(Beat()),
}
messages = st.one_of(*KINDS.values())


def driver(identity: bytes = b"0.1", secret: bytes = SECRET) -> Codec:
    return Codec(secret, identity, worker=False)


def worker(identity: bytes = b"0.1", secret: bytes = SECRET) -> Codec:
    return Codec(secret, identity, worker=True)


@given(st.lists(messages, max_size=5))
def test_messages_come_through_unchanged(sent):
    here, there = driver(), worker()
    assert [there.decode(here.encode(message)) for message in sent] == sent


@given(st.data())
def test_a_changed_frame_is_refused(data):
    frame = bytearray(worker().encode(data.draw(messages)))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        driver().decode(bytes(frame))


def test_frames_are_neither_replayed_nor_left_out():
    here, there = worker(), driver()
    first, second, third = (here.encode(Beat()) for _ in range(3))
    there.decode(first)
    with pytest.raises(WireError, match="follows frame"):
        there.decode(first)
    with pytest.raises(WireError, match="follows frame"):
        there.decode(third)
    assert there.decode(second) == Beat()


def test_another_secret_is_refused():
    with pytest.raises(WireError, match="not signed"):
        driver(secret=b"another secret of some length").decode(worker().encode(Beat()))


@pytest.mark.parametrize(
    "other",
    [worker(b"1.1"), worker(b"0.2"), driver()],
    ids=["another worker's", "an earlier epoch's", "the driver's own"],
)
def test_frames_of_other_connections_are_refused(other):
    with pytest.raises(WireError, match="not signed"):
        driver().decode(other.encode(Beat()))


@pytest.mark.parametrize("secret", [b"", b"short"])
def test_an_empty_or_short_secret_fails_closed(secret):
    with pytest.raises(ValueError, match="16 bytes"):
        worker(secret=secret)


@given(st.binary(max_size=80))
def test_rubbish_is_refused(frame):
    with pytest.raises(WireError):
        driver().decode(frame)


def signed(body: bytes) -> bytes:
    """The frame of somebody who has the secret, and says anything."""
    return _mac(worker()._send_key, body) + body


def body_of(message: Message) -> bytes:
    return msgspec.msgpack.encode((1, type(message).__name__, message))


def understood(body: bytes) -> bool:
    """Whether it is a message; what is none is an error of ours, and the next frame is read as ever."""
    end = driver()
    try:
        found = end.decode(signed(body))
    except WireError:
        assert end.decode(worker().encode(Beat())) == Beat()
        return False
    assert isinstance(found, get_args(Message))
    return True


def test_every_kind_is_drawn():
    assert set(KINDS) == set(get_args(Message))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=scaled(600), deadline=None)
@given(data=st.data())
def test_a_message_may_be_damaged_by_somebody_with_the_secret(kind, data):
    body = body_of(data.draw(KINDS[kind]))
    at = data.draw(st.integers(0, len(body) - 1))
    new = data.draw(st.binary(max_size=6))
    ways = body[:at], body[:at] + new + body[at + 1 :], body[:at] + new + body[at:], body + body
    understood(data.draw(st.sampled_from(ways)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        body_of(Beat())[:-1] + b"\x91" * 200_000 + b"\0",
        body_of(Refusal(""))[:-1] + b"\xa2\xff\xfe",
        b"\x93\x01\xa4\xff\xff\xff\xff\x80",
        b"\x93\x01\xa4Beat\xc9\x7f\xff\xff\xff\x01",
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode((1, "Order", {"step": 1})),
        msgspec.msgpack.encode((1, "Nothing", {})),
        msgspec.msgpack.encode((2, "Beat", {})),
    ],
    ids=["empty", "deep", "text", "name", "long", "row", "type", "kind", "number"],
)
def test_a_signed_frame_that_is_no_message_is_refused(body):
    assert not understood(body)
