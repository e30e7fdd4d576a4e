"""Random events against `GlobalManager`, its steps and moves carried out on paper by `Shadow`."""

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import seed as fixed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from plait.search.batching import Width
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import End, Token, Wake
from plait.spec.event import (
    Aborted,
    Arrived,
    Drain,
    MoveFailed,
    Reassign,
    StepFailed,
    Stopped,
    Woken,
    WorkerLost,
    WorkerUp,
)
from plait.spec.move import Cancel, Move
from plait.spec.request import REFUSALS, EndReason, Request
from plait.spec.step import Step
from tests.properties.shadow import Shadow
from tests.scale import scaled, seed
from tests.serving.audit import audit

EOS = 7
M, P, D, E, L = Role.MIXED, Role.PREFILL, Role.DECODE, Role.ELASTIC, Role.LENT
F, G = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
WIDTHS = tuple(Width(n, 1.0 + n / 4, 1.0 / n, 0.1 / n) for n in (1, 2, 3, 4))


class ManagerMachine(RuleBasedStateMachine):
    """Rules are facts from outside and answers of workers; invariants hold after every event."""

    @initialize(
        page=st.sampled_from([1, 2, 4, 16]),
        pp=st.sampled_from([1, 1, 2, 3]),
        roles=st.sampled_from(
            [
                (M, M, M, M),
                (P, D, P, D),
                (P, D, D, D),
                (M, P, D, M),
                (E, E, E, E),
                (E, E, E, M),
                (F, F, G, G),
                (F, G, G, G),
                (F, G, E, M),
            ]
        ),
        share=st.sampled_from([0.1, 0.5, 1.0]),
        max_queue=st.sampled_from([3, 1000]),
        ttft_ns=st.sampled_from([None, None, 60]),
        priority_ns=st.sampled_from([0, 3, 50]),
        batcher=st.builds(
            BatcherConfig,
            depth=st.sampled_from([1, 2, 3]),
            step_tokens=st.sampled_from([3, 8, 40]),
            prefix_cache=st.booleans(),
            prompts_first=st.booleans(),
            repeat=st.sampled_from([1, 1, 2, 5]),
        ),
        handover=st.builds(
            HandoverConfig,
            pulls=st.sampled_from([1, 4]),
            retries=st.sampled_from([0, 2]),
            held_share=st.sampled_from([0.2, 1.0]),
            overlap=st.booleans(),
        ),
        elastic=st.builds(
            ElasticConfig,
            widths=st.just(WIDTHS),
            decode_ns=st.just(2.0),
            chunk_ns=st.sampled_from([8.0, 100.0]),
            master_rows=st.sampled_from([2, 100]),
            move_token_ns=st.sampled_from([0.0, 0.001]),
        ),
    )
    def build(self, page, pp, roles, share, max_queue, ttft_ns, priority_ns, **configs):
        self.page = page
        self.share = share
        admission = AdmissionConfig(
            max_queue=max_queue,
            max_rows=6,
            bypass=2,
            output_share=share,
            ttft_ns=ttft_ns,
            priority_ns=priority_ns,
        )
        placement = Placement(tuple(Instance(i, role, pp=pp) for i, role in enumerate(roles)))
        if F in roles:
            configs["handover"] = replace(configs["handover"], overlap=False)
        self.manager = GlobalManager(
            ManagerConfig(page=page, admission=admission, placement=placement, **configs)
        )
        self.shadow = Shadow(EOS, skips=pp == 1)
        self.now = 0
        self.epochs = {}
        self.epoch = 1
        self.requests = {}
        self.drawn = {}
        self.ends = {}
        self.wakes = []
        self.next_id = 0
        self.repeated = 0
        # Where instances of one pool do both phases beside those of two, what grows is not reserved.
        self.faults = int(F in roles and E in roles)
        for instance in range(1 if roles == (M, M, M, M) else 3):
            self.epochs[instance] = 1
            self.send(WorkerUp(instance, 1, 64))

    def send(self, event):
        self.now += 1
        if isinstance(event, WorkerUp):
            self.shadow.up(event.instance, event.slots)
        before = {r: len(t) for r, t in self.shadow.tokens.items()}
        for command in self.manager.handle(event, self.now):
            if isinstance(command, Step):
                self.shadow.submit(command)
                self.repeated += command.repeat > 1
            elif isinstance(command, Move):
                self.shadow.begin(command)
            elif isinstance(command, Cancel):
                assert command.move in self.shadow.moves, "a cancel of a move that is over"
            elif isinstance(command, Token):
                for request in command.requests:
                    assert request not in self.ends, "a token after the end"
                    self.drawn[request] += self.shadow.counts[request]
            elif isinstance(command, End):
                assert command.request not in self.ends, "ended twice"
                self.ends[command.request] = command
                self.check_end(command)
            elif isinstance(command, Wake):
                self.wakes.append(command)
        assert before == {r: len(t) for r, t in self.shadow.tokens.items()}
        audit(self.manager)

    def check_end(self, end):
        request = self.requests[end.request]
        assert end.tokens <= self.drawn[end.request] <= request.max_tokens
        if end.reason is EndReason.LENGTH:
            assert end.tokens == request.max_tokens
        if end.reason in REFUSALS:
            assert end.tokens == 0
        if end.reason is EndReason.TOO_LONG:
            assert request.prompt_tokens + request.max_tokens > 30

    @rule(
        family=st.integers(0, 2),
        length=st.integers(1, 40),
        max_tokens=st.integers(1, 30),
        deadline=st.one_of(st.none(), st.integers(1, 60)),
        priority=st.integers(-2, 2),
    )
    def arrive(self, family, length, max_tokens, deadline, priority):
        tokens = [(family * 31 + at * 7) % 50 for at in range(length)]
        hashes = tuple(hash((family, tuple(tokens[:end]))) for end in range(self.page, length + 1, self.page))
        deadline_ns = None if deadline is None else self.now + deadline
        request = Request(self.next_id, length, max_tokens, hashes, deadline_ns, priority=priority)
        self.next_id += 1
        self.requests[request.id], self.drawn[request.id] = request, 0
        self.shadow.tokens[request.id] = tokens
        self.send(Arrived(request))

    @rule(data=st.data())
    def answer(self, data):
        busy = sorted(i for i, at in self.shadow.instances.items() if at.inbox)
        if busy:
            self.finish(data.draw(st.sampled_from(busy)))

    def finish(self, instance):
        instance = self.shadow.next(instance)
        if self.shadow.broken(instance):
            self.send(StepFailed(self.shadow.fail(instance).id, "row forgotten"))
        else:
            self.send(self.shadow.execute(instance))

    @rule(data=st.data())
    def answer_many(self, data):
        for _ in range(data.draw(st.integers(2, 25))):
            self.answer(data)

    @rule(data=st.data())
    def copy(self, data):
        """Data arrive some time before anybody is told."""
        if able := [id for id in self.shadow.moves if self.shadow.able(id)]:
            self.shadow.copy(data.draw(st.sampled_from(able)))

    @rule(data=st.data())
    def answer_move(self, data):
        if self.shadow.moves:
            self.finish_move(data.draw(st.sampled_from(sorted(self.shadow.moves))))

    def finish_move(self, id):
        if self.shadow.able(id):
            self.send(self.shadow.complete(id))
        elif self.shadow.moves[id].doomed:
            self.send(self.shadow.break_off(id))

    @rule(data=st.data())
    def fail_move(self, data):
        if self.shadow.moves:
            self.send(self.shadow.break_off(data.draw(st.sampled_from(sorted(self.shadow.moves)))))

    @rule(move=st.integers(0, 9))
    def answer_unknown_move(self, move):
        if move not in self.shadow.moves:
            self.send(MoveFailed(move, "its target was lost meanwhile"))

    @rule(instance=st.integers(0, 3), role=st.sampled_from([M, P, D, E, F, G, M, P, D, E, F, G, L]))
    def reassign(self, instance, role):
        self.faults += 1  # an instance full of requests that wait may begin to decode
        self.send(Reassign(instance, role))

    @rule(data=st.data())
    def fail_step(self, data):
        busy = sorted(i for i, at in self.shadow.instances.items() if at.inbox)
        if busy:
            self.faults += 1
            instance = self.shadow.next(data.draw(st.sampled_from(busy)))
            self.send(StepFailed(self.shadow.fail(instance).id, "made to fail"))

    @rule(data=st.data())
    def abort(self, data):
        if self.manager.lives:
            self.send(Aborted(data.draw(st.sampled_from(sorted(self.manager.lives)))))

    @rule(request=st.integers(0, 5))
    def abort_unknown(self, request):
        if request not in self.manager.lives:
            self.send(Aborted(request))

    @rule(data=st.data())
    def stop(self, data):
        able = sorted(r for r in self.manager.lives if self.drawn[r])
        if able:
            request = data.draw(st.sampled_from(able))
            count = data.draw(st.integers(1, self.drawn[request]))
            self.send(Stopped(request, count))
            assert self.ends[request].tokens == count

    @rule()
    def wake(self):
        if self.wakes:
            wake = min(self.wakes, key=lambda w: w.at_ns)
            self.wakes.remove(wake)
            self.now = max(self.now, wake.at_ns)
            self.send(Woken(wake.at_ns))

    @rule(instance=st.integers(0, 3), slots=st.sampled_from([48, 64, 100]))
    def worker_up(self, instance, slots):
        if instance not in self.epochs:
            self.epoch += 1
            self.epochs[instance] = self.epoch
            self.send(WorkerUp(instance, self.epochs[instance], slots))

    @precondition(lambda self: len(self.epochs) > 1)
    @rule(data=st.data())
    def worker_lost(self, data):
        instance = data.draw(st.sampled_from(sorted(self.epochs)))
        self.faults += 1
        self.shadow.lose(instance)
        self.send(WorkerLost(instance, self.epochs.pop(instance)))

    @precondition(lambda self: self.next_id > 12)
    @rule()
    def drain(self):
        self.send(Drain())

    @invariant()
    def no_preemption_without_overcommitment(self):
        if getattr(self, "manager", None) and self.share == 1.0 and not self.faults:
            assert self.manager.counts.preemptions == 0

    def teardown(self):
        """Everything still open comes to an end, and nothing is left behind."""
        if not hasattr(self, "manager"):
            return
        if not self.epochs:
            self.epochs[0] = 99
            self.send(WorkerUp(0, 99, 100))
        seats = self.manager.seats.values()
        if not (any(seat.prefills for seat in seats) or self.manager.roster.prefillers):
            for instance in range(4):
                self.send(Reassign(instance, M))
        self.run_dry()
        while left := sorted(self.manager.lives):
            stuck = [] if any(seat.decodes for seat in seats) else [s for s in seats if s.role in (P, L)]
            roster = self.manager.roster
            if not any(roster.role(instance) in (E, G) for instance in self.epochs):
                stuck += [seat for seat in seats if seat.role is F and not seat.retiring]
            if stuck:  # what is computed somewhere must decode somewhere
                self.send(Reassign(stuck[0].instance, M))
                self.run_dry()
                continue
            # Only what fits no instance that is still up may be left, and what waits for its slots.
            large = [r for r in left if self.too_large(self.manager.lives[r])]
            assert large, "requests are left that could go on"
            self.send(Aborted(large[0]))
            self.run_dry()
        assert self.manager.quiet, "something is left at quiescence"
        assert set(self.ends) == set(self.requests), "a request without an end"

    def too_large(self, live):
        """For what is up, where it is; while it waits in the queue, anywhere."""
        seats = [(seat, self.manager.ledger.capacity(i)) for i, seat in self.manager.seats.items()]
        pools = [(seat.role, size - self.page) for seat, size in seats if seat.role.elastic]
        elastic = min(
            sum(size for role, size in pools if role.prefills),
            sum(size for role, size in pools if role.decodes),
        )
        alone = min(
            max((size for seat, size in seats if seat.prefills), default=0),
            max((size for seat, size in seats if seat.decodes), default=0),
        )
        needed = self.manager.ledger.whole(live.longest)
        if live.parts is not None:
            return needed > elastic
        return needed > (alone if live.instance >= 0 else max(elastic, alone))

    def run_dry(self):
        limit = 20_000
        while self.shadow.moves or any(at.inbox for at in self.shadow.instances.values()):
            limit -= 1
            assert limit, "no end in sight"
            for instance in sorted(self.shadow.instances):
                if self.shadow.instances[instance].inbox:
                    self.finish(instance)
            for move in sorted(self.shadow.moves):
                self.finish_move(move)


