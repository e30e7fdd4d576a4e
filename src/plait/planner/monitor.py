"""`Monitor`: what the workload is at present, and whether it is another one than the plan was made for.

    Arrived, End --> window --distance from the reference--> above `enter` for `patience_ns` --> shifted
                                                       below `leave`: patience begins anew

Rates are compared by their ratio, lengths by the largest gap between two cumulative distributions
(Kolmogorov and Smirnov). From both is taken what chance alone would give samples of these sizes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from plait.spec.command import Command, End
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event
from plait.workload.trace import TraceRow

NS = 1e9
CHANCE = 2.0
"""Standard errors, and multiples of 1 / sqrt(n), that are put down to chance."""


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """What counts as another workload."""

    window_ns: int = 300_000_000_000
    """How far back the present reaches."""
    least: int = 50
    """Requests without which a window says nothing."""
    enter: float = 0.2
    """Distance from which a shift begins: a rate 1.22 times as high, or a fifth of all requests longer."""
    leave: float = 0.1
    """Distance below which it was none."""
    patience_ns: int = 360_000_000_000
    """How long a shift must last. A burst stays in the window for all its length, so only a patience above
    that waits bursts out."""

    def __post_init__(self) -> None:
        if not 0 < self.leave <= self.enter:
            raise UserError(
                f"leave is {self.leave} and enter {self.enter}; choose 0 < leave <= enter", "leave"
            )
        if min(self.window_ns, self.least) < 1 or self.patience_ns < 0:
            raise UserError("a monitor needs a window and a least number of requests above 0", "window_ns")


@dataclass(frozen=True, slots=True)
class Observed:
    """The workload of one window. Output lengths are those of the requests that have ended."""

    rate_hz: float
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]

    def distance(self, other: "Observed") -> float:
        """The farthest of rate, prompt and output lengths, less what chance explains; 0: no difference."""
        return max(
            _rates(self, other), _lengths(self.prompts, other.prompts), _lengths(self.outputs, other.outputs)
        )


@dataclass(slots=True)
class Seen:
    """A request of the window."""

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int | None = None
    """None until it ended."""


@dataclass(slots=True)
class Monitor:
    """Observes a core (`see`). Whoever plans takes `rows`, and calls `accept` once the plan is in force."""

    config: MonitorConfig = field(default_factory=MonitorConfig)
    reference: Observed | None = None
    """What the present plan was made for; None: the first full window becomes it."""
    _window: deque[Seen] = field(default_factory=deque)
    _open: dict[int, Seen] = field(default_factory=dict)
    _first_ns: int | None = None
    _since_ns: int | None = None
    """Since when the workload has been another one."""

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        if self._first_ns is None:
            self._first_ns = now_ns
        if isinstance(event, Arrived):
            seen = Seen(now_ns, event.request.prompt_tokens)
            self._window.append(seen)
            self._open[event.request.id] = seen
        for command in commands:
            if isinstance(command, End) and (ended := self._open.pop(command.request, None)):
                ended.output_tokens = command.tokens
        while self._window and self._window[0].arrival_ns < now_ns - self.config.window_ns:
            self._window.popleft()

    def observed(self, now_ns: int) -> Observed | None:
        """The present; None before a whole window has passed or where it holds too few requests."""
        if self._first_ns is None or now_ns - self._first_ns < self.config.window_ns:
            return None
        outputs = tuple(seen.output_tokens for seen in self._window if seen.output_tokens)
        if min(len(self._window), len(outputs)) < self.config.least:
            return None
        prompts = tuple(seen.prompt_tokens for seen in self._window)
        return Observed(len(prompts) / (self.config.window_ns / NS), prompts, outputs)

    def shifted(self, now_ns: int) -> bool:
        """Whether the workload has been another one for long enough. To be asked now and then."""
        present = self.observed(now_ns)
        if present is None:
            return False
        if self.reference is None:
            self.reference = present
        far = present.distance(self.reference)
        if far < self.config.leave:
            self._since_ns = None
        elif far >= self.config.enter and self._since_ns is None:
            self._since_ns = now_ns
        return self._since_ns is not None and now_ns - self._since_ns >= self.config.patience_ns

    def accept(self, now_ns: int) -> None:
        """The plan is for the present workload from now on."""
        self.reference, self._since_ns = self.observed(now_ns) or self.reference, None

    def rows(self) -> list[TraceRow]:
        """The window's requests that have ended, as a trace to plan for."""
        ended = [(seen, seen.output_tokens) for seen in self._window if seen.output_tokens]
        start_ns = ended[0][0].arrival_ns if ended else 0
        return [TraceRow(seen.arrival_ns - start_ns, seen.prompt_tokens, output) for seen, output in ended]


def _rates(one: Observed, other: Observed) -> float:
    chance = CHANCE * sqrt(1 / len(one.prompts) + 1 / len(other.prompts))
    return max(0.0, abs(log(one.rate_hz / other.rate_hz)) - chance)


def _lengths(one: Sequence[int], other: Sequence[int]) -> float:
    first, second = (np.sort(np.asarray(each)) for each in (one, other))
    values: NDArray[np.int64] = np.union1d(first, second)
    shares = [np.searchsorted(each, values, side="right") / len(each) for each in (first, second)]
    gap = float(np.abs(shares[0] - shares[1]).max())
    return max(0.0, gap - CHANCE / 2 * sqrt(1 / len(one) + 1 / len(other)))
