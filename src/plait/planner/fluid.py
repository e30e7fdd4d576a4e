"""Fluid bounds: more requests/s than a candidate can bear, from the costs of its steps alone.

Two relaxations of what the simulator does, each of the very requests that it will serve:

    prompts   all instances that prefill work as one on one queue, in order, without ever waiting for memory
              or for rows that decode, in steps as full as they may be. First tokens come no sooner.
    fluid     instances run steps of the best mixture all the time. What is left unanswered when the last
              request arrives is all that a finite run spares them.

Requests that miss their objectives, as some may, are taken to cost nothing. Elastic instances let short
prompts pass long ones: of theirs the most expensive tenth is taken to miss, and no order is asked for.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plait.cost.cost import Cost, Staged
from plait.planner.candidate import Candidate, Part
from plait.planner.plans import Plan, Plans, single
from plait.spec.cluster import Role
from plait.spec.slo import Slo
from plait.spec.step import Row, Step
from plait.workload.trace import TraceRow

NS = 1e9
ATTAINMENT = 0.9
"""Share of requests that meet both objectives at goodput."""
GRID = 48
"""Lengths at which steps are timed; a prompt counts as the next shorter one."""
ELASTIC_TOKENS = 32_768
"""Tokens of a step of elastic instances: with so many its fixed part counts for nothing."""
MAX_ROWS = 256
"""Rows of a batch, as the serving core limits them."""
ROUNDS = 24
"""Of a bisection."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Demand:
    """What requests ask for, by request."""

    prompts: Array
    outputs: Array

    @staticmethod
    def of(rows: Sequence[TraceRow]) -> "Demand":
        """Lengths of a trace."""
        prompts = np.array([row.prompt_tokens for row in rows], float)
        return Demand(prompts, np.array([row.output_tokens for row in rows], float))

    def light(self) -> "Demand":
        """Without the longest prompts and outputs, which may miss their objectives; of what is left, long
        prompts come with short outputs, which asks for the least memory."""
        count = max(1, round(ATTAINMENT * len(self.prompts)))
        return Demand(np.sort(self.prompts)[:count], np.sort(self.outputs)[:count][::-1])

    @cached_property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return float(self.prompts.mean())

    @cached_property
    def steps(self) -> float:
        """Mean decode steps of a request: the first token is the prefill's."""
        return float(self.outputs.mean()) - 1

    @cached_property
    def left(self) -> float:
        """Mean decode steps of a request that is found decoding: long outputs are found more often."""
        return float(((self.outputs - 1) ** 2).mean() / self.steps) if self.steps else 0.0

    @cached_property
    def context(self) -> float:
        """Mean tokens in the cache of a row that decodes."""
        return float(((self.prompts + self.outputs / 2) * self.outputs).sum() / self.outputs.sum())


@dataclass(frozen=True, slots=True)
class Speeds:
    """Most requests/s of one instance that always has what to do."""

    prefill_hz: float
    decode_hz: float
    """Infinite where outputs are one token."""
    mixed_hz: float