def test_random_events():
    """At least 50,000 events with PLAIT_TEST_ALL=1, and everything that can happen among them."""
    seen = Counter()

    class Counting(ManagerMachine):
        def teardown(self):
            super().teardown()
            if hasattr(self, "manager"):
                seen["events"] += self.now
                seen["preemptions"] += self.manager.counts.preemptions
                seen["recomputations"] += self.manager.counts.recomputations
                seen["prefix hits"] += self.manager.counts.prefix_hits
                seen["moves"] += self.manager.counts.moves
                seen["repeated"] += self.repeated
                seen["move retries"] += self.manager.counts.move_retries
                seen.update(end.reason for end in self.ends.values())

    chosen = settings(
        max_examples=scaled(1600),
        stateful_step_count=80,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    # Runs of one seed may be short; further seeds then make the events up.
    for further in range(5):
        if seen["events"] < scaled(50_000):
            run_state_machine_as_test(fixed(seed() + further)(Counting), settings=chosen)
    print(dict(seen))
    assert seen["events"] >= scaled(50_000)
    if scaled(2) == 2:
        assert seen["preemptions"]
        assert seen["recomputations"]
        assert seen["prefix hits"]
        assert seen["moves"]
        assert seen["repeated"]
        assert seen["move retries"]
        assert all(seen[reason] for reason in EndReason), "an ending that never came"
