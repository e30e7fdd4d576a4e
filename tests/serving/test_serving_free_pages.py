"""`FreePages` beside a set of pages."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plait.serving.free_pages import FreePages


@given(st.integers(0, 20), st.lists(st.integers(-6, 6), max_size=40))
def test_runs_are_the_pages_that_are_free(count: int, script: list[int]):
    """A positive number takes that many pages, a negative one gives back what was taken so long ago."""
    pages = FreePages(count)
    free, taken = set(range(count)), []
    for number in script:
        if number > 0 and free:
            start, end = pages.take(number)
            assert 0 < end - start <= number
            assert free.issuperset(range(start, end))
            free.difference_update(range(start, end))
            taken.append((start, end))
        elif number < 0 and taken:
            start, end = taken.pop(number % len(taken))
            pages.give(start, end)
            free.update(range(start, end))
        runs = sorted(pages)
        assert [page for start, end in runs for page in range(start, end)] == sorted(free)
        assert all(left[1] < right[0] for left, right in pairwise(runs)), "two runs that are one"
        assert pages.count == len(free)


def test_the_run_that_changed_last_is_taken_first():
    pages = FreePages(8)
    assert pages.take(2) == (0, 2)
    assert pages.take(4) == (2, 6)
    pages.give(0, 2)
    assert pages.take(3) == (0, 2)
    assert pages.take(3) == (6, 8)
