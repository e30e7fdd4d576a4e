"""`MemberExecutor`: carries out steps as one process of several.

All processes of an instance get every order and carry them out in the same sequence. Those of the last stage
draw; what they drew goes back to the first stage, which waits for it only when a step begins with it. So
stages compute different steps at the same time where these do not depend on each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.model.dialogue import Dialogue, Script
from plait.model.model import Model
from plait.model.world import Tag, World, WorldError
from plait.spec.sampling import Draw
from plait.worker.exchange import Exchange, GroupError
from plait.worker.executor import Executor
from plait.worker.plan import Drawing, GroupPlan, Plan
from plait.worker.rows import RowState

UNKNOWN = 0
"""Stands for a token that another stage drew and this one need not know, or does not know yet."""


class Faltering:
    """The way to the other members, for one column of several. Where it breaks, this column goes on for
    nothing: the others wait for its sums."""

    def __init__(self, exchange: Exchange, world: World) -> None:
        self._exchange, self._world, self.room, self.layer = exchange, world, exchange.room, -1
        self._dialogue: Dialogue | None = None
        self.failed: GroupError | None = None

    def push(self, member: int, x: Tensor) -> None:
        """See `plait.model.group.Peers`."""
        self._try(lambda: self._exchange.push(member, x))

    def settle(self, receives: Sequence[tuple[int, Tensor]] = ()) -> None:
        """See `plait.model.group.Peers`. Once it has failed, tensors are left as they are."""
        self._try(lambda: self._exchange.settle(receives))

    def near(self, told: Sequence[int], heard: Sequence[int]) -> bool:
        """See `plait.model.group.Peers`. All columns say the same: they sum equal numbers of rows."""
        found = [False]
        self._try(lambda: found.append(self._exchange.near(told, heard)))
        return self._world.sum(torch.tensor([float(found[-1])])).item() == self._world.rank.tp

    def dialogue(self, script: Script) -> "Faltering":
        """See `plait.model.group.Peers`."""
        self._dialogue = self._exchange.dialogue(script)
        return self

    def ask(self, layer: int) -> None:
        """See `plait.model.dialogue.Dialogue`; so the others."""
        self._say(lambda dialogue: dialogue.ask(layer), layer)

    def hear(self, layer: int) -> None:
        """See `ask`."""
        self._say(lambda dialogue: dialogue.hear(layer), layer)

    def answer(self, layer: int) -> None:
        """See `ask`."""
        self._say(lambda dialogue: dialogue.answer(layer), layer)

    def _say(self, what: Callable[[Dialogue], None], layer: int) -> None:
        dialogue, self.layer = self._dialogue, layer
        assert dialogue is not None
        self._try(lambda: what(dialogue))

    def _try(self, exchange: Callable[[], None]) -> None:
        if self.failed is not None:
            return
        self._exchange.layer = self.layer
        try:
            exchange()
        except GroupError as error:
            self.failed = error
            self._exchange.abandon()


@dataclass(slots=True)
class Owed:
    """Tokens that the last stage draws in a step and sends to the first."""

    tokens_R: Tensor
    """int64, filled once `wait` has returned."""
    wait: Callable[[], None]
    places: list[tuple[RowState, int]]
    """The row and the position of each token."""


class MemberExecutor(Executor):
    """See the module. A step that fails once it was planned takes the instance down: others have begun it."""

    def __init__(self, model: Model, instance: int, world: World) -> None:
        super().__init__(model, instance)
        self.world, self.rank = world, world.rank
        self._owed: list[Owed] = []

    def _compute(self, plan: Plan) -> tuple[Draw, ...]:
        try:
            if not self.rank.last:
                self._collect(plan)
            return super()._compute(plan)
        except WorldError:
            raise
        except Exception as error:
            raise WorldError(f"rank {self.rank.index} failed within a step: {error}") from error

    def _forward_together(self, plan: GroupPlan, exchange: Exchange) -> Tensor:
        """All columns give the step up, or none: who cannot go on says so once the others have computed."""
        peers = Faltering(exchange, self.world)
        try:
            logits_LV = self.model.forward_together(
                plan.inputs, plan.group, plan.tables_RP, peers, plan.adapted
            )
            failed = bool(self.world.sum(torch.tensor([float(peers.failed is not None)])).item())
        except WorldError:
            raise
        except Exception as error:
            raise WorldError(f"rank {self.rank.index} failed within a group's step: {error}") from error
        if failed:
            raise peers.failed or GroupError("another process of this instance has given the step up")
        return logits_LV

    def _draw(self, plan: Plan, logits_LV: Tensor, drawing: Drawing) -> tuple[Draw, ...]:
        if not self.rank.last:
            self._presume(drawing)
            return ()
        draws = super()._draw(plan, logits_LV, drawing)
        if drawing.states and self.rank.pp > 1:
            tokens_R = torch.tensor([draw.tokens[0] for draw in draws if draw.tokens])
            self.world.send(tokens_R, 0, Tag.TOKENS)
        return draws

    def _presume(self, drawing: Drawing) -> None:
        """Leave a place for each token that the last stage draws in this step."""
        count = len(drawing.states)
        known_D = self.rows.known_R[drawing.indices_D].tolist()
        self.rows.append(drawing.indices_D, np.full(count, UNKNOWN))
        if count and self.rank.stage == 0:
            tokens_R = torch.zeros(count, dtype=torch.int64)
            wait = self.world.expect(tokens_R, self.rank.pp - 1, Tag.TOKENS)
            self._owed.append(Owed(tokens_R, wait, list(zip(drawing.states, known_D, strict=True))))

    def _collect(self, plan: Plan) -> None:
        """Wait for the tokens that this step begins with, and for those that were drawn before them."""
        computed = {id(state) for state in plan.states}
        needed = [i for i, owed in enumerate(self._owed) if any(id(s) in computed for s, _ in owed.places)]
        past = max(needed) + 1 if needed else 0
        for owed in self._owed[:past]:
            owed.wait()
            open_rows = {id(state) for state in self.rows.states.values()}
            for (state, position), token in zip(owed.places, owed.tokens_R.tolist(), strict=True):
                if id(state) in open_rows:
                    self.rows.tokens_RL[state.index, position] = token
        del self._owed[:past]
