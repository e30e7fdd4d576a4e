"""What one process of an instance has of a model's sizes. No torch here: drivers ask, too."""

from dataclasses import replace

from plait.model.config import Rank
from plait.spec.errors import Unsupported
from plait.spec.shape import LayerShape, ModelShape


def share_of(shape: ModelShape, rank: Rank) -> ModelShape:
    """Its layers, each with its share of the heads.

    Raises:
        Unsupported: the model cannot be divided so; the message says how it can.
    """
    layer = shape.layers[0]
    if rank.pp > len(shape.layers):
        raise Unsupported(f"{len(shape.layers)} layers make no {rank.pp} stages: lower pp", "pp")
    if not _divides(layer, rank.tp):
        fits = [n for n in range(1, layer.heads + 1) if _divides(layer, n)]
        raise Unsupported(
            f"tp is {rank.tp}, but the model has {layer.heads} query and {layer.kv_heads} KV heads: "
            f"tp can be {', '.join(map(str, fits))}",
            "tp",
        )
    layers = tuple(
        replace(each, heads=each.heads // rank.tp, kv_heads=max(1, each.kv_heads // rank.tp))
        for each in (shape.layers[i] for i in rank.layers(len(shape.layers)))
    )
    return replace(shape, layers=layers)


def _divides(layer: LayerShape, tp: int) -> bool:
    return layer.heads % tp == 0 and (layer.kv_heads % tp == 0 or tp % layer.kv_heads == 0)
