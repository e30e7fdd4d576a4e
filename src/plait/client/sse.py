"""Server-sent events out of a byte stream, as the standard defines them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event. OpenAI's streams leave `name` empty."""

    data: str
    name: str = ""


class SseParser:
    """Feed it chunks of any size; it returns the events that they complete.

    Comments and unknown fields are skipped, several data lines are joined, lines may end with LF, CR LF or
    CR.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._name = ""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Raises UnicodeDecodeError where the stream is not UTF-8."""
        text = self._rest + chunk
        # A CR at the very end may be half of a CR LF: leave it for the next chunk.
        held = text.endswith(b"\r")
        lines = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + (b"\r" if held else b"")
        events = (self._line(line.decode()) for line in lines)
        return [event for event in events if event is not None]

    def _line(self, line: str) -> SseEvent | None:
        if not line:
            data, name, self._data, self._name = self._data, self._name, [], ""
            return SseEvent("\n".join(data), name) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None
