"""Calls of tools in text that arrives in pieces."""

import json
from dataclasses import dataclass

from plait.text.tool_format import ToolFormat


@dataclass(frozen=True, slots=True)
class Said:
    """Text beside calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Began:
    """A call began, of which so far the name is known."""

    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of the arguments of the call that began last, as the model wrote them."""

    text: str


Found = Said | Began | Argued


class ToolParser:
    """Divides a text into what is said and what is called. What is found does not depend on how the text is
    cut into pieces, but for where `Said` and `Argued` are cut.

    Blanks beside calls are left out. An object that names no tool is text, as is a marker without an object.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        """Text that is not understood yet."""
        self._raw = ""
        """What is text after all if no call comes of it: a marker, and what of an object was read."""
        self._blanks = ""
        """Behind what was said; left out where a call follows."""
        self._call: _Call | None = None
        self._calling = not form.marker
        """An object may begin here."""
        self._called = False
        """The last that was found was a call."""
        self.calls = 0
        """That began."""

    def push(self, text: str) -> list[Found]:
        """What the next piece brings."""
        self._held += text
        found: list[Found] = []
        while self._held and self._advance(found):
            pass
        return _joined(found)

    def flush(self) -> list[Found]:
        """What the end of the text brings."""
        found: list[Found] = []
        rest, self._held = self._raw + self._held, ""
        if self._call is not None and self._call.ready:
            rest = ""
        elif self._calling and not self._raw and self._form.ending.startswith(self._bare(rest)):
            rest = ""  # a call's end was cut off
        self._say(rest, found)
        if not self.calls and self._blanks:
            found.append(Said(self._blanks))
        return _joined(found)

    def _advance(self, found: list[Found]) -> bool:
        """Take some of what is held; whether to go on."""
        if self._call is not None:
            return self._read(self._call, found)
        return self._between(found) if self._calling else self._search(found)

    def _search(self, found: list[Found]) -> bool:
        """Beside calls: up to the next marker, or what may begin one."""
        marker = self._form.marker
        at = self._held.find(marker) if marker else -1
        if at >= 0:
            self._say(self._held[:at], found)
            self._held, self._raw, self._calling = self._held[at + len(marker) :], marker, True
            return True
        cut = len(self._held) - _overlap(self._held, marker)
        self._say(self._held[:cut], found)
        self._held = self._held[cut:]
        return False

    def _bare(self, text: str) -> str:
        return text.lstrip(" \t\r\n" + self._form.glue)

    def _between(self, found: list[Found]) -> bool:
        """Behind a marker or an object: another object, the end of calls, or text after all."""
        bare, ending = self._bare(self._held), self._form.ending
        if not bare or (bare != ending and ending.startswith(bare)):
            return False
        if bare.startswith("{"):
            self._raw += self._held[: len(self._held) - len(bare)]
            self._held, self._call = bare, _Call(self._form.arguments)
            return True
        self._calling = False
        if ending and bare.startswith(ending) and not self._raw:
            self._held = bare[len(ending) :]
        self._say(self._raw, found)
        self._raw = ""
        return True

    def _read(self, call: "_Call", found: list[Found]) -> bool:
        """Inside an object."""
        for count, char in enumerate(self._held, 1):
            self._raw += char
            was_ready, text = call.ready, call.push(char)
            if call.ready and not was_ready:
                self._begin(call, found)
            if text:
                found.append(Argued(text))
            if call.over:
                self._held = self._held[count:]
                self._finish(call, found)
                return True
        self._held = ""
        return False

    def _begin(self, call: "_Call", found: list[Found]) -> None:
        assert call.name is not None
        self._blanks, self._called = "", True
        self.calls += 1
        found.append(Began(call.name))

    def _finish(self, call: "_Call", found: list[Found]) -> None:
        if not call.ready and call.name is not None and self._form.marker:
            self._begin(call, found)
            found.append(Argued("{}"))
        elif not call.ready:
            self._calling = False
            self._say(self._raw, found)
        self._raw, self._call = "", None

    def _say(self, text: str, found: list[Found]) -> None:
        """Text beside calls, without the blanks around these."""
        text = self._blanks + text
        text = text.lstrip() if self._called else text
        bare = text.rstrip()
        self._blanks = text[len(bare) :]
        if bare:
            self._called = False
            found.append(Said(bare))


class _Call:
    """A call's object, character by character: the values of `name` and of the key of the arguments."""

    def __init__(self, arguments: str) -> None:
        self._arguments = arguments
        self._depth, self._quoted, self._escaped = 0, False, False
        self._key: object = ""
        """Its text; what that says, once its value begins."""
        self._value, self._in_value, self._argued = "", False, False
        self._blanks, self._waiting = "", ""
        self.name: str | None = None
        self.over = False

    @property
    def ready(self) -> bool:
        """Its name is known, and its arguments have begun."""
        return self.name is not None and self._argued

    def push(self, char: str) -> str:
        """Take a character; returns what is known now of the arguments and was not returned before."""
        self._waiting += self._take(char)
        if not self.ready:
            return ""
        text, self._waiting = self._waiting, ""
        return text

    def _take(self, char: str) -> str:
        if self._quoted:
            self._quoted = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
            return self._part(char)
        if char in "{[":
            self._depth += 1
            return self._part(char) if self._depth > 1 else ""
        if char in "}]":
            self._depth -= 1
            if self._depth:
                return self._part(char)
            self._close()
            self.over = True
            return ""
        if self._depth == 1 and char == "," and self._in_value:
            self._close()
            return ""
        if self._depth == 1 and char == ":" and not self._in_value:
            self._key, self._in_value = _read(str(self._key)), True
            return ""
        self._quoted = char == '"'
        return self._part(char)

    def _part(self, char: str) -> str:
        """A character of a key or of a value."""
        if not self._in_value:
            self._key = f"{self._key}{char}"
            return ""
        if char.isspace() and not self._quoted:
            self._blanks += char if self._value else ""
            return ""
        char, self._blanks = self._blanks + char, ""
        self._value += char
        mine = self._key == self._arguments
        self._argued |= mine
        return char if mine else ""

    def _close(self) -> None:
        """The end of a value."""
        if self._key == "name" and isinstance(name := _read(self._value), str) and self.name is None:
            self.name = name
        self._key, self._value, self._blanks, self._in_value = "", "", "", False


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`, without being all of it."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)


def _joined(found: list[Found]) -> list[Found]:
    """Neighbours of a kind as one."""
    made: list[Found] = []
    for each in found:
        last = made[-1] if made else None
        if isinstance(each, Argued) and isinstance(last, Argued):
            made[-1] = Argued(last.text + each.text)
        elif isinstance(each, Said) and isinstance(last, Said):
            made[-1] = Said(last.text + each.text)
        else:
            made.append(each)
    return made
