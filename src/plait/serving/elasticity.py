"""`Elasticity`: how many instances each step gets, decided anew at every step.

Instances of role ELASTIC belong to nobody. Whenever one of them computes no prompt, it is decided which
waiting prompts are computed now, on how many instances each (LoongServe, section 5): the memory test and the
gain against the cost of pausing decodes (dispatch, allocation), an exact programme (batching), and who keeps
what (scale-down). Long prompts are cut, so that the next part is decided anew as well. Rows decode in the
groups that share some KV, each at its master.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plait.search.batching import Batch, Job, Width, best_plan, coarse_cuts
from plait.serving.admission import Admission
from plait.serving.allocation import fastest_ns, filled, longest_chunk, most_useful, worth_pausing
from plait.serving.compaction import Compaction
from plait.serving.ensemble import Ensemble, Made
from plait.serving.flights import Flights
from plait.serving.groups import Group
from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat
from plait.serving.masters import Masters
from plait.serving.pools import Pools
from plait.serving.reasons import of_batch, of_chunk
from plait.serving.recall import Recall
from plait.serving.slack import due_ns, slack_ns
from plait.serving.turns import Turns
from plait.spec.errors import UserError

WORTH = 3.0
"""Fixed times of a step with prompts that such a step takes at least, were rows to wait for more of them."""


@dataclass(frozen=True, slots=True)
class ElasticConfig:
    """How elastic instances decide. Times are nanoseconds of the model on the instances there are."""

    widths: tuple[Width, ...] = (Width(1, 0.0, 1.0, 0.0),)
    """The scaling information base: time of a prefill on groups of each size (LoongServe, section 5.4). A
    size that is left out counts as the next smaller one; that of one instance must be there."""
    decode_ns: float = 30e6
    """A decode step, about; what a prompt waits for that waits for decoding rows to end."""
    chunk_ns: float = 1e9
    """Prompts that would keep their instances for longer are cut: they yield to shorter ones in between."""
    tpot_ns: float = 0.0
    """Objective for the mean time between tokens: prompts take the instances of rows that are ahead of it,
    for as long as they are. 0: there is none, and what rows lose is weighed against what prompts gain."""
    ttft_ns: float = 0.0
    """Objective for the time to the first token, with `ttft_times`: prompts are computed in the order in
    which they are due, and those that will be late let others pass. Both 0: the oldest go first."""
    ttft_times: float = 0.0
    """Added to `ttft_ns`: times of what a prompt takes alone on the best group."""
    grace: float = 4.0
    """A prompt that is late is due again so many times its objective later."""
    move_token_ns: float = 0.0
    """Time to move a token's KV, where rows may leave instances to prompts; 0: nothing is moved."""
    price: float = 1.0
    """What the time of each further instance of a group counts beside the time of its prompts, times the
    share of instances that compute prompts: others will want it."""
    hysteresis: float = 0.05
    """A group grows only if that saves at least this share of the time."""
    master_rows: int = 128
    """Rows from which a master's dense layers are bound by arithmetic: another instance is made one."""
    cuts: int = 500
    """Places at which the batching programme may cut; with fewer requests than that it is exact."""

    def __post_init__(self) -> None:
        if min((width.instances for width in self.widths), default=0) != 1:
            raise UserError("times of groups must begin with those of one instance alone", "widths")


