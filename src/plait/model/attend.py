"""Our attention in transformers' models: one name in its interface, one `Attend` on each layer."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from plait.kernels import attention as kernels
from plait.kernels import pointwise
from plait.model.inputs import Current
from plait.model.pool import KvPool
from plait.spec.errors import Unsupported

NAME = "plait"
HARMLESS = frozenset(("dropout", "is_causal", "position_ids", "use_cache"))
"""Keyword arguments that our attention does not need to do what they say."""


class Attend:
    """One layer's attention: stores the new keys and values, then attends over the paged pool."""

    __slots__ = ("angles", "current", "kv_BKXE", "layer", "page", "threads")

    def __init__(self, kv_BKXE: Tensor, page: int, current: Current, threads: int, layer: int = 0) -> None:
        self.kv_BKXE, self.page, self.layer = kv_BKXE, page, layer
        self.current, self.threads = current, threads
        self.angles: tuple[Tensor, Tensor] | None = None
        """Cosines and sines [T, F] by which queries and keys still have to be turned."""

    def __call__(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scale: float, window: int, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """Attention output [T, H, D] and log-sum-exp [T, H] of the current step's tokens."""
        step = self.current.inputs
        assert step is not None, "attention outside of Model.forward"
        if self.angles is None:
            kernels.paged_store(k_TKD, v_TKD, step.slots_T, self.kv_BKXE)
        else:
            angles, self.angles = self.angles, None
            q_THD = pointwise.rope_store(
                q_THD, k_TKD, v_TKD, *angles, step.slots_T, self.kv_BKXE, self.threads
            )
        if self.current.stored is not None:
            self.current.stored(self.layer + 1)
        return kernels.paged_attend(
            q_THD,
            self.kv_BKXE,
            step.tables_RP,
            step.rows_R,
            step.starts_R,
            step.lens_R,
            step.positions_T,
            self.page,
            0,
            1,
            scale,
            window,
            softcap,
            self.threads,
        )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; query, key and value are [1, heads, T, D].

    Raises:
        Unsupported: the model asks for something that changes the result and that we do not do.
    """
    if not others.keys() <= HARMLESS or others.get("is_causal") is False:
        _refuse(others)
    assert attention_mask is None, "our name has no mask function, so no mask is built"
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    attend: Attend = module.__dict__["attend"]
    out_THD, _ = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale,
        sliding_window or 0,
        softcap or 0.0,
    )
    return out_THD[None], None


def _refuse(others: dict[str, Any]) -> None:
    """Raise for keyword arguments that mean something; those that are None or False do not."""
    unknown = {k: v for k, v in others.items() if k not in HARMLESS and v is not None and v is not False}
    if others.get("is_causal") is False:
        unknown["is_causal"] = False
    if unknown:
        raise Unsupported(
            f"this model's attention needs {', '.join(sorted(unknown))}, which plait does not support",
            "model",
        )


AttentionInterface.register(NAME, attention)


def hang(module: nn.Module, pool: KvPool, current: Current, threads: int) -> None:
    """Give each attention layer its own `Attend` with its own part of the pool.

    Raises:
        Unsupported: the layers found are not exactly the pool's.
    """
    found = {}
    for name, part in module.named_modules():
        if type(part).__name__.endswith("Attention") and hasattr(part, "layer_idx"):
            if part.layer_idx in found:
                raise Unsupported(f"{name} is a second attention of layer {part.layer_idx}", "model")
            found[part.layer_idx] = part
    if sorted(found) != list(range(len(pool.layers))):
        raise Unsupported(
            f"found attention in layers {sorted(found)} of {len(pool.layers)}; plait serves decoders "
            "with attention in each layer",
            "model",
        )
    for index, kv_BKXE in enumerate(pool.layers):
        found[index].__dict__["attend"] = Attend(kv_BKXE, pool.page, current, threads, index)
