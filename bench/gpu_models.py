"""Whole models with random weights on a GPU: decoding against its roofline, and two that share the GPU."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import gpu_limits as limits
import torch
from claim import Claim, reported
from gpu_attention import bandwidth, seconds, share

from plait.model.config import ModelConfig
from plait.model.inputs import StepInputs
from plait.model.model import Model

PAGE = 16
TURNS = 30
SHARED_ROWS = 32
MOVED_TOKENS = 4096
"""Tokens whose KV moves at a time: a long prompt's."""


def made(config: Any, folder: Path, device: str, rows: int, context: int) -> Model:
    """The model with random weights and a pool for `rows` requests of `context` tokens."""
    config.save_pretrained(folder)
    slots = rows * (-(-context // PAGE)) * PAGE
    model = Model(
        ModelConfig(
            str(folder), dtype="bfloat16", slots=slots, page=PAGE, max_len=context, seed=0, device=device
        )
    )
    for layer in model.pool.layers:
        layer.zero_()  # steps read slots that none of them wrote
    return model


def decode_step(rows: int, context: int) -> StepInputs:
    """One token for each of `rows` requests, at the last position of their context."""
    pages = -(-context // PAGE)
    tables = torch.randperm(rows * pages).int().view(rows, pages)
    last = torch.full((rows,), context - 1)
    return StepInputs(
        tokens_T=torch.arange(rows) % 1000,
        positions_T=last,
        slots_T=(tables[:, -1] * PAGE + (context - 1) % PAGE).int(),
        starts_R=torch.arange(rows + 1, dtype=torch.int32),
        lens_R=(last + 1).int(),
        rows_R=torch.arange(rows, dtype=torch.int32),
        tables_RP=tables,
        wanted_L=torch.arange(rows),
    )


def decode_parts(quick: bool) -> Iterator[Claim]:
    """Share of its roofline (weights and KV read once) at which each model decodes."""
    rate, context = bandwidth(), limits.MODEL_CONTEXT
    for name, config in list(limits.configs().items())[: 1 if quick else None]:
        batches = limits.MODEL_BATCHES[:2] if quick else limits.MODEL_BATCHES
        with tempfile.TemporaryDirectory() as folder:
            model = made(config, Path(folder), "cuda", batches[-1], context)
        for rows in batches:
            step = decode_step(rows, context)
            times_s = seconds(lambda _, model=model, step=step: model.forward(step), TURNS)
            limit_s = limits.decode_limit_s(config, rows, context, rate)
            yield share(f"{name}, decode {rows} x {context}", limit_s, times_s)
        del model
        torch.cuda.empty_cache()


def sharing_parts(quick: bool) -> Iterator[Claim]:
    """Two instances of Llama-3.2-1B in one process, each on a stream of its own, and KV that moves from one
    pool to the other on a third."""
    config, context = limits.configs()["Llama-3.2-1B"], limits.MODEL_CONTEXT
    with tempfile.TemporaryDirectory() as folder:
        pair = [made(config, Path(folder), "cuda", SHARED_ROWS, context) for _ in range(2)]
    step, turns = decode_step(SHARED_ROWS, context), 10 if quick else TURNS
    decodes = [lambda model=model: model.forward(step) for model in pair]
    move = mover(*pair)
    moved_bytes = MOVED_TOKENS * limits.shape_of(config).kv_bytes_per_token
    alone_s = together_s([decodes[0]], turns)
    both_s = together_s(decodes, turns)
    moved_s = together_s([move], turns)
    all_s = together_s([*decodes, move], turns)
    rows = f"{SHARED_ROWS} x {context}"
    said = f"two instances in one process, decode {rows}: tokens/s of both over those of one"
    yield ratio(said, [2 * alone / both for alone, both in zip(alone_s, both_s, strict=True)])
    yield ratio(f"moving the KV of {MOVED_TOKENS} tokens, GB/s", [moved_bytes / s / 1e9 for s in moved_s])
    said = "decode steps of both while KV moves, over those without"
    yield ratio(said, [busy / both for busy, both in zip(all_s, both_s, strict=True)])


def mover(source: Model, target: Model) -> Callable[[], None]:
    """Copies pages of every layer from one pool into the other, to places anywhere."""
    pages = min(MOVED_TOKENS, source.pool.slots) // PAGE
    device = source.pool.layers[0].device
    order = torch.randperm(source.pool.slots // PAGE, device=device)
    read, write = order[:pages], order.flip(0)[:pages]

    def move() -> None:
        for ours, theirs in zip(source.pool.layers, target.pool.layers, strict=True):
            theirs.index_copy_(0, write, ours.index_select(0, read))

    return move


def together_s(works: list[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each turn in which all works run at once, each on its own stream."""
    streams = [torch.cuda.Stream() for _ in works]
    found = []
    for turn in range(turns + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for stream, work in zip(streams, works, strict=True):
            with torch.cuda.stream(stream):
                work()
        torch.cuda.synchronize()
        if turn >= 3:
            found.append(time.perf_counter() - begin)
    return found


def ratio(said: str, values: list[float]) -> Claim:
    """A figure with its interval."""
    return reported(said, median(values), (min(values), max(values)))
