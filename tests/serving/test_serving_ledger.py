"""`KvLedger`: sharing, eviction, extents, and a check that finds what is wrong."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plait.serving.ledger import KvLedger, Pool
from plait.spec.step import Extent
from tests.scale import scaled

HERE = 0


def ledger(slots: int = 16, page: int = 2) -> KvLedger:
    made = KvLedger(page)
    made.add(HERE, slots)
    return made


def filled(made: KvLedger, request: int, tokens: int, hashes: tuple[int, ...] = ()) -> None:
    """A request that found nothing cached, computed `tokens` tokens and published its blocks."""
    made.open(HERE, request)
    assert made.grow(HERE, request, tokens) is not None
    made.publish(HERE, request, 0, hashes)


def test_only_whole_pages_of_a_pool_count():
    assert ledger(slots=17, page=4).capacity(HERE) == 16
    assert ledger(page=4).whole(0) == 0
    assert ledger(page=4).whole(5) == 8


def test_growing_adds_whole_pages_and_names_only_new_slots():
    made = ledger(page=2)
    made.open(HERE, 1)
    assert made.grow(HERE, 1, 3) == (Extent(0, 4),)
    assert made.grow(HERE, 1, 4) == ()
    assert made.grow(HERE, 1, 5) == (Extent(4, 2),)
    assert (made.held(HERE, 1), made.used(HERE)) == (6, 6)


def test_neighbouring_pages_are_one_extent_and_gaps_split_it():
    made = ledger(page=2)
    for request in (1, 2, 3):
        filled(made, request, 2)
    made.release(HERE, 2)
    made.open(HERE, 4)
    assert made.grow(HERE, 4, 6) == (Extent(2, 2), Extent(6, 4))
    assert made.extents(HERE, 4) == (Extent(2, 2), Extent(6, 4))


def test_growing_past_the_pool_changes_nothing():
    made = ledger(slots=8, page=2)
    filled(made, 1, 6)
    made.open(HERE, 2)
    assert made.grow(HERE, 2, 4) is None
    assert (made.held(HERE, 2), made.used(HERE)) == (0, 6)
    made.check()


def test_a_shared_prefix_is_held_once():
    made = ledger()
    filled(made, 1, 6, hashes=(11, 12, 13))
    assert made.match(HERE, (11, 12, 99)) == 2
    assert made.match(HERE, (99, 12)) == 0
    made.open(HERE, 2, (11, 12))
    assert made.extents(HERE, 2) == (Extent(0, 4),)
    assert made.used(HERE) == 6
    assert made.holdings(HERE)[1].private == 1, "only its third page comes back for certain"
    assert made.holdings(HERE)[2].private == 0
    made.release(HERE, 1)
    assert made.used(HERE) == 4
    made.check()


def test_published_pages_stay_findable_until_they_are_needed():
    made = ledger(slots=8, page=2)
    filled(made, 1, 4, hashes=(11, 12))
    made.release(HERE, 1)
    assert made.used(HERE) == 0
    assert made.match(HERE, (11, 12)) == 2
    made.open(HERE, 2, (11, 12))
    assert made.used(HERE) == 4


def test_eviction_takes_free_pages_first_then_the_oldest_tail():
    """The end of a prefix goes before its beginning: a beginning is still of use alone."""
    made = ledger(slots=12, page=2)
    filled(made, 1, 4, hashes=(11, 12))
    filled(made, 2, 4, hashes=(21, 22))
    made.release(HERE, 1)
    made.release(HERE, 2)
    found = []
    made.open(HERE, 3)
    for tokens in (4, 6, 8, 10, 12):
        made.grow(HERE, 3, tokens)
        found.append((made.match(HERE, (11, 12)), made.match(HERE, (21, 22))))
    assert found == [(2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]
    made.check()


def test_the_first_page_of_equal_content_is_the_one_found():
    made = ledger()
    filled(made, 1, 2, hashes=(11,))
    filled(made, 2, 2, hashes=(11,))
    made.open(HERE, 3, (11,))
    assert made.extents(HERE, 3) == made.extents(HERE, 1)
    made.release(HERE, 2)
    made.check()


def test_forgetting_keeps_what_is_held_and_finds_nothing():
    made = ledger()
    filled(made, 1, 4, hashes=(11, 12))
    filled(made, 2, 2, hashes=(21,))
    made.release(HERE, 2)
    made.forget(HERE)
    assert made.match(HERE, (11,)) == made.match(HERE, (21,)) == 0
    assert made.used(HERE) == made.held(HERE, 1) == 4
    made.release(HERE, 1)
    assert made.used(HERE) == 0
    made.check()


def test_instances_are_apart():
    made = ledger()
    made.add(1, 4)
    filled(made, 1, 4, hashes=(11, 12))
    assert made.match(1, (11,)) == 0
    assert (made.capacity(1), made.used(1)) == (4, 0)
    made.remove(HERE)
    made.add(HERE, 4)
    assert (made.used(HERE), made.match(HERE, (11,))) == (0, 0)


def _hold_twice(pool: Pool) -> None:
    pool.holdings[1].append(0, 1)


def _leak(pool: Pool) -> None:
    pool.free.take(1)


def _free_what_is_held(pool: Pool) -> None:
    pool.free.give(0, 1)


def _free_twice(pool: Pool) -> None:
    pool.free.give(7, 8)


def _count_a_holder_too_few(pool: Pool) -> None:
    pool.holders[0] -= 1


def _lose_a_holding(pool: Pool) -> None:
    del pool.holdings[1]


def _point_a_hash_elsewhere(pool: Pool) -> None:
    pool.index[11] = 7


def _cache_without_a_hash(pool: Pool) -> None:
    pool.cached[pool.free.take(1)[0]] = None


def _share_more_than_is_held(pool: Pool) -> None:
    pool.holdings[1].shared = 3


CORRUPTIONS = (
    _hold_twice,
    _leak,
    _free_what_is_held,
    _free_twice,
    _count_a_holder_too_few,
    _lose_a_holding,
    _point_a_hash_elsewhere,
    _cache_without_a_hash,
    _share_more_than_is_held,
)


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__.strip("_"))
def test_check_finds_corruption(corrupt: Callable[[Pool], None]):
    made = ledger()
    filled(made, 1, 4, hashes=(11,))
    made.check()
    corrupt(made._pools[HERE])
    with pytest.raises(AssertionError):
        made.check()


class LedgerMachine(RuleBasedStateMachine):
    """A ledger beside the plainest model of it: which slots each request holds, what each contains.

    Content is the number of a block in a family of prompts: block b of family f has hash 100 f + b.
    """

    @initialize(page=st.sampled_from([1, 2, 4]), pages=st.integers(1, 12))
    def build(self, page: int, pages: int) -> None:
        self.page, self.pages = page, pages
        self.ledger = ledger(page * pages + page - 1, page)
        self.slots: dict[int, list[int]] = {}
        self.family: dict[int, int] = {}
        self.content: dict[int, int] = {}
        self.next_id = 0

    def hashes(self, family: int, count: int) -> tuple[int, ...]:
        return tuple(100 * family + block for block in range(count))

    @rule(family=st.integers(0, 2), blocks=st.integers(0, 5))
    def open(self, family: int, blocks: int) -> None:
        hashes = self.hashes(family, blocks)
        matched = hashes[: self.ledger.match(HERE, hashes)]
        request, self.next_id = self.next_id, self.next_id + 1
        self.ledger.open(HERE, request, matched)
        self.family[request] = family
        self.slots[request] = self.named(self.ledger.extents(HERE, request))
        for block, slot in enumerate(self.slots[request][:: self.page]):
            assert self.content[slot] == hashes[block], "found what it did not ask for"

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), tokens=st.integers(0, 60))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        request = data.draw(st.sampled_from(sorted(self.slots)))
        mine, others = self.slots[request], {s for slots in self.slots.values() for s in slots}
        missing = max(0, self.ledger.whole(tokens) - len(mine))
        added = self.ledger.grow(HERE, request, tokens)
        if added is None:
            assert missing > self.page * self.pages - len(others), "refused, though there was room"
            return
        new = self.named(added)
        assert len(new) == missing
        assert not others & set(new), "slots that somebody holds"
        for slot in new[:: self.page]:
            self.content.pop(slot, None)
        mine += new

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.slots)))
        starts = self.slots[request][:: self.page]
        hashes = self.hashes(self.family[request], len(starts))
        self.ledger.publish(HERE, request, 0, hashes)
        for slot, block in zip(starts, hashes, strict=True):
            assert self.content.setdefault(slot, block) == block

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.slots)))
        before, private = (
            self.ledger.used(HERE),
            self.ledger.page * self.ledger.holdings(HERE)[request].private,
        )
        self.ledger.release(HERE, request)
        del self.slots[request]
        assert before - self.ledger.used(HERE) >= private, "less came back than was certain"

    @rule()
    def forget(self) -> None:
        self.ledger.forget(HERE)
        for family in range(3):
            assert self.ledger.match(HERE, self.hashes(family, 5)) == 0

    @invariant()
    def exact(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        held = {slot for slots in self.slots.values() for slot in slots}
        assert self.ledger.used(HERE) == len(held)
        private = sum(
            self.ledger.page * self.ledger.holdings(HERE)[request].private for request in self.slots
        )
        assert private <= len(held), "a slot is private to two"
        for request, slots in self.slots.items():
            assert self.named(self.ledger.extents(HERE, request)) == slots

    def named(self, extents: tuple[Extent, ...]) -> list[int]:
        for left, right in pairwise(extents):
            assert left.slot + left.count != right.slot, "two extents that are one"
        return [extent.slot + at for extent in extents for at in range(extent.count)]

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            for request in sorted(self.slots):
                self.ledger.release(HERE, request)
            assert self.ledger.used(HERE) == 0
            self.ledger.check()


LedgerMachine.TestCase.settings = settings(max_examples=scaled(1000), stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
