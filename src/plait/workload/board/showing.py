"""`picture_of` a board: what is shown at one moment.

It costs time by instances and by requests with KV, whatever came before.
"""

from plait.spec.step import Step
from plait.workload.board.board import Board, work_of
from plait.workload.board.picture import VERSION, GroupNow, InstanceNow, Picture, Totals

LANES = 32
"""Instances whose lanes are shown."""


def picture_of(board: Board, now_ns: int = 0) -> Picture:
    """This moment: the board's last call, or `now_ns` if that is later."""
    now_ns = max(board.now_ns, now_ns)
    board.intervals.at(now_ns)
    slo = board.config.slo
    begin_us, lanes = board.strips.shown(list(board.roles)[:LANES], now_ns)
    return Picture(
        v=VERSION,
        now_us=now_ns // 1000,
        totals=totals_of(board),
        latency=board.waterfall.latency(),
        ttft_slo_ms=None if slo is None else slo.ttft_ns / 1e6,
        tpot_slo_ms=None if slo is None else slo.tpot_ns / 1e6,
        instances=_instances(board),
        groups=_groups(board),
        lanes_begin_us=begin_us,
        lanes=lanes,
        requests=board.waterfall.rows(),
        curves=board.intervals.curves(),
        log=board.remarks.newest_first(),
        rollout=board.rollout,
    )


def totals_of(board: Board) -> Totals:
    """Counts since the beginning."""
    requests = board.waterfall
    return Totals(
        arrived=requests.arrived,
        waiting=requests.waiting,
        running=requests.running,
        completed=requests.completed,
        outcomes=dict(sorted(requests.outcomes.items())),
        prompt_tokens=requests.prompt_tokens,
        tokens=requests.tokens,
        steps=board.steps,
        moves=board.moves,
        moved_tokens=board.moved_tokens,
        move_failures=board.move_failures,
        restarts=requests.restarts,
        met=requests.met,
        attainment=requests.attainment,
        goodput=requests.goodput,
    )


def _instances(board: Board) -> tuple[InstanceNow, ...]:
    computing: dict[int, Step] = {}
    for _, step in board.transit.steps.values():
        for member in step.group:
            computing.setdefault(member, step)
    return tuple(_instance(board, id, role, computing.get(id)) for id, role in board.roles.items())


def _instance(board: Board, id: int, role: str, step: Step | None) -> InstanceNow:
    requests = board.waterfall.open
    phases = [requests[each].phase if each in requests else "" for each in board.holdings.on(id)]
    prefilling, decoding = phases.count("prefill"), phases.count("decode")
    return InstanceNow(
        id=id,
        role=role,
        state="up" if id in board.epochs else "down",
        prefilling=prefilling,
        decoding=decoding,
        holding=len(phases) - prefilling - decoding,
        kv_used=board.holdings.used(id),
        kv_slots=board.holdings.capacity(id),
        group=() if step is None else step.group,
        work="score" if id in board.scoring else "" if step is None else work_of(step),
        tokens=board.drawn.get(id, 0),
    )


def _groups(board: Board) -> tuple[GroupNow, ...]:
    return tuple(
        GroupNow(step.group, work_of(step), len(step.rows) + len(step.again), at_ns // 1000, step.why)
        for at_ns, step in board.transit.steps.values()
        if len(step.group) > 1
    )
