"""Who keeps what: every token once, in the room there is, on as few instances as that takes."""

from hypothesis import given
from hypothesis import strategies as st

from plait.serving.retention import retain
from plait.spec.step import Keep


def test_the_fullest_instance_keeps_what_fits_it():
    kept = retain({7: (0, 10)}, {0: 64, 1: 32}, {0: 0, 1: 32}, {}, 16)
    assert kept == {7: (Keep(1, 0, 10),)}


def test_a_prompt_that_fits_nowhere_whole_is_divided_in_order():
    kept = retain({7: (100, 80)}, {0: 64, 1: 32}, {0: 0, 1: 32}, {}, 16)
    assert kept == {7: (Keep(1, 100, 32), Keep(0, 132, 48))}


def test_slots_that_it_has_already_are_filled_first():
    kept = retain({7: (20, 10)}, {0: 0, 1: 64}, {0: 32, 1: 0}, {(7, 0): 12}, 16)
    assert kept == {7: (Keep(0, 20, 10),)}


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.lists(st.integers(0, 8), min_size=1, max_size=4),
    st.sampled_from([1, 16]),
)
def test_every_token_is_kept_once_in_the_room_there_is(counts, pages, page):
    free = {i: count * 16 for i, count in enumerate(pages)}
    kept = retain({i: (5, count) for i, count in enumerate(counts)}, free, dict.fromkeys(free, 0), {}, page)
    if kept is None:
        assert sum(-(-count // page) * page for count in counts) + page * len(free) * len(counts) > sum(
            free.values()
        )
        return
    left = dict(free)
    for request, count in enumerate(counts):
        past = 5
        for keep in kept[request]:
            assert keep.first == past
            past += keep.count
            left[keep.instance] -= -(-keep.count // page) * page
        assert past == 5 + count
    assert min(left.values()) >= 0
