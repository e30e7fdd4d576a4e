"""`Flights`: steps that were issued and not answered, and the order of ids that steps and moves share."""

from collections.abc import Iterable

from plait.serving.forecast import Forecast
from plait.serving.live import Flight, Live, Seat
from plait.spec.step import Step


class Flights:
    """Counts them on every instance of their groups; tells the forecast."""

    def __init__(self, ttft_ns: int | None) -> None:
        """`ttft_ns`: newcomers whose first token would come later are refused; None: none is for that."""
        self.next_id = 0
        self._ttft_ns = ttft_ns
        self._forecast = Forecast() if ttft_ns is not None else None
        self._flying: dict[int, Flight] = {}

    def __bool__(self) -> bool:
        return bool(self._flying)

    def of(self, seat: Seat) -> list[Flight]:
        """Those of an instance, in order."""
        return [flight for flight in self._flying.values() if seat in flight.seats]

    def seats(self, step: int) -> tuple[Seat, ...]:
        """The instances of a step; none if it is not in flight."""
        flight = self._flying.get(step)
        return () if flight is None else flight.seats

    def number(self) -> int:
        """The next id."""
        self.next_id += 1
        return self.next_id - 1

    def issue(self, step: Step, flight: Flight, now_ns: int) -> None:
        """A step that has the next id goes out."""
        self._flying[self.number()] = flight
        for seat in flight.seats:
            seat.flights += 1
        if self._forecast is not None:
            self._forecast.issued(step, now_ns)

    def land(self, step: int, now_ns: int) -> Flight | None:
        """A step was answered; None if it was lost with a worker before."""
        flight = self._flying.pop(step, None)
        if flight is not None:
            self._ground(flight)
            if self._forecast is not None:
                self._forecast.answered(step, flight.seats[0].instance, now_ns)
        return flight

    def lost(self, seat: Seat) -> list[Flight]:
        """The steps of an instance that is gone: they will not be answered."""
        broken = {step: flight for step, flight in self._flying.items() if seat in flight.seats}
        for step, flight in broken.items():
            del self._flying[step]
            self._ground(flight)
        if self._forecast is not None:
            self._forecast.lost(seat.instance)
        return list(broken.values())

    def doubt(self, failed: Flight) -> dict[int, Live]:
        """A step failed: what is in flight on its instances may read what was never computed, so it is void.
        Returns the requests that this is about."""
        found: dict[int, Live] = {}
        for seat in failed.seats:
            found |= seat.lives
            for flight in self.of(seat):
                flight.void = True
                found |= {live.id: live for live in flight.lives}
        return found

    def behind(self, lost: Iterable[Live]) -> list[Live]:
        """Requests lose a step that will not be answered: later ones, which may have other groups, go on from
        what nobody heard of, so they are void. Returns the other requests in these."""
        ids, found = {live.id for live in lost}, list[Live]()
        for flight in self._flying.values():
            if not ids.isdisjoint(live.id for live in flight.lives):
                flight.void = True
                found += [live for live in flight.lives if live.id not in ids]
                ids.update(live.id for live in flight.lives)
        return found

    def late(self, tokens: int, waiting: Iterable[Live], seats: Iterable[Seat]) -> bool:
        """Whether the first token of a prompt that comes now would come later than is promised."""
        if self._ttft_ns is None or self._forecast is None:
            return False
        return self._forecast.first_token_ns(tokens, waiting, seats) > self._ttft_ns

    def _ground(self, flight: Flight) -> None:
        for seat in flight.seats:
            seat.flights -= 1
