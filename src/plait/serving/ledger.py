"""`KvLedger`: who owns which KV slots on which instance.

Slots are owned in pages of `page` tokens (1 in proofs). Each page of an instance is in exactly one
of three places, so that free + cached + owned = total after every event:

    free      in `free`, as runs of neighbouring pages
    cached    no request holds it, but its content is known by hash; the oldest is taken when needed
    owned     held by one request or, where prompts share a prefix, by several (`holders` counts)

A request's pages are its positions in order: position p lies in its page number p // page. They are kept
as runs, and a page is looked at alone only where somebody knows its content.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from plait.serving.free_pages import FreePages
from plait.spec.step import Extent


@dataclass(slots=True)
class Holding:
    """What one request holds on one instance."""

    runs: list[tuple[int, int]] = field(default_factory=list)
    """Its pages in the order of its positions: runs [start, end), of which no two in a row touch."""
    count: int = 0
    """Pages in all runs."""
    shared: int = 0
    """How many of them may outlive the request because another one may hold them."""
    known: bool = False
    """Whether the content of any of them was ever known by hash."""

    @property
    def private(self) -> int:
        """Pages that come back for certain when the request ends."""
        return self.count - self.shared

    def pages(self, first: int = 0) -> Iterator[int]:
        """Its pages one by one, from number `first` on."""
        for start, end in self.runs:
            yield from range(start + min(first, end - start), end)
            first = max(0, first - (end - start))

    def append(self, start: int, end: int) -> None:
        """Pages [start, end) follow."""
        self.count += end - start
        if self.runs and self.runs[-1][1] == start:
            start = self.runs.pop()[0]
        self.runs.append((start, end))


@dataclass(slots=True)
class Pool:
    """The pages of one instance."""

    total: int
    free: FreePages
    holders: dict[int, int] = field(default_factory=dict)
    """Requests that hold each page whose content was made known; any other has one at most."""
    owner: dict[int, int] = field(default_factory=dict)
    """Page that was made known and is held by the request that filled it alone -> that request."""
    cached: dict[int, None] = field(default_factory=dict)
    """Pages held by nobody whose content is known, oldest first."""
    index: dict[int, int] = field(default_factory=dict)
    """Block hash -> page."""
    hash_of: dict[int, int] = field(default_factory=dict)
    """Page -> block hash."""
    holdings: dict[int, Holding] = field(default_factory=dict)


class KvLedger:
    """Keeps the pages of every instance. All sizes are in slots (tokens) unless they say pages."""

    def __init__(self, page: int) -> None:
        assert page >= 1
        self.page = page
        self._pools: dict[int, Pool] = {}
        self.most = 0
        """Slots of the largest instance that ever joined."""

    def add(self, instance: int, slots: int) -> None:
        """An instance joins with an empty pool of `slots` slots (whole pages count)."""
        assert instance not in self._pools
        pages = slots // self.page
        self._pools[instance] = Pool(pages, FreePages(pages))
        self.most = max(self.most, pages * self.page)

    def remove(self, instance: int) -> None:
        """An instance is gone, with all that was held on it."""
        del self._pools[instance]

    def capacity(self, instance: int) -> int:
        """All slots of an instance."""
        return self._pools[instance].total * self.page

    def used(self, instance: int) -> int:
        """Slots held by requests; shared ones count once."""
        pool = self._pools[instance]
        return (pool.total - pool.free.count - len(pool.cached)) * self.page

    def held(self, instance: int, request: int) -> int:
        """Slots that a request holds, shared ones included."""
        return self._pools[instance].holdings[request].count * self.page

    def holdings(self, instance: int) -> Mapping[int, Holding]:
        """What each request holds here; to be read only."""
        return self._pools[instance].holdings

    def whole(self, tokens: int) -> int:
        """Slots of the pages that `tokens` tokens need."""
        return -(-tokens // self.page) * self.page

    def match(self, instance: int, hashes: tuple[int, ...]) -> int:
        """How many leading blocks of `hashes` this instance has."""
        index = self._pools[instance].index
        for count, block in enumerate(hashes):
            if block not in index:
                return count
        return len(hashes)

    def open(self, instance: int, request: int, hashes: tuple[int, ...] = ()) -> None:
        """A request begins to hold pages here: those of the blocks `hashes`, which all must match."""
        pool = self._pools[instance]
        assert request not in pool.holdings
        holding = pool.holdings[request] = Holding(shared=len(hashes), known=bool(hashes))
        for block in hashes:
            page = pool.index[block]
            self._share(pool, page)
            holding.append(page, page + 1)

    def extents(self, instance: int, request: int, first_page: int = 0) -> tuple[Extent, ...]:
        """The slots that a request holds from its page `first_page` on, in the order of its positions."""
        extents: list[Extent] = []
        for start, end in self._pools[instance].holdings[request].runs:
            if first_page < end - start:
                extents.append(self._extent(start + first_page, end))
            first_page = max(0, first_page - (end - start))
        return tuple(extents)

    def slots(self, instance: int, request: int, first: int, count: int) -> tuple[Extent, ...]:
        """The slots of the tokens that an instance keeps of a request, from number `first` on."""
        found: list[Extent] = []
        for start, end in self._pools[instance].holdings[request].runs:
            size = (end - start) * self.page
            low, high = max(first, 0), min(first + count, size)
            if low < high:
                found.append(Extent(start * self.page + low, high - low))
            first -= size
        return tuple(found)

    def grow(self, instance: int, request: int, tokens: int) -> tuple[Extent, ...] | None:
        """Make the request hold room for `tokens` tokens in all.

        Returns the extents that were added, or None (and changes nothing) when there is no room.
        """
        pool = self._pools[instance]
        holding = pool.holdings[request]
        missing = -(-tokens // self.page) - holding.count
        if missing <= 0:
            return ()
        if missing > pool.free.count + len(pool.cached):
            return None
        added = Holding()
        while missing:
            start, end = pool.free.take(missing) if pool.free.count else self._evict(pool)
            holding.append(start, end)
            added.append(start, end)
            missing -= end - start
        return tuple(self._extent(start, end) for start, end in added.runs)

    def publish(self, instance: int, request: int, first: int, hashes: tuple[int, ...]) -> None:
        """The request's blocks from number `first` on have these hashes: others may share them."""
        if not hashes:
            return
        pool = self._pools[instance]
        holding = pool.holdings[request]
        holding.known = True
        for page, block in zip(holding.pages(first), hashes, strict=False):
            if page not in pool.holders:
                pool.holders[page] = 1
                pool.owner[page] = request
            if block not in pool.index and page not in pool.hash_of:
                pool.index[block] = page
                pool.hash_of[page] = block

    def release(self, instance: int, request: int) -> None:
        """The request holds nothing here any more; what can be found by hash stays cached."""
        pool = self._pools[instance]
        holding = pool.holdings.pop(request)
        if holding.known:
            for page in reversed([*holding.pages()]):
                self._drop(pool, page)
        else:
            for start, end in reversed(holding.runs):
                pool.free.give(start, end)

    def forget(self, instance: int) -> None:
        """What the instance's pages contain is no longer known: nothing of it is shared from now on."""
        pool = self._pools[instance]
        for page in reversed(pool.cached):
            pool.free.give(page, page + 1)
        pool.cached.clear()
        pool.index.clear()
        pool.hash_of.clear()

    def check(self) -> None:
        """Every page in exactly one place, every count right. Raises AssertionError."""
        for pool in self._pools.values():
            count = [0] * pool.total
            for holding in pool.holdings.values():
                pages = [*holding.pages()]
                assert len(set(pages)) == len(pages) == holding.count, "a request holds a page twice"
                assert 0 <= holding.shared <= holding.count
                assert holding.known or not any(page in pool.holders for page in pages)
                assert all(left[1] != right[0] for left, right in pairwise(holding.runs)), "two runs are one"
                for page in pages:
                    count[page] += 1
            self._check_places(pool, count)
            assert all(held == count[page] for page, held in pool.holders.items()), "holders disagree"
            assert all(held <= 1 or page in pool.holders for page, held in enumerate(count)), "shared unseen"
            assert {page: block for block, page in pool.index.items()} == pool.hash_of
            assert all(page in pool.hash_of for page in pool.cached)
            assert all(pool.holders[page] == 1 for page in pool.owner)

    def _check_places(self, pool: Pool, count: list[int]) -> None:
        free = [page for start, end in pool.free for page in range(start, end)]
        assert len(free) == pool.free.count, "free pages miscounted"
        owned = [page for page in range(pool.total) if count[page]]
        places = sorted([*free, *pool.cached, *owned])
        assert places == list(range(pool.total)), "a page is in no place or in two"

    def _evict(self, pool: Pool) -> tuple[int, int]:
        page = next(iter(pool.cached))
        del pool.cached[page]
        del pool.index[pool.hash_of.pop(page)]
        return page, page + 1

    def _share(self, pool: Pool, page: int) -> None:
        if page in pool.cached:
            del pool.cached[page]
        elif (owner := pool.owner.pop(page, None)) is not None:
            # The one that filled it counted it as its own until now.
            pool.holdings[owner].shared += 1
        pool.holders[page] = pool.holders.get(page, 0) + 1

    def _drop(self, pool: Pool, page: int) -> None:
        left = pool.holders.pop(page, 1) - 1
        if left:
            pool.holders[page] = left
            return
        pool.owner.pop(page, None)
        if page in pool.hash_of:
            pool.cached[page] = None
        else:
            pool.free.give(page, page + 1)

    def _extent(self, start: int, end: int) -> Extent:
        return Extent(start * self.page, (end - start) * self.page)