@dataclass(slots=True)
class Fluid:
    """Bounds of candidates under `samples`: sequences of requests, each at one request a second."""

    plans: Plans
    samples: Sequence[Sequence[TraceRow]]
    slo: Slo
    demand: Demand = field(init=False)
    """Of all samples together."""
    light: "Fluid | None" = field(init=False, default=None)
    """Of what elastic instances must serve of them; None: this is it."""
    _step_tokens: dict[tuple[Plan, Role], int] = field(default_factory=dict)
    _speeds: dict[Part, Speeds] = field(default_factory=dict)
    _grids: dict[Part, tuple[Array, Array]] = field(default_factory=dict)
    _first_hz: dict[tuple[tuple[Part, ...], int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.demand = Demand.of([row for rows in self.samples for row in rows])
        self.light = copy(self)
        self.light.demand, self.light.light = self.demand.light(), None
        self.light._speeds, self.light._grids = {}, {}

    def step_tokens(self, part: Part) -> int:
        """Where only prompts run, what saturates the devices; else what the objective for TPOT allows.
        Elastic instances take as many as they want."""
        if part.role.elastic:
            return ELASTIC_TOKENS
        key = part.plan, part.role
        if key not in self._step_tokens:
            tokens = self.plans.saturation(part.plan)
            if part.role is not Role.PREFILL:
                tokens = min(max(tokens, 512), self.plans.chunk(part.plan, self.slo.tpot_ns))
            self._step_tokens[key] = tokens
        return self._step_tokens[key]

    def bound_hz(self, candidate: Candidate, count: int | None = None) -> float:
        """More requests/s than one copy bears in runs of the first `count` requests of each sample (None: of
        all), as the mean over the samples; 0: it meets the objectives for too few even one by one."""
        steady_hz, count = self.steady_hz(candidate), count or len(self.samples[0])
        if steady_hz == 0:
            return 0.0
        first_hz = self._prompts_hz(tuple(part for part in candidate.parts if part.role.prefills), count)
        return min(first_hz, self._finite_hz(steady_hz, count))

    def steady_hz(self, candidate: Candidate) -> float:
        """Most requests/s of one copy in a run without end, were prompts no matter of order."""
        prefill = decode = mixed = lent_prefill = lent_decode = 0.0
        for part in candidate.parts:
            speeds = self.speeds(part)
            if not part.role.decodes:
                prefill += part.count * speeds.prefill_hz
            elif not part.role.prefills:
                decode += part.count * speeds.decode_hz
            else:
                mixed += part.count * speeds.mixed_hz
                lent_prefill += part.count * speeds.prefill_hz
                lent_decode += part.count * speeds.decode_hz
        if candidate.kind in ("disaggregated", "pools"):
            return min(prefill, decode, self._links_hz(candidate))
        if candidate.kind == "colocated":
            return mixed
        if candidate.kind == "elastic":  # or some do prompts only for a while, and others decode only
            apart = lent_prefill and lent_decode and 1 / (1 / lent_prefill + 1 / lent_decode)
            return max(mixed, apart)
        # Flexible instances take what either phase lacks, and whole requests only where both lack them.
        lent = min(prefill + lent_prefill, decode + lent_decode)
        return min(lent, max(prefill, decode) + mixed)

    def speeds(self, part: Part) -> Speeds:
        """Of one of the instances of a part."""
        if part.role.elastic and self.light is not None:
            return self.light.speeds(part)
        limit, key = self.step_tokens(part), self._alike(part)
        if key not in self._speeds:
            cost = self.plans.group_cost(part.plan) if part.role.elastic else self.plans.cost(part.plan)
            work_ns = self._timed(part, self.demand.prompts)[1]
            decode = [self._rows_hz(part.plan, cost, limit_ns) for limit_ns in (self.slo.tpot_ns, np.inf)]
            mixed = [
                self._mixed_hz(part.plan, cost, limit, limit_ns) for limit_ns in (self.slo.tpot_ns, np.inf)
            ]
            if not self.demand.steps:
                mixed = [NS / float(work_ns.mean())] * 2
            self._speeds[key] = Speeds(NS / float(work_ns.mean()), self._share(*decode), self._share(*mixed))
        return self._speeds[key]

    def idle_ns(self, part: Part) -> tuple[int, int]:
        """TTFT that nine of ten requests meet, and TPOT of the mean request, on an idle instance."""
        alone_ns = self._timed(part, self.demand.prompts)[0]
        again_ns = self.plans.cost(part.plan).step_ns(_decodes(1, self.demand.context))
        return int(np.percentile(alone_ns, 100 * ATTAINMENT)), again_ns if self.demand.steps else 0

    # ---- prompts -------------------------------------------------------------------------------

    def _prompts_hz(self, parts: tuple[Part, ...], count: int) -> float:
        """Most requests/s of which enough have their first token in time, as the mean over the samples."""
        key = parts, count
        if key not in self._first_hz:
            found = [self._in_time_hz(parts, rows[:count]) for rows in self.samples]
            self._first_hz[key] = float(np.mean(found))
        return self._first_hz[key]

    def _in_any_order_hz(self, part: Part, rows: Sequence[TraceRow]) -> float:
        """The cheapest prompts that must be in time, one after another until the last one must be done."""
        prompts = np.array([row.prompt_tokens for row in rows], float)
        alone_ns, work_ns = self._timed(part, prompts)
        must = int(np.ceil(ATTAINMENT * len(rows)))
        if int((alone_ns <= self.slo.ttft_ns).sum()) < must:
            return 0.0
        left_ns = float(np.sort(work_ns)[:must].sum()) - part.count * self.slo.ttft_ns
        return part.count * rows[-1].arrival_ns / left_ns if left_ns > 0 else float("inf")

    def _in_time_hz(self, parts: tuple[Part, ...], rows: Sequence[TraceRow]) -> float:
        if parts[0].role.elastic:
            return self._in_any_order_hz(parts[0], rows)
        prompts = np.array([row.prompt_tokens for row in rows], float)
        arrival_ns = np.array([row.arrival_ns for row in rows], float)
        timed = [self._timed(part, prompts) for part in parts]
        alone_ns = np.minimum.reduce([alone for alone, _ in timed])
        work_ns = timed[0][1]
        # Each part works as fast, compared with the first, as on the prompt that suits it best.
        pace = sum(
            part.count * float((work_ns / work).max()) for part, (_, work) in zip(parts, timed, strict=True)
        )
        done = np.cumsum(work_ns)
        before = done - work_ns

        def bears(rate_hz: float) -> bool:
            passed = pace / rate_hz * arrival_ns
            backlog = done - passed - np.minimum.accumulate(before - passed)
            first_ns = np.maximum(alone_ns, backlog / pace)
            return float((first_ns <= self.slo.ttft_ns).mean()) >= ATTAINMENT

        low, high = 0.0, 2 * len(rows) * pace / float(done[-1]) * NS
        if bears(1e6):
            return float("inf")
        while bears(high):
            high *= 2
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if bears(middle) else (low, middle)
        return high if low else 0.0

    def _timed(self, part: Part, prompts: Array) -> tuple[Array, Array]:
        """Nanoseconds of each prompt: until its first token if nothing else is there, and of the devices'
        time (of the slowest stage), in steps as full as they may be."""
        key = self._alike(part)
        if key not in self._grids:
            lengths = np.unique(np.quantile(self.demand.prompts, np.linspace(0, 1, GRID), method="lower"))
            timed = [self._prompt_ns(part, int(length)) for length in lengths]
            self._grids[key] = lengths, np.array(timed, float).T
        lengths, timed_ns = self._grids[key]
        at = np.maximum(np.searchsorted(lengths, prompts, side="right") - 1, 0)
        return timed_ns[0][at], timed_ns[1][at]

    def _prompt_ns(self, part: Part, length: int) -> tuple[float, float]:
        limit, whole = self.step_tokens(part), part.role is Role.PREFILL
        if not part.role.elastic:
            return _prompt_ns(self.plans.cost(part.plan), length, limit, whole)
        cost, sizes = self.plans.group_cost(part.plan), range(1, part.count + 1)
        timed = [_group_ns(cost, length, limit, size) for size in sizes if size & (size - 1) == 0]
        return min(alone for alone, _ in timed), min(work for _, work in timed)

    @staticmethod
    def _alike(part: Part) -> Part:
        """One of the same speed: how many there are matters where they form groups."""
        return part if part.role.elastic else replace(part, count=1)

    # ---- fluid ---------------------------------------------------------------------------------

    def _finite_hz(self, steady_hz: float, count: int) -> float:
        """A run of so many requests spares its instances those that may miss, and what the others still do
        after the last one came."""
        stay_s = (self.slo.ttft_ns + self.demand.left * self.slo.tpot_ns) / NS
        found = []
        for rows in self.samples:
            left = ATTAINMENT * count - steady_hz * stay_s
            found.append(rows[count - 1].arrival_ns / NS * steady_hz / left if left > 0 else np.inf)
        return float(np.mean(found))

    def _links_hz(self, candidate: Candidate) -> float:
        """KV over the links of the instances that decode; within a node or not, the faster counts."""
        cluster = self.plans.cluster
        moved = self.demand.prompt * self.plans.shape.kv_bytes_per_token
        into = sum(part.count for part in candidate.parts if not part.role.prefills)
        return into * max(cluster.local.bandwidth, cluster.remote.bandwidth) / moved

    def _rows_hz(self, plan: Plan, cost: Cost, limit_ns: float) -> float:
        """The best batch within memory and a time of a step; each stage has a share of the rows."""
        if self.demand.steps == 0:
            return float("inf")
        context, best = self.demand.context, 0.0
        for rows in self._batches(plan):
            step = _decodes(rows, context)
            step_ns = cost.step_ns(step)
            if step_ns > limit_ns:
                break
            best = max(best, self._passing(plan, rows, step_ns, _slowest_ns(cost, step)))
        return best * NS / self.demand.steps

    def _passing(self, plan: Plan, rows: int, step_ns: float, slowest_ns: float) -> float:
        """Rows a nanosecond where steps of `rows` rows follow each other through the stages: as the slowest
        stage lets them, and no row is in two of them."""
        most = min(rows * plan.pp, self._most_rows(plan))
        return min(rows / slowest_ns, most / step_ns)

    def _mixed_hz(self, plan: Plan, cost: Cost, limit: int, limit_ns: float) -> float:
        """Steps of decodes and of as many prompt tokens as keep their number, in each step or, where a step
        with prompts costs more for being one, all in one of several."""
        demand = self.demand
        if not demand.steps:
            return 0.0
        best = self._crowded_hz(cost, limit, limit_ns)
        for rows in self._batches(plan):
            fresh, again = rows * demand.prompt / demand.steps, _decodes(rows, demand.context)
            again_ns, every = cost.step_ns(again), 1
            again_slowest_ns = _slowest_ns(cost, again)
            while fresh * every <= max(limit - rows, fresh) and fresh <= limit:
                both = _decodes(rows, demand.context, _chunk(fresh * every, demand.prompt))
                step_ns = (cost.step_ns(both) + (every - 1) * again_ns) / every
                slowest_ns = (_slowest_ns(cost, both) + (every - 1) * again_slowest_ns) / every
                if step_ns <= limit_ns:
                    best = max(best, self._passing(plan, rows, step_ns, slowest_ns))
                every *= 2
        if not best and cost.step_ns(_decodes(1, demand.context)) <= limit_ns:
            best = self._crowded_hz(cost, limit, np.inf)  # so seldom that a row is alone most of the time
        return best * NS / demand.steps

    def _crowded_hz(self, cost: Cost, limit: int, limit_ns: float) -> float:
        """Rows a nanosecond where prompts fill all steps: on average fewer than one row may decode then."""
        demand = self.demand
        rows = limit * demand.steps / (demand.prompt + demand.steps)
        chunk = _chunk(max(1, limit - int(rows) - 1), demand.prompt)
        step_ns = _slowest_ns(cost, _decodes(int(rows), demand.context, chunk))
        # Where rows are few, most of them decode in steps without prompts.
        felt_ns = step_ns if rows >= 1 else cost.step_ns(_decodes(1, demand.context))
        return rows / step_ns if felt_ns <= limit_ns else 0.0

    def _share(self, good_hz: float, any_hz: float) -> float:
        """Requests/s of those that meet their objectives; 0: too few could. Answers of one token need no
        TPOT."""
        short = float((self.demand.outputs < 2).mean())
        must = max(0.0, ATTAINMENT - short) / ATTAINMENT
        if good_hz == np.inf or must == 0:
            return any_hz
        return 1 / (must / good_hz + (1 - must) / any_hz) if good_hz else 0.0

    def _batches(self, plan: Plan) -> list[int]:
        """Numbers of rows that memory holds, an eighth apart."""
        most, sizes, size = self._most_rows(plan), [], 1.0
        while size <= most:
            sizes.append(round(size))
            size = max(size + 1, size * 1.125)
        return [*sizes, most] if most > 0 else []

    def _most_rows(self, plan: Plan) -> int:
        """That memory holds, and the serving core lets decode at a time."""
        return min(MAX_ROWS, int(self.plans.slots(plan) / self.demand.context))


def _prompt_ns(cost: Cost, tokens: int, limit: int, whole: bool) -> tuple[float, float]:
    """Alone, and its share of a step that is full. A long prompt is cut, unless it is to stay `whole`."""
    if tokens >= limit and not whole:
        cut = single(limit)
        slowest_ns = _slowest_ns(cost, cut)
        return cost.step_ns(cut) + (tokens / limit - 1) * slowest_ns, tokens / limit * slowest_ns
    count = max(1, -(-limit // tokens))
    pack = Step(0, (0,), tuple(Row(i, 0, tokens, draws=True) for i in range(count)))
    return cost.step_ns(single(tokens)), _slowest_ns(cost, pack) / count


def _group_ns(cost: Cost, tokens: int, limit: int, size: int) -> tuple[float, float]:
    """The same on a group of so many instances: alone, and of the time of one of them."""
    group, count = tuple(range(size)), max(1, -(-limit * size // tokens))
    pack = Step(0, group, tuple(Row(i, 0, tokens, size, draws=True) for i in range(count)))
    alone = Step(0, group, (Row(0, 0, tokens, size, draws=True),))
    return cost.step_ns(alone), size * _slowest_ns(cost, pack) / count


def _chunk(tokens: float, prompt: float) -> tuple[Row, ...]:
    """Prompts of mean length, and a piece of one."""
    whole, size = divmod(int(tokens), max(1, int(prompt)))
    sizes = [max(1, int(prompt))] * whole + ([size] if size else [])
    return tuple(Row(-1 - i, 0, each, draws=True) for i, each in enumerate(sizes or [1]))


def _decodes(rows: int, context: float, chunk: tuple[Row, ...] = ()) -> Step:
    return Step(0, (0,), chunk, again=tuple(range(rows)), context_tokens=int(rows * context))


def _slowest_ns(cost: Cost, step: Step) -> int:
    return max(cost.stages_ns(step)) if isinstance(cost, Staged) else cost.step_ns(step)
