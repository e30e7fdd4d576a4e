"""A journal as a timeline: Chrome trace JSON, which ui.perfetto.dev opens.

process "requests"     a span for each request, from arrival to end; counters of waiting and running
process "instance i"   a slice for each step and each part of the scoring on its compute lane, for each move
                       to it on its copy lane; counter of tokens whose KV it holds
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from plait.spec.command import End, Score, Token
from plait.spec.event import (
    Arrived,
    Drain,
    Event,
    Moved,
    MoveFailed,
    Reassign,
    Scored,
    StepDone,
    StepFailed,
    WorkerLost,
    WorkerUp,
)
from plait.spec.move import Move
from plait.spec.step import Row, Step
from plait.workload.journal import Entry

REQUESTS = 0
"""Process of the requests; instance i is process i + 1."""
COMPUTE, COPY = 0, 1
"""Lanes of an instance."""


class Timeline:
    """Collects trace events from calls of a core; an observer like `Journal.append`."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._issued: dict[int, tuple[int, Step]] = {}
        self._moving: dict[int, tuple[int, Move]] = {}
        self._scoring: dict[int, tuple[int, Score]] = {}
        self._lane_free_ns: dict[tuple[int, int], int] = {}
        """(instance, lane) -> end of its last slice; its next one starts no earlier."""
        self._waiting: dict[int, None] = {}
        self._silent: dict[int, None] = {}
        """Requests without a token so far."""
        self._running: dict[int, int] = {}
        """Request -> first instance of the group that holds it."""
        self._kv_tokens: dict[int, int] = {}
        """Request -> tokens of it that have KV or are being computed."""
        self._held: dict[int, int] = {}
        """Instance -> sum of `_kv_tokens` of the requests that it runs."""
        self._shown: dict[tuple[int, str], dict[str, int]] = {}
        """(process, counter) -> its value as last told."""
        self._name(REQUESTS, "requests")

    def see(self, now_ns: int, event: Event, commands: Iterable[object]) -> None:
        """Take one call of `handle`."""
        self._take(now_ns, event)
        for command in commands:
            if isinstance(command, Step):
                self._issue(now_ns, command)
            elif isinstance(command, Move):
                self._moving[command.id] = (now_ns, command)
            elif isinstance(command, Score):
                self._scoring[command.id] = (now_ns, command)
            elif isinstance(command, Token):
                self._first_tokens(now_ns, command)
            elif isinstance(command, End):
                self._leave(command.request)
                self._waiting.pop(command.request, None)
                self._silent.pop(command.request, None)
                self._span("e", now_ns, command.request, {"reason": command.reason, "tokens": command.tokens})
        self._count(now_ns)

    def save(self, path: Path) -> None:
        """Write the trace as JSON."""
        path.write_bytes(msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": self.events}))

    def _take(self, now_ns: int, event: Event) -> None:
        if isinstance(event, Arrived):
            request = event.request
            self._waiting[request.id] = self._silent[request.id] = None
            self._span("b", now_ns, request.id, {"prompt": request.prompt_tokens, "max": request.max_tokens})
        elif isinstance(event, StepDone):
            self._slice(now_ns, event.step, {"drawn": sum(event.tokens)})
        elif isinstance(event, StepFailed):
            self._slice(now_ns, event.step, {"failed": event.reason})
        elif isinstance(event, WorkerUp):
            self._name(event.instance + 1, f"instance {event.instance}")
            self._instant(now_ns, event.instance + 1, f"up, epoch {event.epoch}")
        elif isinstance(event, WorkerLost):
            self._instant(now_ns, event.instance + 1, f"lost, epoch {event.epoch}")
            for lost in [r for r, home in self._running.items() if home == event.instance]:
                self._send_back(lost)
        elif isinstance(event, Moved):
            self._copied(now_ns, event.move, {})
        elif isinstance(event, MoveFailed):
            self._copied(now_ns, event.move, {"failed": event.reason})
        elif isinstance(event, Scored):
            self._scored(now_ns, event.score)
        elif isinstance(event, Reassign):
            self._instant(now_ns, event.instance + 1, f"takes {event.role}")
        elif isinstance(event, Drain):
            self._instant(now_ns, REQUESTS, "drain")

    def _issue(self, now_ns: int, step: Step) -> None:
        self._issued[step.id] = (now_ns, step)
        for request in step.closed:
            if self._running.get(request) == step.group[0]:
                self._send_back(request)
        for row in step.rows:
            self._join(row, step.group[0])
        for request in step.again:
            self._grow(request, 1)
        if step.repeat > 1:
            for request in step.requests:
                self._grow(request, step.repeat - 1)

    def _join(self, row: Row, instance: int) -> None:
        self._waiting.pop(row.request, None)
        self._leave(row.request)
        tokens = row.first + row.count
        self._running[row.request] = instance
        self._kv_tokens[row.request] = tokens
        self._held[instance] = self._held.get(instance, 0) + tokens

    def _grow(self, request: int, tokens: int) -> None:
        self._kv_tokens[request] += tokens
        self._held[self._running[request]] += tokens

    def _send_back(self, request: int) -> None:
        """Preempted, or lost with its worker: it has no KV and waits again."""
        self._leave(request)
        self._waiting[request] = None

    def _leave(self, request: int) -> None:
        instance = self._running.pop(request, None)
        if instance is not None:
            self._held[instance] -= self._kv_tokens.pop(request)

    def _first_tokens(self, now_ns: int, told: Token) -> None:
        for request in told.requests:
            if request in self._silent:
                del self._silent[request]
                self._span("n", now_ns, request, {"first token of step": told.step})

    def _slice(self, now_ns: int, step_id: int, found: dict[str, Any]) -> None:
        if step_id not in self._issued:
            return  # a late answer to a step of a journal's lost past
        issued_ns, step = self._issued.pop(step_id)
        name = "mixed" if step.rows and step.again else "described" if step.rows else "decode"
        args = found | {
            "step": step.id,
            "rows": len(step.rows),
            "again": len(step.again),
            "new tokens": step.new_tokens,
            "context tokens": step.context_tokens,
            "issued": issued_ns,
        }
        for member in step.group:
            span = self._occupied(now_ns, issued_ns, member, COMPUTE)
            self.events.append({"name": name, "cat": "step", "ph": "X", **span, "args": args})

    def _copied(self, now_ns: int, move_id: int, found: dict[str, Any]) -> None:
        if move_id not in self._moving:
            return
        issued_ns, move = self._moving.pop(move_id)
        args = found | {"move": move.id, "request": move.request, "tokens": move.count}
        args |= {"source": move.source.instance, "issued": issued_ns}
        span = self._occupied(now_ns, issued_ns, move.target.instance, COPY)
        self.events.append({"name": "move", "cat": "move", "ph": "X", **span, "args": args})

    def _scored(self, now_ns: int, score_id: int) -> None:
        if score_id not in self._scoring:
            return
        issued_ns, score = self._scoring.pop(score_id)
        args = {
            "score": score.id,
            "batches": len(score.batches),
            "tokens": sum(score.tokens),
            "why": score.why,
        }
        span = self._occupied(now_ns, issued_ns, score.instance, COMPUTE)
        self.events.append({"name": "score", "cat": "score", "ph": "X", **span, "args": args})

    def _occupied(self, now_ns: int, issued_ns: int, instance: int, lane: int) -> dict[str, float]:
        """Where and when a lane was busy with what has just been answered."""
        start_ns = max(issued_ns, self._lane_free_ns.get((instance, lane), 0))
        self._lane_free_ns[instance, lane] = now_ns
        return {
            "ts": start_ns / 1e3,
            "dur": (now_ns - start_ns) / 1e3,
            "pid": instance + 1,
            "tid": lane,
        }

    def _span(self, phase: str, now_ns: int, request: int, args: dict[str, Any]) -> None:
        place = {"pid": REQUESTS, "tid": 0, "id": request}
        what = {"name": f"request {request}", "cat": "request", "ph": phase, "ts": now_ns / 1e3}
        self.events.append({**what, **place, "args": args})

    def _instant(self, now_ns: int, pid: int, name: str) -> None:
        self.events.append({"name": name, "ph": "i", "s": "p", "ts": now_ns / 1e3, "pid": pid, "tid": 0})

    def _name(self, pid: int, name: str) -> None:
        for what, args in (("process_name", {"name": name}), ("process_sort_index", {"sort_index": pid})):
            self.events.append({"name": what, "ph": "M", "pid": pid, "tid": 0, "args": args})

    def _count(self, now_ns: int) -> None:
        queues = {"waiting": len(self._waiting), "running": len(self._running)}
        self._counter(now_ns, REQUESTS, "queue", queues)
        for instance, tokens in self._held.items():
            self._counter(now_ns, instance + 1, "KV", {"tokens": tokens})

    def _counter(self, now_ns: int, pid: int, name: str, args: dict[str, int]) -> None:
        if self._shown.get((pid, name)) == args:
            return
        self._shown[pid, name] = args
        self.events.append({"name": name, "ph": "C", "ts": now_ns / 1e3, "pid": pid, "tid": 0, "args": args})


def timeline(entries: Iterable[Entry]) -> Timeline:
    """The timeline of a journal."""
    drawn = Timeline()
    for entry in entries:
        drawn.see(entry.now_ns, entry.event, entry.commands)
    return drawn
