"""Our attention in transformers' models: one name in its interface, one `Attend` on each layer."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from plait.kernels import attention as kernels
from plait.kernels import pointwise
from plait.model.group import Form, Together
from plait.model.inputs import Current, StepInputs
from plait.model.pool import KvPool
from plait.spec.errors import Unsupported

NAME = "plait"
HARMLESS = frozenset(("dropout", "is_causal", "position_ids", "use_cache"))
"""Keyword arguments that our attention does not need to do what they say."""


class Attend:
    """One layer's attention: stores the new keys and values, then attends over the paged pool."""

    __slots__ = ("angles", "current", "form", "kv_BKXE", "layer", "page", "size", "threads")

    def __init__(self, kv_BKXE: Tensor, page: int, current: Current, threads: int, layer: int = 0) -> None:
        self.kv_BKXE, self.page, self.layer = kv_BKXE, page, layer
        self.current, self.threads = current, threads
        self.angles: tuple[Tensor, Tensor] | None = None
        """Cosines and sines [T, F] by which queries and keys still have to be turned."""
        self.form: Form | None = None
        """Known once the layer has run."""
        self.size = 0
        """Elements of a head, likewise."""

    def __call__(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scale: float, window: int, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """Attention output [T, H, D] and log-sum-exp [T, H] of the current step's tokens."""
        step = self.current.inputs
        assert step is not None, "attention outside of Model.forward"
        if self.form is None:
            self.form, self.size = Form(q_THD.shape[1], scale, window, softcap, q_THD.dtype), q_THD.shape[2]
        if self.current.together is not None:
            return self._attend_together(self.current.together, q_THD, k_TKD, v_TKD, step)
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

    def _attend_together(
        self, together: Together, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, step: StepInputs
    ) -> tuple[Tensor, Tensor]:
        """For a group: keys and values of striped tokens, the first ones, go into the ring buffer."""
        stripes, angles, self.angles = together.inputs.stripes, self.angles, None
        striped = stripes.tokens if stripes is not None else 0
        turned = []
        if stripes is not None and striped:
            some, pool = slice(0, striped), together.attention.chunk(self.kv_BKXE, stripes)
            turned.append(self._stored(q_THD, k_TKD, v_TKD, angles, step.slots_T, some, pool))
        if striped < len(q_THD):
            some = slice(striped, None)
            turned.append(self._stored(q_THD, k_TKD, v_TKD, angles, step.slots_T, some, self.kv_BKXE))
        q_THD = turned[0] if len(turned) == 1 else torch.cat(turned)
        return self._joined(together, q_THD, (step.tables_RP, step.rows_R, step.starts_R, step.lens_R))

    def _stored(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        slots_T: Tensor,
        some: slice,
        kv_BKXE: Tensor,
    ) -> Tensor:
        """Store some tokens; returns their queries, turned."""
        q_THD, k_TKD, v_TKD, slots_T = q_THD[some], k_TKD[some], v_TKD[some], slots_T[some]
        if angles is None:
            kernels.paged_store(k_TKD, v_TKD, slots_T, kv_BKXE)
            return q_THD
        cos_TF, sin_TF = (angle_TF[some] for angle_TF in angles)
        return pointwise.rope_store(q_THD, k_TKD, v_TKD, cos_TF, sin_TF, slots_T, kv_BKXE, self.threads)

    def visit(self, together: Together) -> None:
        """A member's part in a layer of whose tokens it computes none."""
        assert self.form is not None, "a layer that never ran"
        q_THD = torch.empty(0, self.form.heads, self.size, dtype=self.form.dtype)
        self._joined(together, q_THD, None)

    def _joined(
        self, together: Together, q_THD: Tensor, own: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        assert self.form is not None
        together.peers.layer = self.layer
        result = together.attention(q_THD, self.kv_BKXE, self.form, own, together)
        if self.current.stored is not None:
            self.current.stored(self.layer + 1)
        return result


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


def layers_of(module: nn.Module) -> list[Attend]:
    """The attention of each layer that is here, in order."""
    found: list[Attend] = [part.__dict__["attend"] for part in module.modules() if "attend" in part.__dict__]
    return sorted(found, key=lambda attend: attend.layer)


def hang(module: nn.Module, pool: KvPool, current: Current, threads: int, first: int = 0) -> None:
    """Give each attention layer its own `Attend` with its own part of the pool.

    Args:
        first: the layer that the pool begins with.

    Raises:
        Unsupported: the layers found are not exactly the pool's.
    """
    found = {}
    for name, part in module.named_modules():
        if type(part).__name__.endswith("Attention") and hasattr(part, "layer_idx"):
            if part.layer_idx in found:
                raise Unsupported(f"{name} is a second attention of layer {part.layer_idx}", "model")
            found[part.layer_idx] = part
    layers = range(first, first + len(pool.layers))
    if sorted(found) != list(layers):
        raise Unsupported(
            f"found attention in layers {sorted(found)} of {layers}; plait serves decoders "
            "with attention in each layer",
            "model",
        )
    for local, kv_BKXE in enumerate(pool.layers):
        found[first + local].__dict__["attend"] = Attend(kv_BKXE, pool.page, current, threads, local)
