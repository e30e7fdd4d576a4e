"""`Holdings`: which KV pages each request holds on which instance, as far as steps and moves have told.

The ledger of the core is not in a journal, but what it gives out is: a step names the slots that are new, and
all slots of a row that it opens. What it takes back is seen when a request ends, moves on, or is opened anew.
"""

from collections.abc import Iterable

from plait.spec.step import Span


class Holdings:
    """Pages by instance and request. Shared pages count once."""

    def __init__(self, page: int) -> None:
        """`page`: slots that are owned together."""
        self.page = page
        self._slots: dict[int, int] = {}
        self._there: dict[int, dict[int, set[int]]] = {}
        """Instance -> request -> pages."""
        self._holders: dict[int, dict[int, int]] = {}
        """Instance -> page -> requests that hold it."""
        self._where: dict[int, dict[int, None]] = {}
        """Request -> instances."""
        self._whole, self._held = 0, 0
        """Pages of all instances, and those that are held."""

    def up(self, instance: int, slots: int) -> None:
        """An instance begins with an empty pool."""
        self.lost(instance)
        self._slots[instance] = slots // self.page * self.page
        self._whole += slots // self.page
        self._there[instance], self._holders[instance] = {}, {}

    def lost(self, instance: int) -> None:
        """An instance is gone, with all that was held there."""
        for request in self._there.pop(instance, {}):
            self._forget(request, instance)
        self._held -= len(self._holders.pop(instance, ()))
        self._whole -= self._slots.pop(instance, 0) // self.page

    def capacity(self, instance: int) -> int:
        """Slots of an instance; 0 while it is down."""
        return self._slots.get(instance, 0)

    def used(self, instance: int) -> int:
        """Slots that are held there."""
        return len(self._holders.get(instance, ())) * self.page

    @property
    def share(self) -> float:
        """Of all slots of all instances that are up."""
        return self._held / self._whole if self._whole else 0.0

    def on(self, instance: int) -> tuple[int, ...]:
        """Requests that hold something there."""
        return tuple(self._there.get(instance, ()))

    def pages(self, instance: int, request: int) -> frozenset[int]:
        """That a request holds there."""
        return frozenset(self._there.get(instance, {}).get(request, ()))

    def where(self, request: int) -> tuple[int, ...]:
        """Instances where a request holds something."""
        return tuple(self._where.get(request, ()))

    def take(self, request: int, span: Span) -> None:
        """A request holds these slots, too."""
        there = self._there.get(span.instance)
        if there is None:
            return  # said of an instance that is lost by now
        mine = there.setdefault(request, set())
        self._where.setdefault(request, {})[span.instance] = None
        holders, page = self._holders[span.instance], self.page
        for extent in span.extents:
            for number in range(extent.slot // page, (extent.slot + extent.count - 1) // page + 1):
                if number not in mine:
                    mine.add(number)
                    holders[number] = shared = holders.get(number, 0) + 1
                    self._held += shared == 1

    def retell(self, request: int, spans: Iterable[Span]) -> None:
        """A request holds these slots and no others."""
        self.drop(request)
        for span in spans:
            self.take(request, span)

    def release(self, request: int, instance: int) -> None:
        """A request holds nothing there any more."""
        pages = self._there.get(instance, {}).pop(request, None)
        if pages is None:
            return
        holders = self._holders[instance]
        for number in pages:
            if holders[number] == 1:
                del holders[number]
                self._held -= 1
            else:
                holders[number] -= 1
        self._forget(request, instance)

    def drop(self, request: int) -> None:
        """A request holds nothing anywhere."""
        for instance in self.where(request):
            self.release(request, instance)

    def _forget(self, request: int, instance: int) -> None:
        where = self._where[request]
        del where[instance]
        if not where:
            del self._where[request]
