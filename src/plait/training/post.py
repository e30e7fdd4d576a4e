"""`Post`: messages between the ranks of a pipeline, and what is said when one does not come.

Over gloo every message has a tag, so receives can be posted ahead and messages may overtake each other. NCCL
has no tags: there both ends of a pair post in the order of their programs, which is one order for both
(`plait.search.pipelines.rendezvous`).
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from plait.spec.errors import ServiceError
from plait.spec.schedule import Action, Deed, Kind, Verb

STAGES, MICRO_BATCHES, MODELS = 1 << 8, 1 << 14, 1 << 7
KINDS = {Kind.F: 0, Kind.B: 1}


class PipelineFault(ServiceError):
    """A message between ranks did not come or go: another rank is gone, stuck or out of step."""


@dataclass(frozen=True, slots=True)
class PostConfig:
    """How messages travel."""

    patience_s: float = 60.0
    """Longest wait for a message, in seconds."""
    ahead: int = 8
    """Receives that are posted before they are needed; only with tags."""
    tagged: bool = True
    """The transport matches messages by tag (gloo); else by their order (NCCL)."""


@dataclass(slots=True)
class _Letter:
    deed: Deed
    tensor: Tensor
    work: dist.Work


def tag_of(action: Action) -> int:
    """The tag of an action's result, which no other of the same step has."""
    assert action.model < MODELS and action.stage < STAGES, "more models or stages than tags"  # noqa: PT018
    assert action.micro_batch < MICRO_BATCHES, "more micro-batches than tags"
    place = (action.model * 2 + KINDS[action.kind]) * STAGES + action.stage
    return place * MICRO_BATCHES + action.micro_batch


class Post:
    """One rank's end. `group` holds the ranks of the pipeline, numbered as in the schedule."""

    def __init__(
        self, config: PostConfig, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self._group, self._device = config, group, device
        self.rank = dist.get_rank(group)
        self._patience = timedelta(seconds=config.patience_s)
        self._coming: deque[tuple[Deed, tuple[int, ...]]] = deque()
        self._posted: dict[Action, _Letter] = {}
        self._sent: list[_Letter] = []

    def open(self, coming: Iterable[tuple[Deed, tuple[int, ...]]]) -> None:
        """Begin a step, whose receives are these in the order of its program, each with its shape."""
        self._coming.extend(coming)
        if self.config.tagged:
            for _ in range(min(self.config.ahead, len(self._coming))):
                self._expect()

    def pass_by(self, deed: Deed) -> None:
        """The program comes to a receive: without tags it is posted now."""
        if not self.config.tagged:
            assert self._coming[0][0] == deed, "receives are not in the order of the program"
            self._expect()

    def take(self, action: Action) -> Tensor:
        """Wait for the result of an action of another rank.

        Raises:
            PipelineFault: it does not come in time, or the other rank is gone.
        """
        if action not in self._posted:
            while self._coming and action not in self._posted:
                self._expect()
        letter = self._posted.pop(action)
        self._wait(letter)
        if self.config.tagged and self._coming:
            self._expect()
        return letter.tensor

    def send(self, deed: Deed, result: Tensor) -> None:
        """Send the result of an action; it must not be written to before `close`."""
        kept = result.contiguous()
        try:
            work = dist.isend(kept, self._global(deed.peer), group=self._group, tag=self._tag(deed.action))
        except RuntimeError as error:
            raise self._fault(deed, 0.0, error) from error
        self._sent.append(_Letter(deed, kept, work))

    def close(self) -> None:
        """End the step: returns when all that was sent has been taken.

        Raises:
            PipelineFault: something has not.
        """
        assert not self._posted and not self._coming, "messages came that nobody took"  # noqa: PT018
        for letter in self._sent:
            self._wait(letter)
        self._sent.clear()

    def _expect(self) -> None:
        deed, shape = self._coming.popleft()
        tensor = torch.empty(shape, device=self._device)
        peer, tag = self._global(deed.peer), self._tag(deed.action)
        try:
            work = dist.irecv(tensor, peer, group=self._group, tag=tag)
        except RuntimeError as error:
            raise self._fault(deed, 0.0, error) from error
        self._posted[deed.action] = _Letter(deed, tensor, work)

    def _wait(self, letter: _Letter) -> None:
        began_s = time.monotonic()
        try:
            letter.work.wait(self._patience)
        except RuntimeError as error:
            raise self._fault(letter.deed, time.monotonic() - began_s, error) from error

    def _fault(self, deed: Deed, elapsed_s: float, error: Exception) -> PipelineFault:
        action, way = deed.action, "to" if deed.verb is Verb.SEND else "from"
        what = f"{action.kind.value} of micro-batch {action.micro_batch}"
        return PipelineFault(
            f"rank {self.rank}: the result of model {action.model}, stage {action.stage}, {what} {way} rank "
            f"{deed.peer} (tag {self._tag(action)}) failed after {elapsed_s:.1f} s of at most "
            f"{self.config.patience_s:g} s: {error}"
        )

    def _tag(self, action: Action) -> int:
        return tag_of(action) if self.config.tagged else 0

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)
