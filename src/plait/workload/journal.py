"""`Journal`: what happened to a core, as JSON lines. Both worlds write it; `replay` proves it.

The first line is a header, `{"plait_journal": 1, "config": {...}, "meta": {...}}`, where `config` is the
core's own and opaque here. Every further line is one call of `handle`: its time, its event, its commands, as
`[now_ns, ["StepDone", {...}], [["Token", {...}], ...]]`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    decode = _Lines(path).entry
    entries = tuple(decode(line) for line in lines[1:-1])
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
    except _MALFORMED as error:
        raise UserError(f"{path}, line 1: no journal header ({error})") from error
    if header.get("plait_journal") != VERSION:
        found = header.get("plait_journal", "none")
        raise UserError(f"{path}, line 1: journal format {found}; this version reads format {VERSION}")
    if not all(isinstance(header.get(key), dict) for key in ("config", "meta")):
        raise UserError(f"{path}, line 1: the header lacks its config or meta object")
    return header


class _Lines:
    """Decodes the lines of one journal after its header, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number, self._before_ns = 1, -1
        self._line = msgspec.json.Decoder(tuple[int, _Tagged, tuple[_Tagged, ...]])
        self._events = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Event)}
        self._commands = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Command)}

    def entry(self, line: bytes) -> Entry:
        """Raises UserError where it is malformed, or its time does not rise."""
        self._number += 1
        place = f"{self._path}, line {self._number}"
        try:
            now_ns, (event, body), wishes = self._line.decode(line)
            done = tuple(self._commands[name].decode(wish) for name, wish in wishes)
            entry = Entry(now_ns, self._events[event].decode(body), done)
        except _MALFORMED as error:
            raise UserError(f"{place}: malformed entry ({error})") from error
        except KeyError as error:
            raise UserError(f"{place}: no event or command is called {error}") from error
        if now_ns <= self._before_ns:
            raise UserError(f"{place}: time {now_ns} ns does not rise after {self._before_ns} ns")
        self._before_ns = now_ns
        return entry


class JournalTail:
    """Reads a journal while it grows: whole lines, as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        """With `config` and `meta`; None until its line is whole."""
        self.read_bytes = 0
        """Of whole lines, so far."""
        self._lines = _Lines(path)

    def read(self, most_bytes: int = 1 << 18) -> list[Entry]:
        """The next entries, of about so many bytes; none where nothing new is whole.

        Raises:
            UserError: the file cannot be read, became shorter, or a line is malformed.
        """
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.read_bytes:
                    raise UserError(f"{self.path} became shorter while it was read: open it again")
                file.seek(self.read_bytes)
                lines = file.readlines(most_bytes)
        except OSError as error:
            raise UserError(f"cannot read the journal {self.path}: {error.strerror}") from error
        whole = [line for line in lines if line.endswith(b"\n")]
        self.read_bytes += sum(map(len, whole))
        if self.header is None and whole:
            self.header = _header(self.path, whole.pop(0))
        return [self._lines.entry(line) for line in whole]


_Tagged = tuple[str, msgspec.Raw]
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