class Elasticity:
    """Decides; `Ensemble` carries out."""

    def __init__(
        self,
        config: ElasticConfig,
        ensemble: Ensemble,
        ledger: KvLedger,
        admission: Admission,
        pools: Pools,
        depth: int,
    ) -> None:
        """`depth`: steps in flight on an instance."""
        self.config = config
        self.ensemble = ensemble
        self.masters = Masters(config.master_rows, ensemble, ledger)
        self.pools = pools
        self.turns = Turns(ensemble, config.tpot_ns or config.chunk_ns, self._slack_ns)
        self.compaction: Compaction | None = None
        """None: nothing is moved to free instances."""
        self.recall: Recall | None = None
        """None: all of a prompt is computed."""
        self.widths = config.widths
        """Of every number of instances that there may be."""
        self._ledger = ledger
        self._admission = admission
        self._depth = depth
        self._now_ns = 0

    def plan(self, flights: Flights, now_ns: int) -> Iterator[Made]:
        """The steps to issue now; each is issued before the next is built."""
        self._now_ns = now_ns
        ensemble = self.ensemble
        if not ensemble.seats:
            return
        if len(self.widths) != len(ensemble.seats):
            self.widths = filled(self.config.widths, len(ensemble.seats))
        self.turns.forget()
        if ensemble.partial or len(self._admission):
            self.turns.look(now_ns)
        if ensemble.partial or (len(self._admission) and ensemble.free()):
            yield from self._prompts(flights)
        if ensemble.apart or not len(self._admission):
            for group in tuple(ensemble.groups):
                self.masters.spread(group)
        changed = True
        while changed:
            groups, changed = ensemble.groups, False
            for group in groups:
                yield from self._decode(group, flights)
                changed |= ensemble.groups is not groups
        if not flights and (ensemble.partial or ensemble.reserved):
            self.turns.forget()  # rows that yielded gave room, or cannot go on, and no answer will come
            yield from self._prompts(flights)

    def expect(self, live: Live, now_ns: int) -> None:
        """A request has come."""
        config = self.config
        live.arrived_ns = now_ns
        if config.ttft_ns or config.ttft_times:
            live.due_ns = now_ns + config.ttft_ns + config.ttft_times * self._alone_ns(live)

    def _alone_ns(self, live: Live) -> float:
        """Time of a prompt on the best group."""
        most = max(1, len(self.ensemble.prefillers))
        return fastest_ns(self.config.widths, most, live.known, live.known**2)

    def _due_ns(self, live: Live) -> float:
        return due_ns(live, self._now_ns, self._alone_ns(live), self.config.grace)

    def _decode(self, group: Group, flights: Flights) -> Iterator[Made]:
        """Steps of a group, until enough are in flight, or it is not a group any more."""
        ensemble = self.ensemble
        seats = [ensemble.seats[member] for member in group.members]
        while group in ensemble.groups and not ensemble.pausing(group):
            if any(seat.flights >= self._depth for seat in seats):
                return
            if self._regrouped(group):
                continue
            made = ensemble.decode(group, flights.next_id)
            if made is None:
                return
            self.turns.stepped(group.members, self._now_ns)
            yield made

    def computed(self, live: Live, drew: bool, now_ns: int) -> None:
        """A step of a request's prompt was answered."""
        if not drew:
            self.ensemble.answered(live)
            return
        live.since_ns = live.since_ns or now_ns
        if self.recall is not None:
            self.recall.publish(live)
        if not self.ensemble.away_from_home(live):
            self.ensemble.begin_decode(live, *self.masters.first(live))

    @property
    def _aims(self) -> bool:
        return self.config.ttft_ns + self.config.ttft_times > 0

    def _turn(self, live: Live) -> float:
        """Prompts with less are computed first."""
        return (
            self._due_ns(live) + self._admission.order(live.request.priority, 0) if self._aims else live.order
        )

    # ---- prompts ---------------------------------------------------------------------------------

    def _prompts(self, flights: Flights) -> Iterator[Made]:
        """Long prompts that were passed too often, then the queue, then the rest of the long ones."""
        limit = self._admission.config.bypass
        long = sorted(self.ensemble.partial.values(), key=self._turn)
        first = min(map(self._turn, self._admission), default=math.inf) if self._aims else -math.inf
        for live in long:
            passed = live.bypassed >= limit or self._turn(live) < first
            if passed and live.id in self.ensemble.partial:  # another may have made it yield
                yield from self._continue(live, flights.next_id)
        yield from self._dispatch(flights)
        for live in sorted(self.ensemble.partial.values(), key=self._turn):
            if live.id in self.ensemble.partial:
                live.bypassed += 1
                yield from self._continue(live, flights.next_id)

    def _dispatch(self, flights: Flights) -> Iterator[Made]:
        """Requests of the queue that are computed now, in batches, each on instances of its own."""
        lives = self._candidates() if self.ensemble.free() else []
        if self.recall is not None:
            lives = self.recall.left(lives, self.widths[0])
        while lives:
            jobs = self._jobs(lives)
            seats = self._allocate(lives, jobs)
            if not lives or not seats:
                return
            order, jobs = _longest_first(lives, jobs)
            seats.sort(key=lambda seat: (-self.ensemble.unused(seat.instance), seat.instance))
            rooms = [self.ensemble.unused(seat.instance) for seat in seats]
            plan = best_plan(jobs, rooms, self._wanted(jobs[0], rooms), coarse_cuts(jobs, self.config.cuts))
            for batch in plan.batches:
                yield from self._begin(batch, order, seats, flights.next_id)
            if plan.batches:
                return
            del lives[len(lives) // 2 :]

    def _candidates(self) -> list[Live]:
        """Requests that the pool has room for, oldest first, some of them past one that does not fit: as many
        as keep the free instances busy for a while."""
        config, widths = self._admission.config, self.config.widths
        exact, free = self.ensemble.apart, len(self.ensemble.free())
        room = self.pools.to_compute() if exact else self.pools.at_least()
        widest = max((each for each in widths if each.instances <= free), key=lambda each: each.instances)
        rows = config.max_rows * len(self.ensemble.seats) - len(self.ensemble.lives)
        found: list[Live] = []
        first: Live | None = None
        look, tokens, square, most_ns = config.look, 0, 0, self.config.chunk_ns
        for live in sorted(self._admission, key=self._turn) if self._aims else self._admission:
            asked = self._asked(live)
            if asked > room and not exact:
                room, exact = self.pools.to_compute() - sum(map(self._asked, found)), True
            if asked > room or len(found) >= rows:
                first = first or live
                look -= 1
                if look < 0 or first.bypassed >= config.bypass:
                    break
                continue
            known = live.known
            tokens, square = tokens + known, square + known * known
            wide_ns = widest.alpha + widest.beta * tokens + widest.gamma * square
            if found and wide_ns > most_ns and fastest_ns(widths, free, tokens, square) > most_ns:
                break
            found.append(live)
            room -= asked
        if first is not None and found and found[-1].order > first.order:
            first.bypassed += 1
        return found

    def _asked(self, live: Live) -> int:
        """Slots that a request of the queue is to find; where rows decode apart they find room later."""
        return live.least if self.ensemble.apart else live.presumed

    def _allocate(self, lives: list[Live], jobs: list[Job]) -> list[Seat]:
        """Idle instances, and those of groups that had better pause, the emptiest first. Requests for which
        there is no room on these are taken off the end of `lives` and `jobs`."""
        ensemble, need = self.ensemble, sum(job.need for job in jobs)
        seats, free = ensemble.idle(), {seat.instance for seat in ensemble.free()}
        if self.compaction is not None:
            have = len(seats) if sum(ensemble.unused(seat.instance) for seat in seats) >= need else 0
            how = self._wait_ns, self._slack_ns, self._share
            seats += self.compaction.freed(jobs, self.config.widths, have, *how)
        groups = [group for group in ensemble.groups if not ensemble.pausing(group)]
        if self.config.tpot_ns:
            first_ns = fastest_ns(self.config.widths, 1, jobs[0].linear, jobs[0].square)
            seats += self._patient(min(first_ns, self.config.chunk_ns))
            groups.clear()
        for group in sorted(groups, key=self._used):
            fits = sum(ensemble.unused(seat.instance) for seat in seats) >= need
            have = len(seats) if fits else 0
            more = len(free.intersection(group.members)) + len(seats) - have
            lengths = [live.known + live.undrawn * self._share for live in group.lives.values()]
            if not worth_pausing(jobs, self.config.widths, have, more, lengths, self._wait_ns(group)):
                break
            seats += [ensemble.seats[member] for member in group.members if member in free]
        room = sum(ensemble.unused(seat.instance) for seat in seats)
        while lives and need > room:
            lives.pop()
            need -= jobs.pop().need
        return seats

    def _patient(self, wait_ns: float) -> list[Seat]:
        """Instances of the groups whose rows may wait for so long, where no prompts are computed."""
        free = {seat.instance: seat for seat in self.ensemble.free()}
        groups = [group for group in self.ensemble.groups if not self.ensemble.pausing(group)]
        patient = [group for group in groups if self._slack_ns(group) >= wait_ns]
        return [free[member] for group in patient for member in group.members if member in free]

    def _slack_ns(self, group: Group) -> float:
        """Below 0 without an objective, soon after the first token."""
        return slack_ns(group, self._now_ns, self.config.tpot_ns, self.config.decode_ns, self._share)

    def _within_ns(self, members: Sequence[int], width: Width) -> float:
        """Time of a step with prompts on these instances, about: rows that decode there are to keep to their
        objective, and a step must be worth its fixed part."""
        config, longest_ns = self.config, self.config.chunk_ns
        if config.tpot_ns:
            least_ns = max(config.tpot_ns, WORTH * width.alpha)
            for group in self.ensemble.groups:
                if not set(group.members).isdisjoint(members):
                    longest_ns = min(longest_ns, max(least_ns, self._slack_ns(group)))
        return longest_ns

    def _priced(self) -> tuple[Width, ...]:
        """Times of groups, as much longer as other prompts want their instances."""
        busy = 1 - len(self.ensemble.free()) / max(1, len(self.ensemble.prefillers))

        def by(width: Width) -> Width:
            times = 1 + self.config.price * busy * (width.instances - 1)
            return Width(width.instances, width.alpha * times, width.beta * times, width.gamma * times)

        return tuple([by(width) for width in self.widths])

    def _wanted(self, longest: Job, rooms: Sequence[int]) -> tuple[Width, ...]:
        """Times of groups of the sizes that a batch may want. One that the base does not name is not faster
        than the next smaller one: only a prompt that has no room on fewer instances needs it."""
        named = {width.instances for width in self.config.widths}
        widths = [width for width in self._priced() if width.instances <= len(rooms)]
        known = [width for width in widths if width.instances in named]
        return tuple(known if longest.need <= sum(rooms[: known[-1].instances]) else widths)

    def _begin(self, batch: Batch, order: Sequence[Live], seats: Sequence[Seat], step: int) -> Iterator[Made]:
        """Compute a batch; one long prompt alone only as far as it may keep its instances busy."""
        lives = order[batch.first : batch.past]
        members = [seat.instance for seat in seats[batch.left : batch.right]]
        counts = [live.known for live in lives]
        if len(lives) == 1:
            width = next(each for each in self.widths if each.instances == len(members))
            counts = [longest_chunk(width, self._within_ns(members, width), 0, counts[0])]
        slowed = sum(len(g.lives) for g in self.ensemble.groups if any(i in members for i in g.members))
        for live in lives:
            self.ensemble.enter(live)
        why = of_batch(counts, len(members), len(seats), slowed, self.config.tpot_ns > 0, self.widths)
        made = self.ensemble.compute(lives, counts, members, step, why)
        if made is None:  # pages round up: there is not quite room
            for live in lives:
                self.ensemble.unseat(live)
            return
        for live in lives:
            self._admission.drop(live)
        self.turns.computed(made, self._now_ns)
        yield made

    def _continue(self, live: Live, step: int) -> Iterator[Made]:
        """The next part of a long prompt, on the instances that keep it and on idle ones, unless they are
        busy."""
        ensemble, holders = self.ensemble, list(live.instances)
        if any(ensemble.computing.get(instance) for instance in holders):
            return
        seats = ensemble.idle()
        if self.config.tpot_ns:
            seats += self._patient(self.config.chunk_ns)
        others = [seat.instance for seat in seats if seat.instance not in holders]
        others.sort(key=lambda instance: (-ensemble.unused(instance), instance))
        left, cached, most = live.known - live.planned, live.planned, len(holders) + len(others)
        square = left * (left + 2 * cached)
        useful = most_useful(self._priced(), most, left, square, self.config.hysteresis)
        members = holders + others[: max(0, useful - len(holders))]
        able = [each for each in self.widths if each.instances <= len(members)]
        if self.turns.yields(members):
            return
        width = max(able, key=lambda each: each.instances)
        chunk = longest_chunk(width, self._within_ns(members, width), cached, left)
        why = of_chunk(chunk, left, cached, len(members), most - len(members), self.widths)
        made = ensemble.compute([live], [chunk], members, step, why)
        if made is None:
            why = f"what decodes there has grown; {chunk:,} of {left:,} tokens left go to all idle instances"
            made = ensemble.compute([live], [chunk], holders + others, step, why)
        if made is not None:
            self.turns.computed(made, self._now_ns)
            yield made
        elif len(ensemble.partial) > 1 and ensemble.stuck:
            self._yield_youngest(ensemble.partial)

    def _jobs(self, lives: Sequence[Live]) -> list[Job]:
        whole = self._ledger.whole
        return [Job(whole(n), n, n * n, 1 / n) for n in [live.known for live in lives]]

    def _used(self, group: Group) -> int:
        return sum(self._ledger.used(member) for member in group.members)

    @property
    def _share(self) -> float:
        return self._admission.config.output_share

    def _wait_ns(self, group: Group) -> float:
        """Until the rows of a group have ended, on average."""
        left = sum(max(1.0, live.undrawn * self._share) for live in group.lives.values())
        return self.config.decode_ns * left / max(1, len(group.lives))

    # ---- decoding --------------------------------------------------------------------------------

    def _regrouped(self, group: Group) -> bool:
        """Rows whose master is full get another one; where all are full the youngest request yields. Whether
        that changed the group."""
        for live in tuple(group.lives.values()):
            if live.room or live.undrawn <= 0 or self._has_slot(live):
                continue
            if any(each.leaving or each.over for each in self.ensemble.lives.values()):
                return False  # slots come back with an answer that will come
            choice = self.masters.other(live, group)
            if choice is not None:
                self.ensemble.appoint(live, *choice)
            else:
                self._yield_youngest(self.ensemble.beside_rows())
            return True
        return False

    def _has_slot(self, live: Live) -> bool:
        here = live.planned - live.away
        unused = self.ensemble.unused(live.master)
        return unused > 0 or self._ledger.held(live.master, live.id) > here

    def _yield_youngest(self, lives: dict[int, Live]) -> None:
        here = (self.ensemble.decoding, self.ensemble.partial)
        able = [live for live in lives.values() if any(live.id in place for place in here)]
        self.ensemble.preempt(max(able, key=lambda live: live.order))


def _longest_first(lives: list[Live], jobs: list[Job]) -> tuple[list[Live], list[Job]]:
    """Both in the order of the batching programme."""
    keys = [(-job.linear, live.order) for live, job in zip(lives, jobs, strict=True)]
    order = sorted(range(len(lives)), key=keys.__getitem__)
    return [lives[at] for at in order], [jobs[at] for at in order]
