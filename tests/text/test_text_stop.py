import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.text.stop import StopSearch

few_letters = st.text(alphabet="ab", max_size=40)
stop_strings = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The stop that is complete first, the longest of those that end there, by looking everywhere."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def run(search: StopSearch, parts: list[str]) -> tuple[str, str | None]:
    emitted = ""
    for part in parts:
        text, stop = search.push(part)
        emitted += text
        if stop is not None:
            return emitted, stop
    return emitted + search.flush(), None


@given(parts=st.lists(st.text(alphabet="ab", max_size=6)), stops=stop_strings, include=st.booleans())
def test_any_cutting_finds_what_the_whole_text_holds(parts, stops, include):
    assert run(StopSearch(stops, include), parts) == reference("".join(parts), stops, include)


@given(text=few_letters, stops=stop_strings)
def test_what_is_held_back_is_only_a_possible_beginning(text, stops):
    search = StopSearch(stops)
    emitted, stop = search.push(text)
    if stop is None:
        held = text[len(emitted) :]
        assert emitted + held == text
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


def test_without_stops_everything_passes():
    assert StopSearch(()).push("anything") == ("anything", None)


def test_an_empty_stop_is_a_bug():
    with pytest.raises(AssertionError):
        StopSearch(("",))
