"""`KvLedger`: who owns which KV slots on which instance.

Slots are owned in pages of `page` tokens (1 in proofs). Each page of an instance is in exactly one
of three places, so that free + cached + owned = total after every event:

    free      on the `free` stack
    cached    no request holds it, but its content is known by hash; the oldest is taken when needed
    owned     held by one request or, where prompts share a prefix, by several (`holders` counts)

A request's `pages` list is its positions in order: position p lies in pages[p // page].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.spec.step import Extent


@dataclass(slots=True)
class Holding:
    """What one request holds on one instance."""

    pages: list[int] = field(default_factory=list)
    shared: int = 0
    """How many of `pages` may outlive the request because another one may hold them."""

    @property
    def private(self) -> int:
        """Pages that come back for certain when the request ends."""
        return len(self.pages) - self.shared


@dataclass(slots=True)
class Pool:
    """The pages of one instance."""

    total: int
    free: list[int]
    holders: list[int]
    """Requests that hold each page."""
    owner: list[int]
    """Request that filled each page, or -1."""
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
        self._pools[instance] = Pool(pages, list(range(pages - 1, -1, -1)), [0] * pages, [-1] * pages)
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
        return (pool.total - len(pool.free) - len(pool.cached)) * self.page

    def held(self, instance: int, request: int) -> int:
        """Slots that a request holds, shared ones included."""
        return len(self._pools[instance].holdings[request].pages) * self.page

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
        pages = [pool.index[block] for block in hashes]
        for page in pages:
            self._share(pool, page)
        pool.holdings[request] = Holding(pages, len(pages))

    def extents(self, instance: int, request: int, first_page: int = 0) -> tuple[Extent, ...]:
        """The slots that a request holds from its page `first_page` on, in the order of its positions."""
        return self._extents(self._pools[instance].holdings[request].pages[first_page:])

    def grow(self, instance: int, request: int, tokens: int) -> tuple[Extent, ...] | None:
        """Make the request hold room for `tokens` tokens in all.

        Returns the extents that were added, or None (and changes nothing) when there is no room.
        """
        pool = self._pools[instance]
        holding = pool.holdings[request]
        missing = -(-tokens // self.page) - len(holding.pages)
        if missing <= 0:
            return ()
        if missing > len(pool.free) + len(pool.cached):
            return None
        pages = [self._take(pool, request) for _ in range(missing)]
        holding.pages += pages
        return self._extents(pages)

    def publish(self, instance: int, request: int, first: int, hashes: tuple[int, ...]) -> None:
        """The request's blocks from number `first` on have these hashes: others may share them."""
        pool = self._pools[instance]
        pages = pool.holdings[request].pages
        for number, block in enumerate(hashes, first):
            page = pages[number]
            if block not in pool.index and page not in pool.hash_of:
                pool.index[block] = page
                pool.hash_of[page] = block

    def release(self, instance: int, request: int) -> None:
        """The request holds nothing here any more; what can be found by hash stays cached."""
        pool = self._pools[instance]
        for page in reversed(pool.holdings.pop(request).pages):
            pool.holders[page] -= 1
            if pool.holders[page] == 0:
                pool.owner[page] = -1
                if page in pool.hash_of:
                    pool.cached[page] = None
                else:
                    pool.free.append(page)

    def forget(self, instance: int) -> None:
        """What the instance's pages contain is no longer known: nothing of it is shared from now on."""
        pool = self._pools[instance]
        pool.free += reversed(pool.cached)
        pool.cached.clear()
        pool.index.clear()
        pool.hash_of.clear()

    def check(self) -> None:
        """Every page in exactly one place, every count right. Raises AssertionError."""
        for pool in self._pools.values():
            count = [0] * pool.total
            for holding in pool.holdings.values():
                assert len(set(holding.pages)) == len(holding.pages), "a request holds a page twice"
                assert 0 <= holding.shared <= len(holding.pages)
                for page in holding.pages:
                    count[page] += 1
            assert count == pool.holders, "holders disagree with holdings"
            owned = sum(1 for held in count if held)
            places = [*pool.free, *pool.cached, *(page for page in range(pool.total) if count[page])]
            assert sorted(places) == list(range(pool.total)), "a page is in no place or in two"
            assert len(pool.free) + len(pool.cached) + owned == pool.total
            assert {page: block for block, page in pool.index.items()} == pool.hash_of
            assert all(page in pool.hash_of for page in pool.cached)

    def _take(self, pool: Pool, request: int) -> int:
        if pool.free:
            page = pool.free.pop()
        else:
            page = next(iter(pool.cached))
            del pool.cached[page]
            del pool.index[pool.hash_of.pop(page)]
        pool.holders[page] = 1
        pool.owner[page] = request
        return page

    def _share(self, pool: Pool, page: int) -> None:
        if pool.holders[page] == 0:
            del pool.cached[page]
        elif pool.owner[page] in pool.holdings:
            # The one that filled it counted it as its own until now.
            pool.holdings[pool.owner[page]].shared += 1
        pool.owner[page] = -1
        pool.holders[page] += 1

    def _extents(self, pages: list[int]) -> tuple[Extent, ...]:
        if len(pages) == 1:  # what a row that decodes asks for
            return (Extent(pages[0] * self.page, self.page),)
        extents: list[Extent] = []
        start = 0
        for at in range(1, len(pages) + 1):
            if at == len(pages) or pages[at] != pages[at - 1] + 1:
                extents.append(Extent(pages[start] * self.page, (at - start) * self.page))
                start = at
        return tuple(extents)
