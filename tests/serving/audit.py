"""What must hold of a manager after every event. Raises AssertionError."""

from plait.serving.live import Live, Relocation, Seat
from plait.serving.manager import GlobalManager


def audit(manager: GlobalManager) -> None:
    """Every request is in one place, every slot is owned once, every sum is right."""
    manager.ledger.check()
    seats = manager.seats.values()
    orders = [live.order for live in manager.admission]
    assert orders == sorted(orders), "the queue is out of its order"
    waiting = {live.id for live in manager.admission}
    seated = {live.id for seat in seats for live in seat.lives.values() if not live.over}
    assert not waiting & seated, "a request waits and runs"
    assert waiting | seated == set(manager.lives), "a request is nowhere"
    for seat in seats:
        assert set(manager.ledger.holdings(seat.instance)) == set(seat.lives), "slots of a request elsewhere"
        if seat.role.elastic:
            for live in seat.lives.values():
                assert seat.instance in live.instances or seat.instance in live.relocation.targets
            moves = [move for each in _relocations(manager) for move in each.flying.values()]
            assert seat.arriving == sum(move.target.instance == seat.instance for move in moves)
            continue
        for live in seat.lives.values():
            _audit_on(manager, seat, live)
        there = [(live, live.instance == seat.instance) for live in seat.lives.values()]
        assert seat.promised == sum(live.promise if here else live.most for live, here in there)
        assert seat.held_slots == sum(live.least for live, here in there if live.held and here)
        assert seat.arriving == sum(t.target is seat for t in manager.handover.flying.values())
    _audit_ensemble(manager)
    pools = manager.elasticity.pools
    assert manager.ensemble.apart or pools.at_least() <= pools.to_compute(), "less room than was said"
    _audit_relocations(manager)
    held = [live.order for seat in seats for live in seat.lives.values() if live.held]
    assert [live.order for live in manager.handover.waiting] == sorted(held), "who waits to be pulled"


def _audit_on(manager: GlobalManager, seat: Seat, live: Live) -> None:
    held = manager.ledger.held(seat.instance, live.id)
    if live.instance != seat.instance:
        assert live.transfer is not None, "slots of a request that is neither here nor on its way"
        assert live.transfer.target is seat
    assert live.planned <= held or not live.opened, "computed positions without slots"
    assert live.planned <= live.longest, "a position beyond the last"
    pinned = live.flying or live.transfer is not None
    assert not (live.over or live.leaving) or pinned, "nothing pins these slots"
    assert not (live.held and (live.leaving or live.over or live.transfer)), "it does not wait"
    places = (live.id in seat.prefilling, live.id in seat.decoding, live.held, live.transfer is not None)
    assert sum(places) <= 1, "a request is in two places"


def _audit_ensemble(manager: GlobalManager) -> None:
    """Every elastic request is in one place, and holds slots for all that was planned of it."""
    ensemble, ledger = manager.ensemble, manager.ledger
    assert set(ensemble.seats) == {i for i, seat in manager.seats.items() if seat.role.elastic}
    for live in ensemble.lives.values():
        waits, moves = live in manager.relocations.waiting, live.relocation is not None
        rests = live.id in manager.relocations.resting
        decodes = live.id in ensemble.decoding
        places = (live.id in ensemble.partial, decodes, live.flying > 0, waits, moves)
        assert any(places), "a request that nothing will happen to"
        assert sum(places) - (decodes and live.flying > 0) == 1, "a request is in two places"
        assert not rests or (live.flying > 0 and not decodes), "it could go"
        if moves and (live.leaving or live.over):
            continue  # what it had may be gone
        parts = dict(live.parts)
        if live.master >= 0:
            parts[live.master] = live.planned - live.away
        assert sum(parts.values()) == live.planned
        for instance, tokens in parts.items():
            assert live.id in ensemble.seats[instance].lives
            assert tokens <= ledger.held(instance, live.id), "computed positions without slots"
        assert not (live.over or live.leaving) or live.pinned, "nothing pins these slots"
    for instance, seat in ensemble.seats.items():
        flying = manager.flights.of(seat)
        assert seat.flights == len(flying)
        assert ensemble.computing.get(instance, 0) == sum(f.prompts for f in flying)


def _relocations(manager: GlobalManager) -> list[Relocation]:
    """Those under way, each once."""
    return list({id(each): each for each in manager.relocations.flying.values()}.values())


def _audit_relocations(manager: GlobalManager) -> None:
    """A request on its way has slots for all of it where it goes, and nobody else knows of a move of it."""
    flying = manager.relocations.flying
    moving = {live.id: live.relocation for live in manager.ensemble.lives.values() if live.relocation}
    assert {id(each) for each in flying.values()} == {id(each) for each in moving.values()}
    for live_id, relocation in moving.items():
        assert relocation.live.id == live_id
        assert relocation.flying, "nothing will answer it"
        assert all(flying[move] is relocation for move in relocation.flying)
        for target, tokens in relocation.targets.items():
            assert manager.ledger.held(target, live_id) >= tokens
            assert live_id in manager.seats[target].lives
        if not relocation.broken:
            assert sum(keep.count for keep in relocation.kept) == relocation.live.planned
    orders = [live.order for live in manager.relocations.waiting]
    assert orders == sorted(orders)
    assert all(not live.pinned for live in manager.relocations.waiting)
