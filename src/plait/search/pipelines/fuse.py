"""Which pipelines share a block of ranks: fusion factors and directions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plait.spec.errors import UserError
from plait.spec.schedule import PipelinedModel, PipelineProblem


@dataclass(frozen=True, slots=True)
class Share:
    """A model that is to share a block of ranks with others.

    The block holds as many copies of its pipeline as fit (its fusion factor), side by side.
    """

    pipeline: PipelinedModel
    """One copy; its ranks are counted from 0."""
    reverse: bool = False
    """Its first stage is on the last rank of each copy's share."""


def fused(parts: Sequence[Share], ranks: int | None = None) -> PipelineProblem:
    """The problem of one block: copies times stages is the same number of ranks for every part.

    Args:
        ranks: of the block; None: as many as the deepest part has stages.

    Raises:
        UserError: a part's stages do not divide the ranks, or the parts train on different numbers of
            micro-batches.
    """
    width = ranks or max(part.pipeline.stages for part in parts)
    pipelines: list[PipelinedModel] = []
    for part in parts:
        stages = part.pipeline.stages
        if width % stages:
            raise UserError(
                f"{stages} stages of {part.pipeline.name or 'a model'} do not divide {width} ranks"
            )
        for copy in range(width // stages):
            mine = range(copy * stages, (copy + 1) * stages)
            placed = tuple(reversed(mine)) if part.reverse else tuple(mine)
            pipelines.append(replace(part.pipeline, ranks=placed))
    samples = {width // part.pipeline.stages * part.pipeline.micro_batches for part in parts}
    if len(samples) > 1:
        raise UserError(f"copies times micro-batches must be equal for all models, not {sorted(samples)}")
    return PipelineProblem(width, tuple(pipelines))


def even(
    stages: int, micro_batches: int, forward_s: float, kept_bytes: float = 0.0, name: str = ""
) -> PipelinedModel:
    """A pipeline of equal stages whose backward takes twice as long as its forward."""
    return PipelinedModel(
        micro_batches,
        tuple(range(stages)),
        (forward_s,) * stages,
        (2 * forward_s,) * stages,
        kept_bytes=(kept_bytes,) * stages,
        name=name,
    )


def split_backward(problem: PipelineProblem, weight_share: float = 0.5) -> PipelineProblem:
    """The same with the backward of the weights apart, so much of the whole."""
    return replace(
        problem,
        models=tuple(
            replace(
                each,
                backward_s=tuple(time * (1 - weight_share) for time in each.backward_s),
                weight_s=tuple(time * weight_share for time in each.backward_s),
            )
            for each in problem.models
        ),
    )
