"""Traces: when requests came and how long they were, from the formats that people publish."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from plait.spec.errors import UserError

NS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace. Traces are sorted by arrival, and the first row arrives at 0."""

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    block_hashes: tuple[int, ...] = ()
    """One for each block of the prompt, the last of which may be partial; equal where prefixes are equal."""
    block_tokens: int = 0
    """Tokens a block; 0 where the trace has no hashes."""

    def hashes(self, block_tokens: int) -> tuple[int, ...]:
        """Hashes of the prompt's full blocks in a finer block size.

        Raises:
            UserError: the trace's blocks are not a multiple of `block_tokens`.
        """
        if not self.block_hashes:
            return ()
        parts, rest = divmod(self.block_tokens, block_tokens)
        if rest or not parts:
            raise UserError(
                f"blocks of {self.block_tokens} tokens cannot be cut into blocks of {block_tokens}"
            )
        full = self.prompt_tokens // block_tokens
        return tuple(h * parts + part for h in self.block_hashes for part in range(parts))[:full]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a CSV trace keeps what."""

    arrival: str
    prompt: str
    output: str
    seconds: bool = True
    """Arrivals are numbers of seconds; else dates and times of day."""
    drop_empty: bool = False
    """Leave out rows without output: in BurstGPT those are failed requests."""


CSV_FORMATS: Mapping[str, Columns] = MappingProxyType(
    {
        "csv": Columns("arrival_s", "prompt_tokens", "output_tokens"),
        "azure": Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", seconds=False),
        "burstgpt": Columns("Timestamp", "Request tokens", "Response tokens", drop_empty=True),
        "vidur": Columns("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    }
)
FORMATS = (*CSV_FORMATS, "mooncake", "sharegpt", "distserve")


def read_trace(path: Path, form: str, limit: int | None = None) -> list[TraceRow]:
    """Read a trace of one of `FORMATS`; only its first `limit` requests by arrival, if given.

    ShareGPT has neither arrivals nor token counts: all rows arrive at 0, and a token is taken to be four
    characters (`read_sharegpt` takes a tokenizer).

    Raises:
        UserError: the file cannot be read, is empty, or a line is malformed; names the line and what it
        lacks.
    """
    if form in CSV_FORMATS:
        rows = read_csv(path, CSV_FORMATS[form])
    elif form == "mooncake":
        rows = read_mooncake(path)
    elif form == "sharegpt":
        rows = read_sharegpt(path)
    elif form == "distserve":
        rows = read_distserve(path)
    else:
        raise UserError(f"no trace format {form!r}; known are {', '.join(FORMATS)}", param="format")
    return rows[:limit]


def read_csv(path: Path, columns: Columns) -> list[TraceRow]:
    """A CSV file whose header names at least the three `columns`."""
    wanted = (columns.arrival, columns.prompt, columns.output)
    reader = csv.DictReader(_text(path).splitlines())
    lacking = [name for name in wanted if name not in (reader.fieldnames or ())]
    if lacking:
        raise UserError(
            f"{path}, line 1: expected the columns {', '.join(wanted)}; {lacking[0]!r} is missing"
        )
    when = _seconds_ns if columns.seconds else _date_ns
    rows = []
    for record in reader:
        with _Line(path, reader.line_num, f"{columns.arrival}, {columns.prompt} and {columns.output}"):
            prompt, output = int(record[columns.prompt]), int(record[columns.output])
            if not (columns.drop_empty and output == 0):
                rows.append(_checked(TraceRow(when(record[columns.arrival]), prompt, output)))
    return _from_zero(path, rows)


def read_mooncake(path: Path) -> list[TraceRow]:
    """JSON lines with timestamp (ms), input_length, output_length and hash_ids of 512-token blocks."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        with _Line(path, number, "an object with timestamp, input_length, output_length and hash_ids"):
            record = msgspec.json.decode(line, type=dict[str, Any])
            arrival_ns = round(record["timestamp"] * 1_000_000)
            hashes = tuple(map(int, record["hash_ids"]))
            lengths = int(record["input_length"]), int(record["output_length"])
            if hashes and len(hashes) != -(-lengths[0] // 512):
                raise ValueError(f"{len(hashes)} hash_ids for {lengths[0]} tokens; expected one for each 512")
            rows.append(_checked(TraceRow(arrival_ns, *lengths, hashes, 512)))
    return _from_zero(path, rows)


def read_sharegpt(path: Path, count_tokens: CountTokens | None = None) -> list[TraceRow]:
    """The first human turn and the answer to it, of each conversation that has both and neither empty.

    Args:
        path: a JSON list of `{"conversations": [{"from": ..., "value": ...}, ...]}`.
        count_tokens: of a text; None: a quarter of its characters, rounded up.
    """
    count = count_tokens or (lambda text: -(-len(text) // 4))
    with _Line(path, 1, "a JSON list of conversations"):
        conversations = msgspec.json.decode(_text(path), type=list[dict[str, Any]])
    rows = []
    for number, conversation in enumerate(conversations, start=1):
        with _Line(path, number, "conversations of turns with from and value", "conversation"):
            turns = [(turn["from"], turn["value"]) for turn in conversation["conversations"][:2]]
            if [speaker for speaker, _ in turns] in (["human", "gpt"], ["user", "assistant"]):
                prompt, output = (count(text) for _, text in turns)
                if prompt and output:
                    rows.append(TraceRow(0, prompt, output))
    return _from_zero(path, rows)


def read_distserve(path: Path) -> list[TraceRow]:
    """A JSON list of objects with start_time (s), prompt_len and output_len, as simdistserve takes."""
    with _Line(path, 1, "a JSON list of requests"):
        records = msgspec.json.decode(_text(path), type=list[dict[str, Any]])
    rows = []
    for number, record in enumerate(records, start=1):
        with _Line(path, number, "start_time, prompt_len and output_len", "request"):
            lengths = int(record["prompt_len"]), int(record["output_len"])
            rows.append(_checked(TraceRow(_seconds_ns(str(record["start_time"])), *lengths)))
    return _from_zero(path, rows)


def stretched(rows: Sequence[TraceRow], factor: float) -> list[TraceRow]:
    """The same requests over `factor` times the time."""
    return [replace(row, arrival_ns=round(row.arrival_ns * factor)) for row in rows]


def at_rate(rows: Sequence[TraceRow], rate_hz: float) -> list[TraceRow]:
    """The same requests, stretched so that they come at `rate_hz` on average.

    Raises:
        UserError: they all come at once, so that no stretching changes their rate.
    """
    span_ns = rows[-1].arrival_ns
    if span_ns == 0:
        raise UserError("the trace has no arrival times to scale; generate arrivals for its lengths instead")
    return stretched(rows, (len(rows) - 1) / rate_hz * NS / span_ns)


class _Line:
    """Turns what goes wrong in one line into a sentence that names it."""

    def __init__(self, path: Path, number: int, expected: str, noun: str = "line") -> None:
        self._where = f"{path}, {noun} {number}: expected {expected}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        wrong = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, msgspec.DecodeError)
        if isinstance(error, wrong):
            raise UserError(f"{self._where} ({type(error).__name__}: {error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the trace {path}: {error}") from error


def _checked(row: TraceRow) -> TraceRow:
    if row.prompt_tokens < 1 or row.output_tokens < 1:
        raise ValueError(
            f"{row.prompt_tokens} prompt and {row.output_tokens} output tokens; both are at least 1"
        )
    return row


def _from_zero(path: Path, rows: Iterable[TraceRow]) -> list[TraceRow]:
    ordered = sorted(rows, key=lambda row: row.arrival_ns)
    if not ordered:
        raise UserError(f"the trace {path} has no requests")
    start_ns = ordered[0].arrival_ns
    return [replace(row, arrival_ns=row.arrival_ns - start_ns) for row in ordered]


def _seconds_ns(text: str) -> int:
    return int(Decimal(text) * NS)


def _date_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000
