"""Pipeline parallel: which modules a stage has, by the model's own plan, and how activations pass through it.

    stage 0:  embedding, layers 0 .. a            --activations-->
    stage 1:  (received) layers a + 1 .. b, norm, output head

Layers of other stages let everything pass, so that a model that counts its layers counts them right.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plait.model.config import Rank
from plait.model.world import Tag, World
from plait.spec.errors import Unsupported

Forward = Callable[[Tensor, Tensor | None, Tensor | int], Tensor]
"""Token ids [1, T], positions [1, T], wanted tokens (0: all) -> logits [1, L, V] or activations [1, T, N]."""


class Elsewhere(nn.Module):
    """Stands for a module of another stage: gives its first argument."""

    def forward(self, hidden_1TN: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_1TN


class Blank(nn.Module):
    """Stands for an embedding of another stage: gives zeros that nobody reads."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, ids_1T: Tensor) -> Tensor:
        return torch.zeros((*ids_1T.shape, self.width), dtype=self.dtype, device=ids_1T.device)


class Received(nn.Module):
    """Stands for the last layer of the stage before: gives what that one sent."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def forward(self, hidden_1TN: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.world.receive(torch.empty_like(hidden_1TN), self.world.rank.stage - 1, Tag.ACTIVATIONS)


class Whole:
    """The forward of a module that ends in logits."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, ids_1T: Tensor, positions_1T: Tensor | None, wanted: Tensor | int) -> Tensor:
        return self.module(
            input_ids=ids_1T, position_ids=positions_1T, use_cache=False, logits_to_keep=wanted
        ).logits


class Inner:
    """The forward of a stage that ends in activations for the next one."""

    def __init__(self, module: nn.Module, world: World) -> None:
        self.base, self.world = module.base_model, world

    def __call__(self, ids_1T: Tensor, positions_1T: Tensor | None, wanted: Tensor | int) -> Tensor:
        hidden_1TN = self.base(input_ids=ids_1T, position_ids=positions_1T, use_cache=False).last_hidden_state
        self.world.send(hidden_1TN, self.world.rank.stage + 1, Tag.ACTIVATIONS)
        return hidden_1TN


def trim(module: nn.Module, world: World) -> None:
    """Let go of what other stages have.

    Raises:
        Unsupported: the model has no plan for pipelines.
    """
    rank = world.rank
    if rank.pp == 1:
        return
    base, stack = module.base_model, stack_of(module)
    names, layers = list(module.config.base_model_pp_plan), getattr(base, stack)
    mine = rank.layers(len(layers))
    for i in range(len(layers)):
        if i not in mine:
            layers[i] = Received(world) if i == mine.start - 1 else Elsewhere()
    at = names.index(stack)
    if rank.stage > 0:
        for name in names[:at]:
            part = getattr(base, name)
            if isinstance(part, nn.Embedding):
                setattr(base, name, Blank(part.embedding_dim, part.weight.dtype))
    if not rank.last:
        for name in names[at + 1 :]:
            setattr(base, name, Elsewhere())
        head = next(name for name, part in module.named_modules() if part is module.get_output_embeddings())
        module.set_submodule(head, Elsewhere())


def stack_of(module: nn.Module) -> str:
    """Which part of the base model its plan divides: the list of layers.

    Raises:
        Unsupported: there is no plan.
    """
    plan, base = module.config.base_model_pp_plan, module.base_model
    stack = next((name for name in plan or () if isinstance(getattr(base, name, None), nn.ModuleList)), None)
    if stack is None:
        kind = module.config.model_type
        raise Unsupported(f"transformers has no pipeline plan for {kind}: use pp 1", "pp")
    return stack


def forward_of(module: nn.Module, rank: Rank, world: World | None) -> Forward:
    """What a step calls."""
    if rank.last:
        return Whole(module)
    assert world is not None, "a stage that is not the last one has a world"
    return Inner(module, world)
