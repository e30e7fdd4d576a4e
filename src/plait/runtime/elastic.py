"""What elastic instances can do together, and what is presumed of it before anything was measured."""

from collections.abc import Sequence
from dataclasses import replace

from plait.cost.scaling_base import ScalingBase
from plait.search.batching import Width
from plait.serving.elasticity import ElasticConfig
from plait.spec.cluster import Instance
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape

FLOPS_PER_NS = 100.0
"""Presumed of each process."""
ALONE_NS = 1e6
"""Presumed time of a step besides its arithmetic, for each member."""


def refusal_of_groups(instances: Sequence[Instance], device: str, shape: ModelShape) -> str | None:
    """Why these instances cannot compute a step together; None: they can."""
    if device != "cpu":
        return "elastic instances compute on cpu only: choose other roles"
    if any(layer.window is not None for layer in shape.layers):
        return (
            "this model attends to windows, and elastic groups know no positions of keys that others keep: "
            "choose other roles"
        )
    if any(each.pp > 1 for each in instances):
        return "elastic instances have no stages: use pp 1, or choose other roles"
    for pool in (_prefilling(instances), _decoding(instances)):
        if len({each.tp for each in pool}) > 1:
            return "elastic instances of a pool have equal tp: give all the same, or choose other roles"
    return None


def presumed_widths(shape: ModelShape, instances: Sequence[Instance]) -> tuple[Width, ...]:
    """Times in ns of prompts on groups of each size up to all instances."""
    rate = FLOPS_PER_NS * min(each.tp * each.pp for each in instances)
    token_ns, square_ns = shape.flops_per_token / rate, shape.flops_per_pair / 2 / rate
    sizes = range(1, len(instances) + 1)
    return tuple(Width(n, ALONE_NS * n, token_ns / n, square_ns / n) for n in sizes)


def measured(base: ScalingBase, config: ElasticConfig, instances: Sequence[Instance]) -> ElasticConfig:
    """How elastic instances decide by measured times.

    Raises:
        UserError: instances of this tp were not measured.
    """
    elastic = [each for each in instances if each.role.elastic]
    if not elastic:
        raise UserError(
            "times of groups are for elastic instances: add --elastic, or leave them out", "scaling"
        )
    first, then = _prefilling(elastic)[0], _decoding(elastic)[0]
    return replace(config, widths=base.widths(first.tp), decode_ns=base.decode_ns(then.tp))


def _prefilling(instances: Sequence[Instance]) -> list[Instance]:
    return [each for each in instances if each.role.prefills]


def _decoding(instances: Sequence[Instance]) -> list[Instance]:
    return [each for each in instances if each.role.decodes]
