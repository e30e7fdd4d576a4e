"""Results: one schema for what a simulation predicts and a load generator measures, so that they compare."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from plait.spec.command import Command, End, Token
from plait.spec.event import Arrived, Event
from plait.spec.request import EndReason
from plait.spec.slo import Slo

NS = 1e9
MS = 1e6
COMPLETED = frozenset({EndReason.STOP.value, EndReason.LENGTH.value})


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request."""

    id: int
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    token_ns: tuple[int, ...]
    """When each piece of output came; a piece is usually one token."""
    end_ns: int
    outcome: str
    """An `EndReason`, or "error" where a client got no proper answer."""
    error: str = ""
    """What the client was told."""

    @property
    def completed(self) -> bool:
        """It got its whole answer."""
        return self.outcome in COMPLETED and bool(self.token_ns)

    @property
    def ttft_ns(self) -> int:
        """Time to first token; of completed requests only."""
        return self.token_ns[0] - self.arrival_ns

    @property
    def tpot_ns(self) -> float:
        """Mean time of an output token after the first; 0 if there is none."""
        if self.output_tokens < 2:
            return 0.0
        return (self.token_ns[-1] - self.token_ns[0]) / (self.output_tokens - 1)

    @property
    def e2e_ns(self) -> int:
        """From arrival to the last token."""
        return self.token_ns[-1] - self.arrival_ns


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, in milliseconds. Percentiles interpolate linearly between order statistics."""

    mean: float
    p50: float
    p90: float
    p99: float

    @staticmethod
    def of_ns(values: Sequence[float]) -> "Spread | None":
        """None where there is nothing to describe."""
        if not values:
            return None
        array = np.asarray(values, float) / MS
        p50, p90, p99 = (float(p) for p in np.percentile(array, (50, 90, 99)))
        return Spread(float(array.mean()), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run as a whole. Latencies are those of completed requests; rates count from the first arrival to the
    end of the last request."""

    requests: int
    completed: int
    outcomes: Mapping[str, int]
    """How many requests ended in which way."""
    duration_s: float
    prompt_tokens: int
    """Of completed requests, as are output_tokens."""
    output_tokens: int
    request_rate: float
    """Completed requests a second."""
    output_rate: float
    """Output tokens a second."""
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    """Requests of at least two output tokens."""
    itl_ms: Spread | None
    """Gaps between pieces of output, of all requests together."""
    e2e_ms: Spread | None
    attainment: float | None = None
    """Share of all requests that completed and met both objectives; None without objectives."""
    goodput: float | None = None
    """Such requests a second."""

    @staticmethod
    def of(records: Sequence[RequestRecord], slo: Slo | None = None) -> "Summary":
        """Summarise a run. Requests that did not complete count as missing their objectives."""
        done = [record for record in records if record.completed]
        start_ns = min((record.arrival_ns for record in records), default=0)
        duration_s = (max((record.end_ns for record in records), default=0) - start_ns) / NS
        met = sum(slo.met(r.ttft_ns, r.tpot_ns) for r in done) if slo else 0
        gaps = [later - sooner for record in done for sooner, later in pairwise(record.token_ns)]
        outcomes: dict[str, int] = {}
        for record in records:
            outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
        output_tokens = sum(r.output_tokens for r in done)
        return Summary(
            requests=len(records),
            completed=len(done),
            outcomes=dict(sorted(outcomes.items())),
            duration_s=duration_s,
            prompt_tokens=sum(r.prompt_tokens for r in done),
            output_tokens=output_tokens,
            request_rate=_rate(len(done), duration_s),
            output_rate=_rate(output_tokens, duration_s),
            ttft_ms=Spread.of_ns([r.ttft_ns for r in done]),
            tpot_ms=Spread.of_ns([r.tpot_ns for r in done if r.output_tokens > 1]),
            itl_ms=Spread.of_ns(gaps),
            e2e_ms=Spread.of_ns([r.e2e_ns for r in done]),
            attainment=met / len(records) if slo and records else None,
            goodput=_rate(met, duration_s) if slo else None,
        )

    def latency_rows(self) -> list[tuple[str, Spread | None]]:
        """Name and distribution of each latency, in reading order."""
        latencies = (self.ttft_ms, self.tpot_ms, self.itl_ms, self.e2e_ms)
        return list(zip(("TTFT", "TPOT", "ITL", "E2E"), latencies, strict=True))

    def total_rows(self) -> list[tuple[str, str]]:
        """Name and formatted value of each figure that is no latency, in reading order."""
        rows = [
            ("completed", f"{self.completed} of {self.requests}"),
            ("duration", f"{self.duration_s:.2f} s"),
            ("requests", f"{self.request_rate:.2f} /s"),
            ("output tokens", f"{self.output_rate:.1f} /s"),
        ]
        failures = [(how, count) for how, count in self.outcomes.items() if how not in COMPLETED]
        rows += [(f"ended: {how}", str(count)) for how, count in failures]
        if self.attainment is not None and self.goodput is not None:
            rows += [("SLO attainment", f"{self.attainment:.1%}"), ("goodput", f"{self.goodput:.2f} /s")]
        return rows


def as_json(summary: Summary, records: Iterable[RequestRecord], meta: Mapping[str, Any]) -> dict[str, Any]:
    """One JSON object: how it was made, the summary, and each request without its single token times."""
    return {"meta": dict(meta), "summary": asdict(summary), "requests": [_request_json(r) for r in records]}


class Recorder:
    """Observes a core and keeps a record of each request, finished or not."""

    def __init__(self) -> None:
        self._arrived: dict[int, tuple[int, int]] = {}
        """Request -> (arrival time, prompt tokens), until it ends."""
        self._token_ns: dict[int, list[int]] = {}
        self.records: list[RequestRecord] = []
        """Ended requests, in the order in which they ended."""

    def waiting(self, request: int) -> bool:
        """It has not ended, and nothing of its answer has come."""
        return self._token_ns.get(request) == []

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        if isinstance(event, Arrived):
            self._arrived[event.request.id] = (now_ns, event.request.prompt_tokens)
            self._token_ns[event.request.id] = []
        for command in commands:
            if isinstance(command, Token):
                for request in command.requests:
                    self._token_ns[request].append(now_ns)
            elif isinstance(command, End):
                arrival_ns, prompt_tokens = self._arrived.pop(command.request)
                times = tuple(self._token_ns.pop(command.request))
                reason = command.reason.value
                ended = (command.request, arrival_ns, prompt_tokens, command.tokens, times, now_ns, reason)
                self.records.append(RequestRecord(*ended))


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _request_json(record: RequestRecord) -> dict[str, Any]:
    done = record.completed
    return {
        "id": record.id,
        "arrival_s": record.arrival_ns / NS,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "ttft_ms": record.ttft_ns / MS if done else None,
        "tpot_ms": record.tpot_ns / MS if done else None,
        "e2e_ms": record.e2e_ns / MS if done else None,
        "outcome": record.outcome,
        "error": record.error,
    }
