"""`RecordedSource`: the dashboard of what a run left behind, or still writes: a journal, or a run's folder.

journal*.jsonl             the core's calls: pictures at even distances of time, for looking back
metrics.jsonl              figures of `plait align` by iteration; timeline.json: what its ranks did
labels.jsonl, best.json    what `plait compress` has measured, and its best policy so far
"""

import asyncio
from bisect import bisect_right
from pathlib import Path
from typing import Any

from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.board.alignment import AlignmentNow, RankBars, alignment_of, ranks_of, read_metrics
from plait.workload.board.board import Board, BoardConfig
from plait.workload.board.picture import Picture
from plait.workload.board.sheet import Film, Sheet, encode
from plait.workload.board.showing import picture_of
from plait.workload.board.trials import Trials, trials_of
from plait.workload.journal import Entry, JournalTail

PICTURES = 256
"""Kept of one journal; when there are more, every other one goes and they come half as often."""
FIRST_GAP_NS = 10_000_000
LANES_NS = 20_000_000_000
CHUNK_BYTES = 1 << 17
"""Read at a time, so that viewers are served in between."""
CHUNKS = 48
"""Read between two sheets."""


class Recording:
    """One journal, as far as it was read."""

    def __init__(self, path: Path, slo: Slo | None) -> None:
        self.tail = JournalTail(path)
        self.pictures: list[Picture] = []
        self.board: Board | None = None
        """None before the header is whole."""
        self._slo, self._gap_ns = slo, FIRST_GAP_NS

    @property
    def meta(self) -> dict[str, Any]:
        """What the writer noted."""
        return dict((self.tail.header or {}).get("meta", {}))

    def read(self) -> bool:
        """Take in a chunk; whether there was one."""
        before = self.tail.read_bytes
        entries = self.tail.read(CHUNK_BYTES)
        if self.board is None and self.tail.header is not None:
            self.board = Board(BoardConfig.of(self.tail.header["config"], self._slo))
        for entry in entries:
            self._see(entry)
        return self.tail.read_bytes > before

    def _see(self, entry: Entry) -> None:
        assert self.board is not None
        last_ns = self.pictures[-1].now_us * 1000 if self.pictures else None
        # Before the entry: what is shown of a moment is what held until then.
        if last_ns is None or entry.now_ns - last_ns >= self._gap_ns:
            self.pictures.append(picture_of(self.board, entry.now_ns))
            if len(self.pictures) > PICTURES:
                del self.pictures[1::2]
                self._gap_ns *= 2
        self.board.see(entry.now_ns, entry.event, entry.commands)

    def film(self) -> Film | None:
        """None where there is nothing to see."""
        if self.board is None:
            return None
        size = max(1, self.tail.path.stat().st_size)
        return Film(0, self.board.now_ns // 1000, min(1.0, self.tail.read_bytes / size))


class RecordedSource:
    """See the module."""

    def __init__(self, path: Path, slo: Slo | None = None) -> None:
        """
        Raises:
            UserError: there is nothing at `path` that can be shown.
        """
        self.path, self._slo = path, slo
        self._recording: Recording | None = None
        self._alignment: AlignmentNow | None = None
        self._ranks: tuple[RankBars, ...] = ()
        self._trials: Trials | None = None
        self._seen: dict[str, tuple[int, int]] = {}
        """File -> its size and time of change when it was last read."""
        self._find()
        known = ("metrics.jsonl", "labels.jsonl")
        if self._recording is None and not any((path / name).is_file() for name in known):
            raise UserError(
                f"{path} holds nothing to show: name a journal, or a folder with journal*.jsonl, "
                "metrics.jsonl (plait align) or labels.jsonl (plait compress)"
            )

    async def refresh(self) -> None:
        """See `Source`. A long journal is shown as far as it was read."""
        self._find()
        self._read_files()
        for _ in range(CHUNKS):
            if self._recording is None or not self._recording.read():
                return
            await asyncio.sleep(0)

    def read_all(self) -> None:
        """Take in all that there is now."""
        self._read_files()
        while self._recording is not None and self._recording.read():
            pass

    def sheet(self) -> bytes:
        """See `Source`."""
        return encode(self.now())

    def past(self, at_us: int) -> bytes:
        """The last picture that is not later.

        Raises:
            UserError: there is no journal.
        """
        if self._recording is None or not self._recording.pictures:
            raise UserError("there is no journal to look back in", "at")
        pictures = self._recording.pictures
        at = bisect_right(pictures, at_us, key=lambda picture: picture.now_us)
        return encode(self._sheet(pictures[max(0, at - 1)]))

    def failed(self, reason: str) -> bytes:
        """See `Source`."""
        return encode(Sheet(self.path.name, "", "", fault=reason))

    def now(self) -> Sheet:
        """The run as far as it was read."""
        board = None if self._recording is None else self._recording.board
        return self._sheet(None if board is None else picture_of(board))

    def _sheet(self, picture: Picture | None) -> Sheet:
        recording = self._recording
        meta = {} if recording is None else recording.meta
        plain = {key: str(value) for key, value in meta.items() if isinstance(value, str | int | float)}
        return Sheet(
            title=str(meta.get("model") or self.path.name),
            world="paced" if meta.get("paced") else str(meta.get("world", "")),
            plait=str(meta.get("plait", "")),
            picture=picture,
            film=None if recording is None else recording.film(),
            alignment=self._alignment,
            trials=self._trials,
            notes={"file": str(self.path), **plain},
        )

    def _find(self) -> None:
        """The newest journal: a run that is resumed begins another one."""
        if self.path.is_file():
            found = [self.path]
        else:
            found = sorted(self.path.glob("journal*.jsonl"))
        if found and (self._recording is None or self._recording.tail.path != found[-1]):
            self._recording = Recording(found[-1], self._slo)

    def _read_files(self) -> None:
        if self._changed("timeline.json"):
            self._ranks = ranks_of((self.path / "timeline.json").read_bytes())
        if self._changed("metrics.jsonl") or (self._alignment and self._alignment.ranks != self._ranks):
            rows = read_metrics(_whole_lines(self.path / "metrics.jsonl"), str(self.path / "metrics.jsonl"))
            self._alignment = alignment_of(rows, self._ranks) if rows else None
        if self._changed("labels.jsonl"):
            best = self.path / "best.json"
            chosen = best.read_bytes() if best.is_file() else None
            self._trials = trials_of(_whole_lines(self.path / "labels.jsonl"), chosen, str(self.path))

    def _changed(self, name: str) -> bool:
        """A file is there, and is another one than when it was asked for last."""
        path = self.path / name
        if not path.is_file():
            return False
        told = path.stat()
        seen = (told.st_size, told.st_mtime_ns)
        fresh = self._seen.get(name) != seen
        self._seen[name] = seen
        return fresh


def _whole_lines(path: Path) -> list[bytes]:
    """Without a last one that is being written."""
    return path.read_bytes().split(b"\n")[:-1]
