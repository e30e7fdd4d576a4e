"""`Journal`: what happened to a core, as JSON lines. Both worlds write it; `replay` proves it.

The first line is a header, `{"plait_journal": 1, "config": {...}, "meta": {...}}`, where `config` is the
core's own and opaque here. Every further line is one call of `handle`: its time, its event, its commands, as
`[now_ns, ["StepDone", {...}], [["Token", {...}], ...]]`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, get_args

import msgspec

from plait.spec.command import Command
from plait.spec.errors import UserError
from plait.spec.event import Event

VERSION = 1


class Core(Protocol):
    """Anything that decides: a serving core, an RLHF core, or a test's."""

    def handle(self, event: Event, now_ns: int) -> Sequence[Command]:
        """Take one fact, return what is to be done. `now_ns` rises strictly from call to call."""
        ...


Observer = Callable[[int, Event, Sequence[Command]], None]
"""Called with (now_ns, event, commands) after each `handle`: `Journal.append`, a recorder of results."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of a core: when, with what, and what came of it."""

    now_ns: int
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class History:
    """A journal as read."""

    config: dict[str, Any]
    """The configuration of the core that wrote it."""
    meta: dict[str, Any]
    """Whatever the writer noted: world, versions, model."""
    entries: tuple[Entry, ...]
    torn_line: int | None = None
    """Number of the last line when its end is missing (the writer died in it); it is left out."""


class Journal:
    """Writes a journal; a context manager. Lines are buffered: `flush` brings them to the file system."""

    def __init__(self, path: Path, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Start a new file at `path`, whose folder must exist. Both mappings hold plain JSON values."""
        self._file: BinaryIO = path.open("wb", buffering=1 << 16)
        self._encode = msgspec.json.Encoder().encode
        header = {"plait_journal": VERSION, "config": dict(config), "meta": dict(meta)}
        self._file.write(self._encode(header) + b"\n")

    def append(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Note one call of `handle`."""
        line = (now_ns, _tagged(event), [_tagged(command) for command in commands])
        self._file.write(self._encode(line) + b"\n")

    def flush(self) -> None:
        """Hand everything appended so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close; nothing may be appended afterwards."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> History:
    """Read a whole journal, checking that its time rises strictly.

    Raises:
        UserError: it cannot be read, or a line (whose number is named) is malformed. A last line without its
            end is no error but told in `torn_line`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read the journal {path}: {error.strerror}") from error
    header = _header(path, lines[0])
    # A complete file ends with a newline, so what follows the last one is a line whose writer died.
    entries = tuple(_entries(path, lines[1:-1]))
    torn = len(lines) if len(lines) > 1 and lines[-1] else None
    return History(header["config"], header["meta"], entries, torn)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first left the journal."""

    index: int
    """Entry, counted from 0."""
    entry: Entry
    commands: tuple[Command, ...]
    """What the core answers now."""

    def __str__(self) -> str:
        pairs = zip(self.entry.commands, self.commands, strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
        at = min(len(self.entry.commands), len(self.commands)) if shared is None else shared
        old, new = self.entry.commands[at : at + 1], self.commands[at : at + 1]
        return (
            f"entry {self.index} at {self.entry.now_ns} ns, {self.entry.event}: command {at} was "
            f"{old[0] if old else 'absent'}, is now {new[0] if new else 'absent'}"
        )


def replay(core: Core, entries: Iterable[Entry]) -> Difference | None:
    """Feed the events of a journal to a fresh core; the first call whose commands differ, or None."""
    for index, entry in enumerate(entries):
        commands = tuple(core.handle(entry.event, entry.now_ns))
        if commands != entry.commands:
            return Difference(index, entry, commands)
    return None


def _tagged(record: Event | Command) -> tuple[str, Event | Command]:
    return (type(record).__name__, record)


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UserError(f"{path}, line 1: no journal header ({error})") from error
    if header.get("plait_journal") != VERSION:
        found = header.get("plait_journal", "none")
        raise UserError(f"{path}, line 1: journal format {found}; this version reads format {VERSION}")
    if not all(isinstance(header.get(key), dict) for key in ("config", "meta")):
        raise UserError(f"{path}, line 1: the header lacks its config or meta object")
    return header


def _entries(path: Path, lines: Sequence[bytes]) -> Iterator[Entry]:
    line_of = msgspec.json.Decoder(tuple[int, _Tagged, tuple[_Tagged, ...]])
    events = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Event)}
    commands = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Command)}
    before_ns = -1
    for number, line in enumerate(lines, start=2):
        try:
            now_ns, (event, body), wishes = line_of.decode(line)
            done = tuple(commands[name].decode(wish) for name, wish in wishes)
            entry = Entry(now_ns, events[event].decode(body), done)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}, line {number}: malformed entry ({error})") from error
        except KeyError as error:
            raise UserError(f"{path}, line {number}: no event or command is called {error}") from error
        if now_ns <= before_ns:
            raise UserError(f"{path}, line {number}: time {now_ns} ns does not rise after {before_ns} ns")
        before_ns = now_ns
        yield entry


_Tagged = tuple[str, msgspec.Raw]
