"""Frames: everything comes through unchanged, and nothing that was not sent comes through at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.spec.move import Move
from plait.spec.sampling import Draw, Opened, SamplingParams, TokenLogprob
from plait.spec.step import Extent, Row, Span, Step
from plait.worker.layout import Interval, Shard
from plait.worker.wire import (
    Answer,
    Beat,
    Codec,
    Drop,
    Fault,
    Hello,
    Order,
    Pull,
    Pulled,
    PullFault,
    Quit,
    Source,
    WireError,
)

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
messages = st.one_of(
    st.builds(Order, steps, st.lists(states, max_size=2).map(tuple)),
    st.builds(Answer, small, st.lists(draws, max_size=3).map(tuple), small, small),
    st.builds(Fault, small, st.text()),
    st.builds(Hello, small, st.text(), st.text(), shards),
    st.builds(
        Pull, moves, st.lists(st.builds(Source, st.binary(), st.text(), shards), max_size=2).map(tuple)
    ),
    st.builds(Drop, small, st.text()),
    st.builds(Pulled, small, small, small, small),
    st.builds(PullFault, small, st.text()),
    st.just(Quit()),
    st.just(Beat()),
)


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
