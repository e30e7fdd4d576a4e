"""`Board`: calls of a core reduced to what a dashboard shows of it.

    (now, event, commands) --> Board.see --> Transit, Holdings   what is under way, who holds which KV
                                         |-> Waterfall           requests, phase by phase
                                         |-> Intervals, Strips   curves and bars over time
                                         '-> Remarks             why, in words
                               picture_of(board) --> Picture

A pure function of the calls, so a live page, a journal opened later and a simulated run look alike. What
`see` costs is bounded by what the call says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.spec.cluster import Role
from plait.spec.command import Command, End, Score, Token
from plait.spec.errors import UserError
from plait.spec.event import (
    Arrived,
    Drain,
    Event,
    Moved,
    MoveFailed,
    Reassign,
    Rollout,
    Scored,
    StepDone,
    StepFailed,
    WorkerLost,
    WorkerUp,
)
from plait.spec.move import Cancel, Move
from plait.spec.request import REFUSALS, EndReason
from plait.spec.slo import Slo
from plait.spec.step import Step
from plait.workload.board.holdings import Holdings
from plait.workload.board.intervals import Intervals
from plait.workload.board.picture import RolloutNow
from plait.workload.board.remarks import Remarks
from plait.workload.board.strips import Strips
from plait.workload.board.transit import Transit
from plait.workload.board.waterfall import Course, Waterfall

FIRST_INTERVAL_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class BoardConfig:
    """What calls do not tell."""

    page: int = 16
    """KV slots that are owned together."""
    roles: Mapping[int, str] = field(default_factory=dict)
    """Of instances that are not MIXED, or are named before they are up."""
    slo: Slo | None = None
    """Objectives that requests are held against; None: none."""
    curves_ns: int | None = 300_000_000_000
    """How far back curves reach; None: to the beginning, ever more coarsely."""
    lanes_ns: int = 20_000_000_000
    """How far back bars reach, where no iteration of RLHF began."""

    @staticmethod
    def of(config: Mapping[str, Any], slo: Slo | None = None, curves_ns: int | None = None) -> "BoardConfig":
        """From the configuration of a serving core, as a journal's header has it.

        Args:
            slo: None: the objectives of its elastic instances, if it has any.

        Raises:
            UserError: it is not a serving core's.
        """
        try:
            named = config.get("placement", {}).get("instances", ())
            roles = {int(each["id"]): Role(each["role"]).value for each in named}
            aim = config.get("elastic", {})
            ttft_ns, tpot_ns = int(aim.get("ttft_ns") or 0), int(aim.get("tpot_ns") or 0)
            own = Slo(ttft_ns, tpot_ns) if ttft_ns and tpot_ns else None
            return BoardConfig(int(config.get("page", 16)), roles, slo or own, curves_ns)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"the header does not configure a serving core: {error!r}") from error


class Board:
    """See the module. An observer, like `Journal.append`."""

    def __init__(self, config: BoardConfig) -> None:
        self.config = config
        self.now_ns = 0
        self.holdings = Holdings(config.page)
        self.transit = Transit(self.holdings)
        self.waterfall = Waterfall(config.slo)
        self.remarks = Remarks()
        self.roles: dict[int, str] = dict(sorted(config.roles.items()))
        """Of every instance that was ever heard of."""
        self.epochs: dict[int, int] = {}
        """Of those that are up."""
        self.scoring: dict[int, tuple[int, Score]] = {}
        """Instance -> what it scores."""
        self.drawn: dict[int, int] = {}
        """Instance -> tokens drawn in its steps."""
        self.moves, self.moved_tokens, self.move_failures, self.steps = 0, 0, 0, 0
        self.intervals = Intervals(FIRST_INTERVAL_NS, config.curves_ns)
        self.strips = Strips(config.lanes_ns)
        self.rollout: RolloutNow | None = None
        self._samples: dict[int, None] = {}
        """Requests of the iteration that go on."""
        self.ended: Callable[[Course], None] | None = None
        """Is told of every request that ends; None: nobody is."""
        self._counts: dict[int, int] | None = None
        """Request -> tokens that the step just answered drew for it; None: one at most."""
        self._failed: Move | None = None
        """A move just failed, and may be said again."""
        self._events = self._event_table()
        self._commands = self._command_table()

    def _event_table(self) -> dict[type, Callable[[Any], None]]:
        return {
            Arrived: lambda event: self.waterfall.arrive(event.request, self.now_ns),
            StepDone: self._step_done,
            StepFailed: self._step_failed,
            Moved: self._moved,
            MoveFailed: self._move_failed,
            WorkerUp: self._worker_up,
            WorkerLost: self._worker_lost,
            Reassign: self._reassigned,
            Rollout: self._rolled_out,
            Scored: self._scored,
            Drain: lambda event: self._say("worker", "drain: no new requests are taken"),
        }

    def _command_table(self) -> dict[type, Callable[[Any], None]]:
        return {
            Step: self._step,
            Token: self._token,
            End: self._end,
            Move: self._move,
            Cancel: lambda command: self.transit.cancel(command.move),
            Score: self._score,
        }

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        self.now_ns = now_ns
        if take := self._events.get(type(event)):
            take(event)
        for command in commands:
            if take := self._commands.get(type(command)):
                take(command)
        if self._failed is not None:
            self.transit.give_up(self._failed)
            self.waterfall.turn(self._failed.request, "wait", now_ns)
            self._failed = None
        self.intervals.at(now_ns).arrived += isinstance(event, Arrived)
        requests = self.waterfall
        self.intervals.hold(now_ns, requests.waiting, requests.running, self.holdings.share)

    # ---- events --------------------------------------------------------------------------------

    def _step_done(self, event: StepDone) -> None:
        found = self.transit.land(event.step)
        if found is None:
            return
        issued_ns, step = found
        self._counts = None
        if max(event.tokens, default=0) > 1:
            self._counts = dict(zip(step.requests, event.tokens, strict=True))
        drawn = sum(event.tokens)
        for member in step.group:
            self.drawn[member] = self.drawn.get(member, 0) + drawn
            self.strips.add(member, "compute", issued_ns, self.now_ns, work_of(step), len(step.group))

    def _step_failed(self, event: StepFailed) -> None:
        found = self.transit.land(event.step)
        if found is not None:
            members = ", ".join(map(str, found[1].group))
            self._say("fault", f"step {event.step} on {members} failed: {event.reason}")

    def _moved(self, event: Moved) -> None:
        found = self.transit.moved(event.move)
        if found is None:
            return
        move = found[1]
        self.moved_tokens += move.count
        self._copied(found)
        if not self.transit.travels(move.request):
            course = self.waterfall.open.get(move.request)
            drew = course is not None and course.first_ns >= 0
            self.waterfall.turn(move.request, "decode" if drew else "prefill", self.now_ns)

    def _move_failed(self, event: MoveFailed) -> None:
        found = self.transit.failed(event.move)
        if found is None:
            return
        self.move_failures += 1
        self._copied(found)
        self._failed = move = found[1]
        ends = f"{move.source.instance} to {move.target.instance}"
        self._say("fault", f"move {move.id} of request {move.request} from {ends} failed: {event.reason}")

    def _copied(self, found: tuple[int, Move]) -> None:
        began_ns, move = found
        self.strips.add(move.target.instance, "copy", began_ns, self.now_ns, "move", 1)

    def _worker_up(self, event: WorkerUp) -> None:
        if event.instance in self.epochs:
            self._lose(event.instance)
        self.epochs[event.instance] = event.epoch
        if event.instance not in self.roles:
            self.roles = dict(sorted({**self.roles, event.instance: Role.MIXED.value}.items()))
        self.holdings.up(event.instance, event.slots)
        again = f", epoch {event.epoch}" if event.epoch else ""
        self._say("worker", f"instance {event.instance} is up with {event.slots:,} KV slots{again}")

    def _worker_lost(self, event: WorkerLost) -> None:
        if self.epochs.get(event.instance) == event.epoch:
            count = self._lose(event.instance)
            self._say("fault", f"instance {event.instance} is lost with the KV of {count} requests")

    def _lose(self, instance: int) -> int:
        del self.epochs[instance]
        self.scoring.pop(instance, None)
        gone = self.transit.lost(instance)
        for request in gone:
            self.waterfall.turn(request, "queue", self.now_ns)
        return len(gone)

    def _reassigned(self, event: Reassign) -> None:
        old = self.roles.get(event.instance, Role.MIXED.value)
        self.roles[event.instance] = event.role.value
        self._say("role", f"instance {event.instance}: {old} becomes {event.role.value}")

    def _rolled_out(self, event: Rollout) -> None:
        before, count = self.rollout, len(event.requests)
        self.strips.restart(self.now_ns)
        self._samples = dict.fromkeys(event.requests)
        batches = -(-count // event.batch) * event.readers
        number = 0 if before is None else before.iteration + 1
        told = (number, self.now_ns // 1000, count, 0, batches, 0, event.left, event.kept, event.why)
        self.rollout = RolloutNow(*told)
        why = f": {event.why}" if event.why else ""
        tail = f"the last {event.left} go on together on {event.kept}" if event.left else "no tail"
        self._say("rollout", f"iteration {number}: {count} samples, {batches} readings, {tail}{why}")

    def _scored(self, event: Scored) -> None:
        for instance, (began_ns, score) in self.scoring.items():
            if score.id == event.score:
                del self.scoring[instance]
                self.strips.add(instance, "compute", began_ns, self.now_ns, "score", 1)
                if self.rollout is not None:
                    self._progress(scored=len(score.batches) * len(score.readers))
                return

    def _progress(self, finished: int = 0, scored: int = 0) -> None:
        now = self.rollout
        assert now is not None
        told = (now.samples, now.finished + finished, now.batches, now.scored + scored)
        self.rollout = RolloutNow(now.iteration, now.begin_us, *told, now.tail, now.kept, now.why)

    # ---- commands ------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        self.steps += 1
        self.transit.issue(step, self.now_ns)
        opened = step.opened
        for row in step.rows:
            if row.given:
                self.waterfall.compute(row.request, row.request in opened, row.first, self.now_ns)
            elif row.request in opened:
                self.waterfall.turn(row.request, "decode", self.now_ns)
        for request in step.closed:
            if not self.holdings.where(request):
                self.waterfall.turn(request, "queue", self.now_ns)
        if step.why:
            self._say("why", step.why)
        interval = self.intervals.at(self.now_ns)
        interval.widest = max(interval.widest, len(step.group))

    def _token(self, told: Token) -> None:
        now_ns, before = self.now_ns, self.waterfall.tokens
        for course in self.waterfall.draw(told.requests, self._counts, now_ns):
            if course.phase != "move":
                request = course.request.id
                self.waterfall.turn(request, self._next_phase(request, course.phase), now_ns)
        self.intervals.at(now_ns).tokens += self.waterfall.tokens - before

    def _next_phase(self, request: int, phase: str) -> str:
        """Of one that drew a token: where its prompt was computed others may be there to decode."""
        stays = all(Role(self.roles[instance]).decodes for instance in self.holdings.where(request))
        return "wait" if phase == "prefill" and not stays else "decode"

    def _end(self, end: End) -> None:
        course = self.waterfall.end(end.request, end.reason.value, end.tokens, self.now_ns)
        self.transit.end(end.request)
        if end.request in self._samples:
            del self._samples[end.request]
            self._progress(finished=1)
        if course is None:
            return
        if self.ended is not None:
            self.ended(course)
        interval = self.intervals.at(self.now_ns)
        interval.met += course.met is True
        if course.first_ns >= 0 and end.reason in (EndReason.STOP, EndReason.LENGTH):
            interval.completed += 1
            tpot_ms = course.tpot_ns / 1e6 if end.tokens > 1 else None
            interval.latency(course.ttft_ns / 1e6, tpot_ms)
        if end.reason in REFUSALS:
            self._say("refusal", f"refused: {end.reason.value}")
        elif end.reason in (EndReason.FAILED, EndReason.DEADLINE):
            self._say("fault", f"request {end.request} ended: {end.reason.value}, {end.tokens} tokens")

    def _move(self, move: Move) -> None:
        self.moves += 1
        again = self.transit.begin(move, self.now_ns, self._failed)
        if self._failed is not None and self._failed.request == move.request:
            self._failed = None
        self.waterfall.turn(move.request, "move", self.now_ns)
        ends = f"from {move.source.instance} to {move.target.instance}"
        said = f": {move.why}" if move.why else ", again" if again else ""
        self._say("move", f"request {move.request}: {move.count:,} tokens {ends}{said}")

    def _score(self, score: Score) -> None:
        self.scoring[score.instance] = self.now_ns, score
        self._say("why", f"instance {score.instance} scores {score.why}")

    def _say(self, kind: str, text: str) -> None:
        self.remarks.say(self.now_ns, kind, text)


def work_of(step: Step) -> str:
    """What a step computes: prompts, the next tokens of rows, or both."""
    prompts = any(row.given for row in step.rows)
    others = bool(step.again) or not all(row.given for row in step.rows)
    return "mixed" if prompts and others else "prefill" if prompts else "decode"
