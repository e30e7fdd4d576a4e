"""`Model`: one transformers module with our KV pool, attention and linear layers."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from plait.kernels.choice import choose
from plait.model import attend, check, fuse, pack, rope, settle, shard, stage
from plait.model.config import ModelConfig
from plait.model.decode import DecodeTapes
from plait.model.graph import CudaGraphs, DecodeGraphs
from plait.model.group import GroupAttention, GroupInputs, Peers, Together
from plait.model.group_tape import GroupTapes, Size
from plait.model.inputs import Adapted, Current, StepInputs
from plait.model.load import end_ids, load_config, load_module, take_quantisation
from plait.model.load_shard import load_share
from plait.model.lora import Adapters
from plait.model.pool import KvPool
from plait.model.quantised import QuantisedWeight, round_layers
from plait.model.shard import Cut
from plait.model.share import share_of
from plait.model.staging import staged
from plait.model.world import World
from plait.spec.errors import Unsupported

log = logging.getLogger(__name__)


class Model:
    """A decoder that computes one flat row of tokens a step. Several live in one process.

    Where an instance has several processes, each has a `Model` of its share, and all compute the same steps
    in the same order. A stage that is not the last one gives its activations where others give logits.
    """

    def __init__(self, config: ModelConfig, world: World | None = None, pool: KvPool | None = None) -> None:
        """Load, install our parts and check the result against transformers' own forward.

        Args:
            world: the processes of `config.rank`; None where there is one.
            pool: that of a model of the same shape that this one takes the place of, with nothing of use
                in it; None: a new one.

        Raises:
            UserError: an option or the folder cannot be used; the message says what to change.
            Unsupported: the engine cannot carry this model.
        """
        settle.validate(config)
        self.config, self.world = config, world
        self.kernels, self.device = choose(config.device), torch.device(config.device)
        folder = Path(config.folder)
        hf_config = load_config(folder)
        quantisation = take_quantisation(hf_config)
        rounding = settle.rounding(config, quantisation)
        dtype = settle.dtype(config, quantisation or rounding)
        kv_dtype = settle.kv_dtype(config, dtype)
        shape = settle.shape(hf_config.to_dict(), float(torch.finfo(dtype).bits))
        self.max_len = settle.max_len(config.max_len, shape.max_tokens)
        self.shape = replace(shape, max_tokens=self.max_len)
        self.vocab = self.shape.vocab
        self.eos_ids = end_ids(folder, hf_config)
        held = share_of(self.shape, config.rank)
        self.pool = pool or KvPool(held, config.slots, config.page, kv_dtype, config.device)
        quantised: dict[str, QuantisedWeight] = {}
        cuts: dict[str, Cut] = {}
        if world is None:
            # Random weights are drawn where they will be: a GPU draws billions of them in a second.
            with self.device if config.seed is not None else nullcontext():
                loaded = dtype if rounding is None else torch.float32
                self.module, quantised = load_module(folder, hf_config, loaded, config.seed, quantisation)
            if rounding is not None:
                quantised = round_layers(self.module, rounding, dtype)
        else:
            self.module, cuts = load_share(folder, hf_config, dtype, self.shape.layers[0], world)
        self.module.to(self.device)
        self._forward = stage.forward_of(self.module, config.rank, world)
        self._current = Current()
        self.group = GroupAttention(config.page, config.threads)
        """Attention of steps that several instances compute."""
        self._tapes: DecodeTapes | DecodeGraphs | None = None
        self._group_tapes: GroupTapes | None = None
        if self.device.type == "cuda":
            from plait.kernels.triton import registered  # Triton is an extra

            torch.cuda.set_device(self.device)
            log.info("%d ops in Triton", len(registered.BODIES))
        self._install(dtype, quantised)
        pack.give_up(self.module, quantised)
        native = self.kernels.native
        packed = self.device.type == "cpu" and self._packed
        self.adapters = Adapters(self.module, self._current, cuts, config.threads, packed=packed)
        """Those that its rows may have."""
        if self.device.type == "cuda":
            self._tapes = DecodeGraphs(self._compute, CudaGraphs(), self.pool, self.max_len)
        elif native is not None and not config.exact and (world is None or world.plays):
            self._tapes = DecodeTapes(self._compute, native, self.pool, self.max_len, config.threads)
            self._group_tapes = GroupTapes(
                self._compute_together, self.group, native, self.pool, self.max_len, config.threads
            )

    def _install(self, dtype: torch.dtype, quantised: dict[str, QuantisedWeight]) -> None:
        config, module, kernels = self.config, self.module, self.kernels
        rank, world = config.rank, self.world
        reason = check.refusal_of_exactness(module, dtype, rank.tp) if config.exact else None
        tokens_T = check.example(self.vocab, self.max_len, config.slots // config.page)
        theirs_TV = check.reference(module, tokens_T.to(self.device), self._forward)
        with self.device:  # where tables are made
            tabled = rope.install(module, self.max_len, dtype)
        if config.exact and not tabled:
            reason = "its rotary embedding depends on the batch"
        if reason:
            raise Unsupported(f"{Path(config.folder).name} has no exact mode: {reason}", "exact")
        # The float32 reference is exact as well.
        packed = self._packed = config.exact or kernels.native is not None
        # Our threads and torch's would wait for each other's cores: where the products are ours, so are
        # the threads.
        self.threads_of_torch = 1 if packed else config.threads
        pack.install(module, packed, config.threads, quantised)
        if world is not None and rank.tp > 1:
            shard.reduce(module, world)
        if kernels.isa != "reference":
            fuse.install(module, dtype, config.threads)
        if kernels.native is not None:
            pack.gather(module)
        first = rank.layers(len(self.shape.layers)).start
        attend.hang(module, self.pool, self._current, config.threads, first)
        self._layers = attend.layers_of(module)
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

    def refresh(self, weights: Mapping[str, Tensor]) -> bool:
        """Compute with these parameters from now on; nothing of use may be in the pool. False, and nothing
        is changed, where that needs another `Model`."""
        on_cpu = self._tapes is None or isinstance(self._tapes, DecodeTapes)
        return self.world is None and on_cpu and pack.repack(self.module, weights)

    def watch(self, stored: Callable[[int], None]) -> None:
        """From now on call `stored(layers)` as the layers of a forward store keys and values, in order; not
        where it is played from a tape, nor on a GPU, which stores later than it is told."""
        if self.device.type == "cpu":
            self._current.stored = stored

    def forward(self, inputs: StepInputs, adapted: Adapted | None = None) -> Tensor:
        """Float32 logits [L, V] of the wanted tokens (of a stage before the last one activations [T, N] of
        all), on the device; stores the keys and values of all.

        `inputs` are on the host. The logits are valid until the next forward. Steps of one token a row
        are played from a tape or graph where there is one; in exact mode there is none, so that every step
        sums in the same order. A step with adapters is never played.

        Args:
            adapted: which tokens have adapters, that `adapters` holds; None: none has.
        """
        logits_LV = None if self._tapes is None or adapted is not None else self._tapes.play(inputs)
        if logits_LV is not None:
            return logits_LV
        return self._compute(staged(inputs, self.pool.page, self.device), adapted)

    @property
    def tapes_of_groups(self) -> tuple[Size, ...]:
        """Sizes of decode steps of groups that are played from a tape."""
        return () if self._group_tapes is None else self._group_tapes.sizes

    @property
    def refusal_of_groups(self) -> str | None:
        """Why this model cannot be computed by several instances together; None if it can."""
        if self.device.type != "cpu":
            return "groups of instances compute on cpu only"
        if any(layer.form is None or layer.form.window for layer in self._layers):
            return "its layers attend to windows, and groups know no positions of keys that others keep"
        return None

    def forward_together(
        self,
        inputs: StepInputs | None,
        group: GroupInputs,
        tables_RP: Tensor,
        peers: Peers,
        adapted: Adapted | None = None,
    ) -> Tensor:
        """A step of a group of instances: logits [L, V] of the wanted ones of own tokens.

        Args:
            inputs: own tokens; None: this member computes none, and only its keys are asked.
            tables_RP: int32 pages of own keys of all rows that this member knows.
            peers: the other members.
            adapted: which own tokens have adapters.

        Raises:
            whatever `peers` raise when one of them is gone.
        """
        if self._group_tapes is not None and adapted is None:
            layer = self._layers[0]
            assert layer.form is not None, "a layer that never ran"
            form = layer.form, layer.size
            logits_LV = self._group_tapes.play(inputs, group, tables_RP, peers, form)
            if logits_LV is not None:
                return logits_LV
        return self._compute_together(inputs, Together(group, peers, tables_RP, self.group), adapted)

    def _compute_together(
        self, inputs: StepInputs | None, together: Together, adapted: Adapted | None = None
    ) -> Tensor:
        self._current.together = together
        try:
            if inputs is not None:
                return self._compute(inputs, adapted)
            with torch.inference_mode():
                for layer in self._layers:
                    layer.visit(together)
            return torch.empty(0, self.vocab)
        finally:
            self._current.together = None

    def _compute(self, inputs: StepInputs, adapted: Adapted | None = None) -> Tensor:
        self._current.inputs = inputs
        if adapted is not None:
            self._current.adapted = replace(adapted, tokens_A=adapted.tokens_A.to(self.device))
        try:
            with torch.inference_mode(), _torch_threads(self.threads_of_torch):
                result = self._forward(inputs.tokens_T[None], inputs.positions_T[None], inputs.wanted_L)
        finally:
            self._current.inputs = self._current.adapted = None
        return result[0].float()


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
