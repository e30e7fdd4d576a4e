"""Instances of one process each that compute steps together: executors on threads, joined by real links."""

import dataclasses
import queue
import threading

import numpy as np
import torch

from plait.model.model import Model, ModelConfig
from plait.runtime.gather import merged
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Step
from plait.worker.config import LinkConfig
from plait.worker.exchange import Exchange
from plait.worker.executor import Executor, StepFault
from plait.worker.group import Planner
from plait.worker.lender import Lender
from plait.worker.progress import Progress
from plait.worker.rows import RowState
from plait.worker.store import Store
from plait.worker.way import Ways
from plait.worker.wire import Source

SECRET = b"0123456789abcdef0123456789abcdef"


class Twice(Planner):
    """Draws up anew also what goes on from the step before, and compares."""

    onward = 0
    """How often that was."""

    def plan(self, step):
        led = self._onward is not None and self._onward.leads_to(step, self._rows)
        plan = super().plan(step)
        if led:
            self.onward += 1
            same(plan, self._anew(step))
        return plan


def same(ours, theirs) -> None:
    """Assert that two values are equal, whatever tensors they are made of."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif dataclasses.is_dataclass(ours) and not isinstance(ours, RowState):
        for field in dataclasses.fields(ours):
            same(getattr(ours, field.name), getattr(theirs, field.name))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs)
    else:
        assert ours == theirs


class Recording(Executor):
    """Keeps the logits that it draws from; plans steps twice."""

    def __init__(self, model: Model, instance: int) -> None:
        super().__init__(model, instance)
        self._planner = self.planner = Twice(instance, self.rows, self._planner._lanes)
        self.logits: dict[tuple[int, int], torch.Tensor] = {}
        """(request, position of the drawn token) -> logits."""

    def _draw(self, plan, logits_LV, drawing):
        names = {id(state): request for request, state in self.rows.states.items()}
        for state, at in zip(drawing.states, drawing.at_D.tolist(), strict=True):
            position = int(self.rows.known_R[state.index])
            self.logits[names[id(state)], position] = logits_LV[at].clone()
        return super()._draw(plan, logits_LV, drawing)


class Player:
    """One instance, on a thread of its own."""

    def __init__(self, model: Model, instance: int, config: LinkConfig, patience_s: float) -> None:
        self.instance, name = instance, b"%d.1.0" % instance
        self.executor = Recording(model, instance)
        self.exchange = Exchange(config, SECRET, name, patience_s)
        self.executor.exchange = self.exchange
        store = Store(model.pool, Store.whole_shard(model.pool))
        self.lender = Lender(
            Ways(config, name), store, Progress(), SECRET, name, "127.0.0.1", self.exchange.attach
        )
        self.lender.start()
        self.source = Source(name, self.lender.address, store.shard)
        self.orders: queue.SimpleQueue = queue.SimpleQueue()
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (order := self.orders.get()) is not None:
            try:
                self.answers.put(self.executor.run(*order))
            except StepFault as fault:
                self.answers.put(fault)

    def close(self) -> None:
        """End its threads."""
        self.orders.put(None)
        self.thread.join(timeout=30)
        self.lender.close()
        self.exchange.close()


class Band:
    """Several of them, each with a model of its own."""

    def __init__(
        self, folder, size: int, links: LinkConfig | None = None, patience_s: float = 30, **model
    ) -> None:
        config = ModelConfig(str(folder), **{"exact": True, **model})
        links = links or LinkConfig()
        self.players = [Player(Model(config), i, links, patience_s) for i in range(size)]

    def start(self, step: Step, opened: tuple[Opened, ...] = ()) -> None:
        """Give a step to the members of its group."""
        sources = tuple(self.players[i].source for i in step.group)
        for member in step.group:
            self.players[member].orders.put((step, opened, sources))

    def finish(self, step: Step) -> tuple[Draw, ...] | StepFault:
        """The answer to the oldest step of a group; of several faults one that came first."""
        answers = [self.players[member].answers.get(timeout=300) for member in step.group]
        faults = [answer for answer in answers if isinstance(answer, StepFault)]
        faults.sort(key=lambda fault: "given the step up" in str(fault))
        return faults[0] if faults else merged(step, answers)

    def run(self, step: Step, opened: tuple[Opened, ...] = ()) -> tuple[Draw, ...]:
        """Carry a step out."""
        self.start(step, opened)
        answer = self.finish(step)
        if isinstance(answer, StepFault):
            raise answer
        return answer

    def __enter__(self) -> "Band":
        return self

    def __exit__(self, *_: object) -> None:
        for player in self.players:
            player.close()
