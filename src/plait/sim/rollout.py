"""`RolloutScenario`: one iteration's generation and scoring on virtual instances."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plait.cost.reading import ReadCost
from plait.rlhf.core import SERIAL, RlhfCore, Tail
from plait.serving.manager import GlobalManager
from plait.sim.copies import Copies
from plait.sim.scenario import Scenario
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.command import Command, End, Score
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event, Rollout, Scored, WorkerUp
from plait.spec.move import Move
from plait.spec.request import Request
from plait.workload.journal import Observer


@dataclass(frozen=True, slots=True)
class SampleLength:
    """A sample's tokens; how many it will draw is known to nobody before it ends."""

    prompt: int
    response: int


@dataclass(slots=True)
class RolloutTimes:
    """When things ended, from the start of the iteration; an observer."""

    drawn_ns: int = 0
    """The last sample."""
    scored_ns: int = 0
    """Everything: generation and inference."""
    moves: int = 0
    """Of samples, in the tail."""
    scoring_ns: int = 0
    """When the first batch went to be scored."""

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        for command in commands:
            if isinstance(command, End):
                self.drawn_ns = now_ns
            elif isinstance(command, Move):
                self.moves += 1
            elif isinstance(command, Score):
                self.scoring_ns = self.scoring_ns or now_ns
        if isinstance(event, Scored):
            self.scored_ns = now_ns


@dataclass(frozen=True, slots=True)
class RolloutScenario:
    """What draws and scores."""

    scenario: Scenario
    reading: ReadCost
    max_tokens: int
    """Of a response."""
    batch: int = 1
    """Samples that are scored together."""
    readers: int = 1
    """Of `reading`: models that may read a batch on different instances."""
    load_tokens: int = 0
    """See `Rollout`."""

    def run(
        self, samples: Sequence[SampleLength], tail: Tail = SERIAL, observers: Iterable[Observer] = ()
    ) -> RolloutTimes:
        """Draw and score all samples in virtual time; all prompts are there at once.

        Raises:
            UserError: samples are to move and there is no network, or a sample fits no instance.
        """
        scenario, times = self.scenario, RolloutTimes()
        if tail.left and scenario.network is None:
            raise UserError("samples of a tail move: name the network between instances", "network")
        instances = scenario.placement.instances
        copies = None
        if scenario.network is not None:
            copies = Copies(scenario.network, {each.id: each.node for each in instances})
        arrivals = [self._arrival(number, sample) for number, sample in enumerate(samples)]
        hands = VirtualWorkers(scenario.cost, arrivals, copies, self.reading)
        ups = [(0, WorkerUp(each.id, 0, scenario.slots_of(each.id))) for each in instances]
        requests = tuple(range(len(samples)))
        start = Rollout(requests, self.batch, tail.left, tail.kept, self.readers, self.load_tokens)
        inputs: list[tuple[int, Event]] = [
            *ups,
            (0, start),
            *((0, Arrived(each.request)) for each in arrivals),
        ]
        core = RlhfCore(GlobalManager(scenario.config))
        World(core, hands, [times.see, *observers]).run(inputs)
        if core.manager.lives or not times.scored_ns:
            raise UserError("samples do not fit: give instances more KV slots, or draw fewer tokens", "slots")
        return times

    def _arrival(self, number: int, sample: SampleLength) -> Arrival:
        request = Request(number, sample.prompt, self.max_tokens, model=self.scenario.config.model)
        return Arrival(0, request, min(sample.response, self.max_tokens))
