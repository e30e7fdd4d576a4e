"""Faults in files, drawn by hypothesis: bytes cut, changed or put in, values that have no place there."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from plait.spec.errors import PlaitError
from tests.scale import scaled

EXAMPLES = scaled(600)
STRANGE = (None, True, -1, 0, 10**30, 1e308, math.nan, math.inf, "", "x", [], [[]], {}, {"a": 1}, [None])


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values below one, its own included."""
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = list(value)
    elif isinstance(value, list):
        inside = list(range(len(value)))
    return [here, *(path for key in inside for path in places(value[key], (*here, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    if new is ...:
        del owner[path[-1]]
    else:
        owner[path[-1]] = new
    return value


def strange(draw: st.DrawFn, value: Any) -> Any:
    """With one value replaced by another, or left out."""
    path = draw(st.sampled_from(places(value)))
    return replaced(
        value, path, draw(st.sampled_from(STRANGE) | st.just(...) if path else st.sampled_from(STRANGE))
    )


@st.composite
def damaged(draw: st.DrawFn, content: str, form: str) -> bytes:
    """The content with a fault."""
    if form and draw(st.booleans()):
        if form == "lines":
            lines = content.splitlines(keepends=True)
            at = draw(st.integers(0, len(lines) - 1))
            lines[at] = json.dumps(strange(draw, json.loads(lines[at]))) + "\n"
            return "".join(lines).encode()
        if form == "yaml":
            return yaml.safe_dump(strange(draw, yaml.safe_load(content))).encode()
        return json.dumps(strange(draw, json.loads(content))).encode()
    data = content.encode()
    at = draw(st.integers(0, len(data)))
    new = draw(
        st.binary(max_size=4) | st.sampled_from((b"\xff", b"\0", b"[" * 5000, b'"', b"\n", b"-", b"9" * 400))
    )
    return draw(st.sampled_from((data[:at], data[:at] + new + data[at + 1 :], data[:at] + new + data[at:])))


def reads(read: Callable[[Path], Any], path: Path, named: str) -> None:
    """It is read, or an error of ours names it."""
    said = named
    try:
        read(path)
    except PlaitError as error:
        said = str(error)
    assert named in said, said[:300]
