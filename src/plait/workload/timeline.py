"""A journal as a timeline: Chrome trace JSON, which ui.perfetto.dev opens.

process "requests"     a span for each request, from arrival to end; counters of waiting and running
process "instance i"   a slice for each step on its compute lane; counter of tokens whose KV it holds
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from plait.spec.command import End, Token
from plait.spec.event import Arrived, Drain, Event, StepDone, StepFailed, WorkerLost, WorkerUp
from plait.spec.step import Row, Step
from plait.workload.journal import Entry

REQUESTS = 0
"""Process of the requests; instance i is process i + 1."""


class Timeline:
    """Collects trace events from calls of a core; an observer like `Journal.append`."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._issued: dict[int, tuple[int, Step]] = {}
        self._lane_free_ns: dict[int, int] = {}
        """Instance -> end of its last step; its next slice starts no earlier."""
        self._waiting: dict[int, None] = {}
        self._running: dict[int, int] = {}
        """Request -> first instance of the group that holds it."""
        self._kv_tokens: dict[int, int] = {}
        """Request -> tokens of it that have KV or are being computed."""
        self._held: dict[int, int] = {}
        """Instance -> sum of `_kv_tokens` of the requests that it runs."""
        self._name(REQUESTS, "requests")

    def see(self, now_ns: int, event: Event, commands: Iterable[object]) -> None:
        """Take one call of `handle`."""
        self._take(now_ns, event)
        for command in commands:
            if isinstance(command, Step):
                self._issue(now_ns, command)
            elif isinstance(command, Token):
                for request in command.requests:
                    self._span("n", now_ns, request, {"token of step": command.step})
            elif isinstance(command, End):
                self._leave(command.request)
                self._waiting.pop(command.request, None)
                self._span("e", now_ns, command.request, {"reason": command.reason, "tokens": command.tokens})
        self._count(now_ns)

    def save(self, path: Path) -> None:
        """Write the trace as JSON."""
        path.write_bytes(msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": self.events}))

    def _take(self, now_ns: int, event: Event) -> None:
        if isinstance(event, Arrived):
            request = event.request
            self._waiting[request.id] = None
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
        elif isinstance(event, Drain):
            self._instant(now_ns, REQUESTS, "drain")

    def _issue(self, now_ns: int, step: Step) -> None:
        self._issued[step.id] = (now_ns, step)
        for request in step.closed:
            if self._leave(request):
                self._waiting[request] = None  # preempted: it waits again
        for row in step.rows:
            self._join(row, step.group[0])
        for request in step.again:
            self._kv_tokens[request] += 1
            self._held[self._running[request]] += 1

    def _join(self, row: Row, instance: int) -> None:
        self._waiting.pop(row.request, None)
        self._leave(row.request)
        tokens = row.first + (row.count - 1) * row.stride + 1
        self._running[row.request] = instance
        self._kv_tokens[row.request] = tokens
        self._held[instance] = self._held.get(instance, 0) + tokens

    def _leave(self, request: int) -> bool:
        """Forget a request's KV; whether it had any."""
        instance = self._running.pop(request, None)
        if instance is None:
            return False
        self._held[instance] -= self._kv_tokens.pop(request)
        return True

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
            start_ns = max(issued_ns, self._lane_free_ns.get(member, 0))
            self._lane_free_ns[member] = now_ns
            span = {"ts": start_ns / 1e3, "dur": (now_ns - start_ns) / 1e3}
            place = {"pid": member + 1, "tid": 0}
            self.events.append({"name": name, "cat": "step", "ph": "X", **span, **place, "args": args})

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
        self.events.append({"name": name, "ph": "C", "ts": now_ns / 1e3, "pid": pid, "tid": 0, "args": args})


def timeline(entries: Iterable[Entry]) -> Timeline:
    """The timeline of a journal."""
    drawn = Timeline()
    for entry in entries:
        drawn.see(entry.now_ns, entry.event, entry.commands)
    return drawn
