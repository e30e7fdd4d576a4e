"""`Picture`: everything that a dashboard shows of a core at one moment, as plain records.

It is bounded whatever the core has done: newest requests, newest remarks, curves and bars of so many parts.
It holds counts, lengths, times and the core's own words; never a token and never a caller's text. Times are
microseconds since the core's first moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass

VERSION = 1
"""Of this form; pages and tools that read it look at it first."""


@dataclass(frozen=True, slots=True)
class InstanceNow:
    """One instance."""

    id: int
    role: str
    state: str
    """up or down."""
    prefilling: int
    """Requests with KV there whose prompt is being computed."""
    decoding: int
    holding: int
    """Other requests with KV there: they move, wait for room elsewhere, or have just ended."""
    kv_used: int
    """Slots that requests hold, as far as steps and moves told."""
    kv_slots: int
    group: tuple[int, ...]
    """Of the step that it computes now; empty: none."""
    work: str
    """What that is: prefill, decode, mixed, score; empty: nothing."""
    tokens: int
    """Drawn in steps that it took part in."""


@dataclass(frozen=True, slots=True)
class GroupNow:
    """Several instances that compute a step together now."""

    members: tuple[int, ...]
    work: str
    rows: int
    since_us: int
    why: str


@dataclass(frozen=True, slots=True)
class Lane:
    """What an instance did: bars (begin_us, microseconds, what, instances of the step), merged where they are
    too short to be seen."""

    instance: int
    compute: tuple[tuple[int, int, str, int], ...]
    copy: tuple[tuple[int, int, str, int], ...]
    """Moves to it; the last figure is the number of moves."""


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One line of the waterfall."""

    id: int
    prompt_tokens: int
    tokens: int
    """Drawn so far."""
    phases: tuple[tuple[int, str], ...]
    """(begin_us, phase): queue, prefill, wait (for room elsewhere), move, decode; each until the next."""
    first_us: int | None
    """When its first token came."""
    end_us: int | None
    """None: it goes on."""
    outcome: str
    """How it ended; empty: it goes on."""
    met: bool | None
    """Whether it met the objectives; None: it goes on, or there are none."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What happened in equal intervals of time."""

    begin_us: int
    step_us: int
    arrived: tuple[int, ...]
    completed: tuple[int, ...]
    met: tuple[int, ...]
    """Requests that completed and met the objectives."""
    tokens: tuple[int, ...]
    ttft_p50_ms: tuple[float | None, ...]
    ttft_p90_ms: tuple[float | None, ...]
    tpot_p50_ms: tuple[float | None, ...]
    tpot_p90_ms: tuple[float | None, ...]
    waiting: tuple[int, ...]
    """The most at any moment of the interval, as are the next three."""
    running: tuple[int, ...]
    kv_share: tuple[float, ...]
    widest: tuple[int, ...]
    """Instances of the widest step."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One line of the event log."""

    at_us: int
    kind: str
    """worker, role, fault, why, move, refusal or rollout."""
    text: str
    times: int
    """How often it was said in a row."""


@dataclass(frozen=True, slots=True)
class RolloutNow:
    """An iteration of RLHF as the core sees it."""

    iteration: int
    """Counted from 0 in this journal."""
    begin_us: int
    samples: int
    finished: int
    batches: int
    """Times readers: what is to be scored."""
    scored: int
    tail: int
    """R_t: so few unfinished samples go on together."""
    kept: int
    why: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the core's first moment."""

    arrived: int
    waiting: int
    running: int
    completed: int
    outcomes: Mapping[str, int]
    prompt_tokens: int
    """Of all that arrived."""
    tokens: int
    """Drawn and given to callers."""
    steps: int
    moves: int
    """That were said, retries among them."""
    moved_tokens: int
    """Of moves that succeeded."""
    move_failures: int
    restarts: int
    """Times that a request was computed anew after it had lost its place."""
    met: int
    attainment: float | None
    """Share of ended requests that met the objectives; None: there are none of either."""
    goodput: float | None
    """Such requests a second, from the first arrival to the last end."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the newest completed requests, in milliseconds; None where there were none."""

    count: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    v: int
    now_us: int
    totals: Totals
    latency: Latency
    ttft_slo_ms: float | None
    tpot_slo_ms: float | None
    instances: tuple[InstanceNow, ...]
    groups: tuple[GroupNow, ...]
    lanes_begin_us: int
    lanes: tuple[Lane, ...]
    requests: tuple[RequestRow, ...]
    curves: Curves
    log: tuple[Remark, ...]
    rollout: RolloutNow | None
