"""`Model`: one transformers module with our KV pool, attention and linear layers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.kernels.choice import choose
from plait.model import attend, check, fuse, pack, rope
from plait.model.config import ModelConfig, dtype_of
from plait.model.decode import DecodeTapes
from plait.model.inputs import Current, StepInputs
from plait.model.load import end_ids, load_config, load_module, take_quantisation
from plait.model.pool import KvPool
from plait.model.quantised import QuantisedWeight
from plait.model.schemes import Quantisation
from plait.spec.errors import Unsupported, UserError
from plait.spec.shape import ModelShape

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KV_DTYPES = ("auto", "float32", "bfloat16", "int8")


class Model:
    """A decoder that computes one flat row of tokens a step. Several live in one process."""

    def __init__(self, config: ModelConfig) -> None:
        """Load, install our parts and check the result against transformers' own forward.

        Raises:
            UserError: an option or the folder cannot be used; the message says what to change.
            Unsupported: the engine cannot carry this model.
        """
        _validate(config)
        self.config = config
        folder = Path(config.folder)
        hf_config = load_config(folder)
        quantisation = take_quantisation(hf_config)
        dtype = _dtype(dtype_of(folder, config.dtype, config.exact), quantisation)
        kv_dtype = _kv_dtype(config.kv_dtype, dtype)
        shape = _shape(hf_config.to_dict(), float(torch.finfo(dtype).bits))
        self.max_len = _max_len(config.max_len, shape.max_tokens)
        self.shape = replace(shape, max_tokens=self.max_len)
        self.vocab = self.shape.vocab
        self.eos_ids = end_ids(folder, hf_config)
        self.pool = KvPool(self.shape, config.slots, config.page, kv_dtype)
        self.module, quantised = load_module(folder, hf_config, dtype, config.seed, quantisation)
        self._current = Current()
        self._tapes: DecodeTapes | None = None
        self._install(dtype, quantised)
        pack.give_up(self.module, quantised)
        native = choose().native
        if native is not None and not config.exact:
            self._tapes = DecodeTapes(self._compute, native, self.pool, self.max_len, config.threads)

    def _install(self, dtype: torch.dtype, quantised: dict[str, QuantisedWeight]) -> None:
        config, module, kernels = self.config, self.module, choose()
        reason = check.refusal_of_exactness(module, dtype) if config.exact else None
        tokens_T = check.example(self.vocab, self.max_len, config.slots // config.page)
        theirs_TV = check.reference(module, tokens_T)
        tabled = rope.install(module, self.max_len, dtype)
        if config.exact and not tabled:
            reason = "its rotary embedding depends on the batch"
        if reason:
            raise Unsupported(f"{Path(config.folder).name} has no exact mode: {reason}", "exact")
        packed = config.exact or kernels.native is not None  # the float32 reference is exact as well
        # Our threads and torch's would wait for each other's cores: where the products are ours, so are
        # the threads.
        self.threads_of_torch = 1 if packed else config.threads
        pack.install(module, packed, config.threads, quantised)
        if kernels.native is not None:
            fuse.install(module, dtype, config.threads)
            pack.gather(module)
        attend.hang(module, self.pool, self._current, config.threads)
        log.info("kernels: %s", kernels.why)
        whole = check.cut(tokens_T, [(0, 0, len(tokens_T))], config.page)
        try:
            whole_TV = self.forward(whole)
            if self.pool.layers[0].dtype == dtype and rope.defer(module):
                deferred_TV = self.forward(whole)
                if check.agree(deferred_TV, whole_TV, dtype):
                    whole_TV = deferred_TV
                else:
                    log.warning("its layers work on what they turned: rotation stays as it is")
                    rope.undefer(module)
        except (AssertionError, RuntimeError) as error:
            raise Unsupported(f"{Path(config.folder).name} cannot be served: {error}", "model") from error
        # Quantised weights are rounded to bf16 in transformers' forward, its keys and values are not rounded
        # to int8, and rare prompts amplify that.
        kept = self.pool.layers[0].dtype
        slack = 4 if quantised or kept == torch.int8 else 1
        check.compare(whole_TV, theirs_TV, kept, slack)
        self._check_pieces(tokens_T, whole_TV, kept, slack)

    def _check_pieces(self, tokens_T: Tensor, whole_TV: Tensor, dtype: torch.dtype, slack: float) -> None:
        """Cut in pieces and mixed with a copy the sequence must give the same logits."""
        past, page = len(tokens_T), self.config.page
        middle = past // 2
        if not middle:
            return
        self.forward(check.cut(tokens_T, [(0, 0, middle)], page))
        mixed_TV = self.forward(check.cut(tokens_T, [(1, 0, past), (0, middle, past)], page))
        pieces = torch.cat([whole_TV, whole_TV[middle:]])
        check.compare(mixed_TV, pieces, dtype, slack)
        if self.config.exact and not torch.equal(mixed_TV, pieces):
            gap = float((mixed_TV - pieces).abs().max())
            raise Unsupported(f"self-check failed: exact mode differs by {gap:.2e} between batches", "exact")

    def forward(self, inputs: StepInputs) -> Tensor:
        """Float32 logits [L, V] of the wanted tokens; stores the keys and values of all.

        They are valid until the next forward. Steps of one token a row are played from a tape where
        there is one; in exact mode there is none, so that every step sums in the same order.
        """
        logits_LV = None if self._tapes is None else self._tapes.play(inputs)
        return self._compute(inputs) if logits_LV is None else logits_LV

    def _compute(self, inputs: StepInputs) -> Tensor:
        self._current.inputs = inputs
        try:
            with torch.inference_mode(), _torch_threads(self.threads_of_torch):
                output = self.module(
                    input_ids=inputs.tokens_T[None],
                    position_ids=inputs.positions_T[None],
                    use_cache=False,
                    logits_to_keep=inputs.wanted_L,
                )
        finally:
            self._current.inputs = None
        return output.logits[0].float()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's own elementwise work on `count` threads: how it is split over more shows in the bits."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _validate(config: ModelConfig) -> None:
    if config.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype is {config.dtype}; choose one of auto, {', '.join(DTYPES)}", "dtype")
    if config.device != "cpu":
        raise Unsupported(f"device {config.device} is not supported; only cpu is", "device")
    if config.page < 1 or config.slots < config.page or config.slots % config.page:
        raise UserError(
            f"slots ({config.slots}) must be a positive multiple of page ({config.page})", "slots"
        )
    if config.threads < 1:
        raise UserError("threads must be at least 1", "threads")


def _dtype(wanted: str, quantisation: Quantisation | None) -> torch.dtype:
    """The type of activations: products with quantised weights take bf16."""
    if quantisation is None:
        return DTYPES[wanted]
    if wanted != "bfloat16":
        raise UserError(
            f"dtype is {wanted}, but the model's weights are quantised and take bf16: leave dtype out",
            "dtype",
        )
    return torch.bfloat16


def _kv_dtype(wanted: str, dtype: torch.dtype) -> torch.dtype:
    """The type of the pool: that of activations, or int8."""
    if wanted == "int8":
        return torch.int8
    if wanted not in KV_DTYPES:
        raise UserError(f"kv_dtype is {wanted}; choose one of {', '.join(KV_DTYPES)}", "kv_dtype")
    if wanted != "auto" and DTYPES[wanted] != dtype:
        raise UserError(
            f"kv_dtype is {wanted}, but activations are {str(dtype).removeprefix('torch.')}: choose auto or "
            "int8, or change dtype",
            "kv_dtype",
        )
    return dtype


def _shape(config: dict[str, Any], bits: float) -> ModelShape:
    """Sizes of a model that our attention can carry."""
    try:
        shape = ModelShape.from_config(config, bits=bits, kv_bits=bits)
    except KeyError as error:
        raise Unsupported(f"this model's sizes are not understood: {error.args[0]}", "model") from error
    for layer in shape.layers:
        if layer.head_dim not in range(8, 257, 8):
            reason = f"its heads have size {layer.head_dim}; plait's attention takes multiples of 8 up to 256"
            raise Unsupported(f"this model cannot be served: {reason}", "model")
    return shape


def _max_len(wanted: int | None, limit: int) -> int:
    if wanted is not None and not 1 <= wanted <= limit:
        raise UserError(f"max_len {wanted} is not in 1..{limit}, the model's own limit", "max_len")
    return wanted or limit
