"""What DistServe's released simulator decides, as a core: its faults included, for comparison only.

Each stage of a pipeline is an instance of its own with two queues, strictly first come, first served:

    prompts --> stage 0 --> ... --> last stage --> first token --> decode stage 0 --> ... --> last stage
                                                                        ^---- one token a round ----'

A stage that is free takes all prompts that its plan's whole memory would hold (never counting what is in
use), or, if there are none, rows with at most 50,000 tokens of context. Requests pass from prefill to decode
in no time, whether there is room or not, and draw as many tokens after their first one as they have output
tokens; so a request of n output tokens asks for n + 1 here, and its TPOT is what the simulator reports.
Colocated stages have both kinds of work, and prompts go first.

Nothing of the product uses this. World, costs and results are ours; the decisions are theirs.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from plait.cost.coefficients import KV_TOKENS, Coefficients, on_a100
from plait.cost.cost import ByInstance
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.command import Command, End, Token
from plait.spec.event import Arrived, Event, StepDone
from plait.spec.request import EndReason, Request
from plait.spec.step import Row, Step
from plait.workload.result import Recorder, RequestRecord
from plait.workload.trace import TraceRow

DECODE_TOKENS = 50_000
"""Context that a decode step takes at most, whatever the plan."""


@dataclass(frozen=True)
class SeedPlan:
    """One instance for both phases, or one for each."""

    model: str
    prefill: tuple[int, int]
    """tp and pp."""
    decode: tuple[int, int] | None = None
    """tp and pp; None: colocated, with the coefficients of vLLM's engine."""

    @property
    def devices(self) -> int:
        """GPUs."""
        return sum(tp * pp for tp, pp in (self.prefill, self.decode or (0, 0)))

    def stages(self) -> "list[StageCost]":
        """The cost of each stage, prefill first."""
        engine = "distserve" if self.decode else "vllm"
        plans = (self.prefill, self.decode) if self.decode else (self.prefill,)
        found = []
        for tp, pp in plans:
            whole = on_a100(self.model, tp, pp, engine=engine, seed_compatible=True)
            found += [StageCost(replace(whole, first_stage=True), stage) for stage in range(pp)]
        return found


@dataclass(frozen=True)
class StageCost:
    """One stage of a pipeline."""

    whole: Coefficients
    stage: int

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return self.whole.stages_ns(step)[self.stage]


@dataclass
class Asked:
    """A request and what it has drawn."""

    request: Request
    drawn: int = 0

    @property
    def context(self) -> int:
        """Tokens that its next decode attends to."""
        return self.request.prompt_tokens + self.drawn


@dataclass
class Stage:
    """Work that waits for one stage. From the second one on prompts come in the batches of the first."""

    prompts: deque[list[Asked]] = field(default_factory=deque)
    decodes: deque[Asked] = field(default_factory=deque)
    busy: bool = False


class SeedCore:
    """A `Core`. Steps of stage s run on instance s."""

    def __init__(self, plan: SeedPlan) -> None:
        prefill = plan.prefill[1]
        count = prefill + (plan.decode[1] if plan.decode else 0)
        self._stages = [Stage() for _ in range(count)]
        self._prefill_last = prefill - 1
        self._decode_first = prefill if plan.decode else 0
        self._budget = KV_TOKENS[plan.model][plan.prefill]
        self._flights: dict[int, tuple[int, bool, list[Asked]]] = {}
        """Step -> stage, whether it computes prompts, and its requests."""
        self._ids = 0
        self._out: list[Command] = []

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        """See `Core`."""
        self._out = []
        if isinstance(event, Arrived):
            self._stages[0].prompts.append([Asked(event.request)])
            self._start(0)
        elif isinstance(event, StepDone):
            stage, prompts, batch = self._flights.pop(event.step)
            self._stages[stage].busy = False
            onward = self._prefilled(event, stage, batch) if prompts else self._decoded(event, stage, batch)
            self._start(stage)
            self._start(onward)
        return self._out

    def _prefilled(self, event: StepDone, stage: int, batch: list[Asked]) -> int:
        """Returns the stage where the batch goes on."""
        if stage < self._prefill_last:
            self._stages[stage + 1].prompts.append(batch)
            return stage + 1
        self._stages[self._decode_first].decodes += self._drew(event, batch)
        return self._decode_first

    def _decoded(self, event: StepDone, stage: int, batch: list[Asked]) -> int:
        last = stage == len(self._stages) - 1
        onward = self._decode_first if last else stage + 1
        self._stages[onward].decodes += self._drew(event, batch) if last else batch
        return onward

    def _drew(self, event: StepDone, batch: list[Asked]) -> list[Asked]:
        """Each request has one more token; those that are not done."""
        self._out.append(Token(event.step, tuple(asked.request.id for asked in batch)))
        left = []
        for asked in batch:
            asked.drawn += 1
            if asked.drawn < asked.request.max_tokens:
                left.append(asked)
            else:
                self._out.append(End(asked.request.id, EndReason.LENGTH, asked.drawn))
        return left

    def _start(self, stage: int) -> None:
        """Give a free stage its next step."""
        waiting = self._stages[stage]
        if waiting.busy or not (waiting.prompts or waiting.decodes):
            return
        prompts = bool(waiting.prompts)
        batch = self._packed(stage) if prompts else self._rows(waiting)
        asked = [each.request for each in batch]
        self._out.append(
            Step(
                self._ids,
                (stage,),
                tuple(Row(each.id, 0, each.prompt_tokens, draws=True) for each in asked) if prompts else (),
                again=() if prompts else tuple(each.id for each in asked),
                context_tokens=0 if prompts else sum(each.context for each in batch),
            )
        )
        self._flights[self._ids] = stage, prompts, batch
        self._ids += 1
        waiting.busy = True

    def _packed(self, stage: int) -> list[Asked]:
        queue = self._stages[stage].prompts
        batch = queue.popleft()
        if stage:
            return batch
        room = self._budget - batch[0].request.prompt_tokens
        while queue and queue[0][0].request.prompt_tokens <= room:
            batch += queue.popleft()
            room -= batch[-1].request.prompt_tokens
        return batch

    @staticmethod
    def _rows(waiting: Stage) -> list[Asked]:
        room, batch = DECODE_TOKENS, []
        while waiting.decodes and waiting.decodes[0].context <= room:
            batch.append(waiting.decodes.popleft())
            room -= batch[-1].context
        return batch


def seed_run(plan: SeedPlan, rows: Sequence[TraceRow]) -> list[RequestRecord]:
    """Serve a trace as the released simulator would; TTFT and TPOT are those that it reports."""
    requests = [Request(i, row.prompt_tokens, row.output_tokens + 1) for i, row in enumerate(rows)]
    arrivals = [
        Arrival(row.arrival_ns, request, request.max_tokens)
        for row, request in zip(rows, requests, strict=True)
    ]
    recorder = Recorder()
    hands = VirtualWorkers(ByInstance(dict(enumerate(plan.stages()))), arrivals)
    inputs = [(each.at_ns, Arrived(each.request)) for each in arrivals]
    World(SeedCore(plan), hands, [recorder.see]).run(inputs)
    return sorted(recorder.records, key=lambda record: record.id)
