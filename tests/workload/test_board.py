"""The board says what the manager knows, at every event of random runs, though it only reads the journal."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as fixed
from hypothesis import strategies as st

from plait.cost.by_group import llama_8b
from plait.cost.fitted import Fitted
from plait.search.batching import Width
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Copies, Network
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.event import Aborted, Arrived, Reassign, Stopped, WorkerLost, WorkerUp
from plait.spec.request import Request
from plait.spec.slo import Slo
from plait.workload.board.board import Board, BoardConfig
from plait.workload.board.showing import picture_of, totals_of
from plait.workload.profile import Profile
from plait.workload.result import Recorder, Summary
from tests.scale import scaled, seed

MS = 1_000_000
M, P, D, E = Role.MIXED, Role.PREFILL, Role.DECODE, Role.ELASTIC
F, G = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
PLACEMENTS = [(M,), (M, M), (P, D), (P, D, D), (M, P, D), (E, E, E), (F, F, G, G)]
SLO = Slo(200 * MS, 12 * MS)
NETWORK = Network(1 << 12, Link(5e9, 10_000), Link(1e9, 20_000))
COST = Fitted(3e6, 5e4, 4.0, 20.0, 6e6, 300.0, 9e4)
GROUPED = llama_8b(COST)
WIDTHS = tuple(
    Width(n, model.prefill_ns, model.prefill_token_ns, model.prefill_square_ns)
    for n, model in GROUPED.models.items()
)


class Watched:
    """A core whose every call the board sees, and is compared after."""

    def __init__(self, config: ManagerConfig) -> None:
        self.manager = GlobalManager(config)
        roles = {each.id: each.role.value for each in config.placement.instances}
        self.board = Board(BoardConfig(config.page, roles, SLO, None))
        self.recorder = Recorder()
        self.calls = 0

    def handle(self, event, now_ns):
        commands = self.manager.handle(event, now_ns)
        self.board.see(now_ns, event, commands)
        self.recorder.see(now_ns, event, commands)
        self.calls += 1
        self.compare()
        return commands

    def compare(self):
        board, manager = self.board, self.manager
        assert board.waterfall.open.keys() == manager.lives.keys()
        assert all(board.waterfall.open[id].tokens == live.drawn for id, live in manager.lives.items())
        assert board.epochs == {i: seat.epoch for i, seat in manager.seats.items()}
        assert all(board.roles[i] == manager.roster.role(i).value for i in manager.seats)
        assert board.transit.steps.keys() == set(manager.flights._flying)
        moving = manager.handover.flying.keys() | manager.relocations.flying.keys()
        assert board.transit.moves.keys() == moving
        for instance, seat in manager.seats.items():
            self.compare_slots(instance, seat)

    def compare_slots(self, instance, seat):
        """The board knows what workers were told. What it does not know yet, and what the manager took back
        and no step has said yet, is named here; all else is equal, page by page."""
        board, manager = self.board, self.manager
        assert board.holdings.capacity(instance) == manager.ledger.capacity(instance)
        held = {id: set(each.pages()) for id, each in manager.ledger.holdings(instance).items()}
        told = {id: board.holdings.pages(instance, id) for id in board.holdings.on(instance)}
        for id, pages in told.items():
            if id in held:
                assert pages <= held[id]
            else:
                assert id in seat.closed or id in manager.lives, "freed, and nobody was to be told"
        for id, pages in held.items():
            live = seat.lives[id]
            if live.opened and not live.transfer and not live.relocation and not live.leaving:
                assert told.get(id, frozenset()) == pages, (id, instance)
        if set(held) == set(told) and all(held[id] == told[id] for id in held):
            assert board.holdings.used(instance) == manager.ledger.used(instance)

    def finish(self):
        board, manager = self.board, self.manager
        assert manager.quiet
        totals, summary = totals_of(board), Summary.of(self.recorder.records, SLO)
        assert (totals.waiting, totals.running) == (0, 0)
        assert all(board.holdings.used(instance) == 0 for instance in manager.seats)
        assert (totals.arrived, totals.completed) == (summary.requests, summary.completed)
        assert dict(totals.outcomes) == dict(summary.outcomes)
        assert totals.attainment == summary.attainment
        assert totals.goodput == pytest.approx(summary.goodput)
        counts = manager.counts
        assert totals.moves >= counts.moves + counts.move_retries
        assert counts.recomputations + counts.preemptions >= totals.restarts
        picture = picture_of(board)
        assert sum(picture.curves.arrived) == totals.arrived
        assert sum(picture.curves.completed) == totals.completed
        assert sum(picture.curves.met) == totals.met
        assert sum(picture.curves.tokens) == totals.tokens


def run(config, rows, faults, slots, max_tokens=None):
    core = Watched(config)
    arrivals = [
        Arrival(
            row.arrival_ns,
            Request(number, row.prompt_tokens, max_tokens or row.output_tokens, row.hashes(config.page)),
            row.output_tokens,
        )
        for number, row in enumerate(rows)
    ]
    elastic = any(each.role.elastic for each in config.placement.instances)
    hands = VirtualWorkers(
        GROUPED if elastic else COST, arrivals, Copies(NETWORK, dict.fromkeys(range(9), 0))
    )
    ups = [(0, WorkerUp(each.id, 0, slots)) for each in config.placement.instances]
    World(core, hands).run([*ups, *faults, *((each.at_ns, Arrived(each.request)) for each in arrivals)])
    return core


def with_prefix(number, row):
    """Every third prompt begins as all such prompts do."""
    full = row.prompt_tokens // 16 if number % 3 == 0 else 0
    own = [1000 * (number + 1) + block for block in range(full, -(-row.prompt_tokens // 16))]
    return replace(row, block_hashes=(*range(full), *own), block_tokens=16)


@st.composite
def worlds(draw):
    """A configuration, a workload, and what else happens."""
    roles = draw(st.sampled_from(PLACEMENTS))
    apart = F in roles
    config = ManagerConfig(
        page=draw(st.sampled_from([1, 4, 16])),
        placement=Placement(tuple(Instance(i, role) for i, role in enumerate(roles))),
        admission=AdmissionConfig(output_share=draw(st.sampled_from([0.1, 1.0])), max_rows=8),
        batcher=BatcherConfig(64, depth=draw(st.sampled_from([1, 2])), repeat=draw(st.sampled_from([1, 4]))),
        handover=HandoverConfig(overlap=not apart and draw(st.booleans()), pulls=2),
        elastic=ElasticConfig(WIDTHS, chunk_ns=3e8) if E in roles or apart else ElasticConfig(),
        retries=9,
    )
    profile = Profile(
        "poisson", 60.0, draw(st.integers(5, 25)), "4-200", "1-60", seed=draw(st.integers(0, 99))
    )
    rows = [with_prefix(number, row) for number, row in enumerate(profile.rows())]
    when = st.integers(1, 600).map(lambda ms: ms * MS + 7)
    faults = [(draw(when), Aborted(draw(st.integers(0, 24)))) for _ in range(draw(st.integers(0, 3)))]
    faults += [(draw(when), Stopped(draw(st.integers(0, 24)), 1)) for _ in range(draw(st.integers(0, 2)))]
    at, epochs = 0, dict.fromkeys(range(len(roles)), 0)
    for _ in range(draw(st.integers(0, 3))):
        at += draw(when)
        lost = draw(st.sampled_from(list(epochs)))
        faults += [
            (at, WorkerLost(lost, epochs[lost])),
            (at + 40 * MS, WorkerUp(lost, epochs[lost] + 1, 320)),
        ]
        epochs[lost] += 1
        at += 40 * MS
    if draw(st.booleans()) and roles == (M, P, D):
        faults += [(draw(when), Reassign(1, M)), (draw(when), Reassign(2, P))]
    return config, rows, faults


@fixed(seed())
@settings(max_examples=scaled(600), deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_the_board_knows_what_the_manager_knows(world):
    config, rows, faults = world
    run(config, rows, sorted(faults, key=lambda each: each[0]), slots=320).finish()
