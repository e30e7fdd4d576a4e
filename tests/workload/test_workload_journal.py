"""The journal: exact for every record, clear about what is wrong, and replayable."""

import dataclasses
from enum import StrEnum
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.spec.command import Command, End, Token, Wake
from plait.spec.errors import UserError
from plait.spec.event import Drain, Event, StepDone, Woken
from plait.spec.request import EndReason
from plait.workload.journal import Entry, Journal, JournalTail, read_journal, replay


def records(kind):
    """A strategy for any type that spec's records are made of, from its annotations."""
    if dataclasses.is_dataclass(kind):
        return st.builds(kind, **{name: records(hint) for name, hint in get_type_hints(kind).items()})
    if isinstance(kind, UnionType):
        return st.one_of(*map(records, get_args(kind)))
    if get_origin(kind) is tuple:
        return st.lists(records(get_args(kind)[0]), max_size=3).map(tuple)
    if kind is not None and isinstance(kind, type) and issubclass(kind, StrEnum):
        return st.sampled_from(kind)
    return {
        int: st.integers(-(2**63), 2**64 - 1),
        bool: st.booleans(),
        str: st.text(max_size=8),
        NoneType: st.none(),
    }[kind]


@given(
    config=st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
    steps=st.lists(st.tuples(records(Event), st.lists(records(Command), max_size=3)), max_size=5),
)
def test_every_record_survives_the_round_trip(tmp_path_factory, config, steps):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path, config, {"world": "sim"}) as journal:
        for now_ns, (event, commands) in enumerate(steps):
            journal.append(now_ns, event, commands)
    history = read_journal(path)
    assert history.config == config
    assert history.meta == {"world": "sim"}
    assert history.torn_line is None
    assert history.entries == tuple(Entry(i, event, tuple(done)) for i, (event, done) in enumerate(steps))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, {}, {}) as journal:
        journal.append(5, Woken(5), [Wake(9), Token(1, (2,))])
        journal.append(9, Drain(), [])
    return path


def test_lines_reach_the_file_when_flushed(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {}, {})
    journal.append(1, Drain(), [])
    journal.flush()
    assert len(read_journal(path).entries) == 1
    journal.close()


def test_a_torn_last_line_is_told_and_left_out(written):
    whole = written.read_bytes()
    for cut in range(1, len(b'[9,["Drain",{}],[]]\n')):
        written.write_bytes(whole[:-cut])
        history = read_journal(written)
        assert (len(history.entries), history.torn_line) == (1, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 3: malformed"),
        (b'[6,["Drain",{}]]', "line 3: malformed"),
        (b'[6,["Drian",{}],[]]', "line 3: no event or command is called 'Drian'"),
        (b'[6,["StepDone",{"tokens":[]}],[]]', "line 3: malformed.*`step`"),
        (b'[5,["Drain",{}],[]]', "line 3: time 5 ns does not rise"),
        (b"", "line 3: malformed"),
    ],
)
def test_a_malformed_line_is_named(written, line, message):
    lines = written.read_bytes().splitlines()
    written.write_bytes(b"\n".join([*lines[:2], line, b""]))
    with pytest.raises(UserError, match=message):
        read_journal(written)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "line 1"),
        (b'{"plait_journal": 99, "config": {}, "meta": {}}\n', "format 99"),
        (b'{"plait_journal": 1, "config": {}}\n', "meta"),
        (b'{"other": 1}\n', "format none"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path, head, message):
    path = tmp_path / "j.jsonl"
    path.write_bytes(head)
    with pytest.raises(UserError, match=message):
        read_journal(path)
    with pytest.raises(UserError, match="cannot read"):
        read_journal(tmp_path / "absent")


class Echo:
    """Ends request n at the n-th call, unless told to change its mind."""

    def __init__(self, lies_at: int | None = None) -> None:
        self.calls = 0
        self.lies_at = lies_at

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        self.calls += 1
        count = 99 if self.calls == self.lies_at else 1
        return [End(self.calls, EndReason.STOP, count), Wake(now_ns + 1)]


def test_replay_finds_the_first_difference():
    source = Echo()
    events = [(3 * i, StepDone(i, (1,))) for i in range(5)]
    entries = [Entry(now, event, tuple(source.handle(event, now))) for now, event in events]
    assert replay(Echo(), entries) is None
    difference = replay(Echo(lies_at=3), entries)
    assert difference is not None
    assert difference.index == 2
    assert "tokens=99" in str(difference)
    assert "tokens=1" in str(difference)


@given(data=st.data())
def test_a_growing_journal_is_read_as_a_whole_one_is(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tail") / "journal.jsonl"
    entries = [Entry(at, Drain(), ()) for at in range(data.draw(st.integers(0, 30)))]
    with Journal(path, {"page": 1}, {"world": "sim"}) as journal:
        for entry in entries:
            journal.append(entry.now_ns, entry.event, entry.commands)
    whole = path.read_bytes()
    tail, found = JournalTail(path), []
    for cut in sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5))):
        path.write_bytes(whole[:cut])
        found += tail.read(data.draw(st.integers(1, 400)))
    path.write_bytes(whole)
    while tail.read_bytes < len(whole):
        found += tail.read(100)
    assert found == entries
    assert tail.header is not None
    assert tail.header["config"] == {"page": 1}
    assert tail.read_bytes == len(whole)


def test_a_journal_that_became_shorter_is_another_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {}, {}) as journal:
        journal.append(1, Drain(), ())
    tail = JournalTail(path)
    tail.read()
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match="shorter"):
        tail.read()
