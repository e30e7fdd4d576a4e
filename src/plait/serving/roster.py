"""`Roster`: which instances are up, and the role of each, up or not."""

from collections.abc import Sequence
from dataclasses import replace

from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat
from plait.spec.cluster import Instance, Placement, Role


class Roster:
    """Owns the seats. An instance keeps its role while its worker is away; one that nobody named is MIXED."""

    def __init__(self, placement: Placement, ledger: KvLedger) -> None:
        self.seats: dict[int, Seat] = {}
        """Instances that are up, by id, in the order of ids."""
        self.limit = 0
        """Slots of the largest request that every phase has an instance for, of those that ever joined; 0
        while a phase has none."""
        self.elastic: dict[int, Seat] = {}
        """Those that form groups."""
        self.prefillers: dict[int, Seat] = {}
        """Of these, those that take prompts."""
        self.decoders: dict[int, Seat] = {}
        """Of these, those that take requests whose prompt is computed."""
        self.apart = False
        """Some elastic instances take prompts only."""
        self._turning: dict[int, Seat] = {}
        """Those that take another role once they have finished what they have."""
        self._ledger = ledger
        self._plans = {each.id: each for each in placement.instances}
        self._slots: dict[int, int] = {}
        """Instance -> most slots that it ever had."""

    def join(self, instance: int, epoch: int, slots: int) -> None:
        """An instance is up, with an empty pool."""
        assert instance not in self.seats
        self._ledger.add(instance, slots)
        plan = self._plans.setdefault(instance, Instance(instance))
        self.seats[instance] = Seat(instance, epoch, plan.role, plan.step_tokens, plan.pp)
        ordered = sorted(self.seats.items())
        self.seats.clear()
        self.seats.update(ordered)
        self._sort()
        self._slots[instance] = max(self._slots.get(instance, 0), self._ledger.capacity(instance))
        self._measure()

    def leave(self, seat: Seat) -> None:
        """An instance is gone, with all its slots."""
        del self.seats[seat.instance]
        self._turning.pop(seat.instance, None)
        self._sort()
        self._ledger.remove(seat.instance)

    def reassign(self, instance: int, role: Role) -> Seat | None:
        """Give an instance another role; its seat if it takes it now. One that forms groups, or is to form
        some, first finishes what it has."""
        self._plans[instance] = replace(self._plans.get(instance, Instance(instance)), role=role)
        seat = self.seats.get(instance)
        self._turning.pop(instance, None)
        if seat is not None:
            grouped = seat.role.elastic or role.elastic
            seat.retiring = seat.role is not role and grouped and bool(seat.lives)
            if seat.retiring:
                self._turning[instance] = seat
                seat.prefills = seat.decodes = False
            else:
                seat.play(role)
        self._sort()
        self._measure()
        return None if seat is None or seat.retiring else seat

    def turn(self, waiting: Sequence[Live]) -> None:
        """Those that have finished what they had take their new roles. Elastic ones that are to decode need
        not wait for what waits to decode: it may be for them that it waits."""
        for instance, seat in tuple(self._turning.items()):
            role = self._plans[instance].role
            keeps = seat.role.elastic and role.elastic and role.decodes
            if all(keeps and live in waiting for live in seat.lives.values()):
                del self._turning[instance]
                seat.retiring = False
                seat.play(role)
                self._sort()

    def role(self, instance: int) -> Role:
        """The role of an instance, up or not."""
        plan = self._plans.get(instance)
        return Role.MIXED if plan is None else plan.role

    def _sort(self) -> None:
        found = {id: seat for id, seat in self.seats.items() if seat.role.elastic}
        for pool in (self.elastic, self.prefillers, self.decoders):
            pool.clear()
        self.elastic |= found
        self.prefillers |= {id: seat for id, seat in found.items() if seat.role.prefills}
        self.decoders |= {id: seat for id, seat in found.items() if seat.role.decodes}
        self.apart = not self.prefillers.keys() <= self.decoders.keys()

    def _measure(self) -> None:
        joined = [(self._plans[instance].role, slots) for instance, slots in self._slots.items()]
        elastic = [(role, slots - self._ledger.page) for role, slots in joined if role.elastic]
        alone = [(role, slots) for role, slots in joined if not role.elastic]
        self.limit = max(
            min(  # a request may lie on all of a pool, with a page half empty on each
                sum(slots for role, slots in elastic if role.prefills),
                sum(slots for role, slots in elastic if role.decodes),
            ),
            min(
                max((slots for role, slots in alone if role.prefills), default=0),
                max((slots for role, slots in alone if role.decodes), default=0),
            ),
        )
