"""What a group's step sends and keeps: retention is free, one chunk is all that is held beside the shares."""

import random
from itertools import pairwise

import pytest
import torch

from plait.model.model import Model, ModelConfig
from plait.spec.sampling import Opened, SamplingParams
from plait.spec.step import Extent, Keep, Row, Span, Step
from tests.scale import seed
from tests.tiny import VOCAB, tiny_folder
from tests.worker.band import Band
from tests.worker.test_group_steps import CLOSE, whole

LENGTH = 203
GREEDY = SamplingParams(temperature=0, max_tokens=4)


def prefill(number: int, request: int, tokens: tuple[int, ...], keep: list[Keep], size: int) -> Step:
    """A prompt that all members compute in a ring."""
    spans = []
    for instance in range(size):
        count = sum(each.count for each in keep if each.instance == instance)
        if count:
            spans.append(Span(instance, 0, (Extent(0, -(-count // 16) * 16),)))
    row = Row(request, 0, len(tokens), size, True, True, tuple(spans), (len(tokens) - 1) % size, tuple(keep))
    closed = (request - 1,) if request else ()
    return Step(number, tuple(range(size)), (row,), opened=(request,), closed=closed)


def divisions(rng: random.Random, size: int) -> list[list[Keep]]:
    """Everything stays with one member, each computes and keeps a part, random intervals."""
    cuts = sorted({0, LENGTH, *(rng.randrange(LENGTH) for _ in range(6))})
    third = [Keep(rng.randrange(size), a, b - a) for a, b in pairwise(cuts)]
    even = [Keep(i, i * LENGTH // size, (i + 1) * LENGTH // size - i * LENGTH // size) for i in range(size)]
    return [[Keep(i, 0, LENGTH)] for i in range(size)] + [even, third]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [2, 4])
def test_retention_sends_nothing_and_the_ring_is_one_chunk(size, tmp_path):
    rng = random.Random(seed())
    tokens = tuple(rng.randrange(VOCAB) for _ in range(LENGTH))
    sent = set()
    with Band(tiny_folder(tmp_path, "llama"), size, slots=512, page=16) as band:
        models = [player.executor.model for player in band.players]
        for at, keep in enumerate(divisions(rng, size)):
            before = [player.exchange.sent_bytes for player in band.players]
            (draw,) = band.run(
                prefill(at + 1, at, tokens, keep, size), (Opened(at, tokens, LENGTH, GREEDY, ()),)
            )
            assert draw.tokens
            counts = [player.exchange.sent_bytes - b for player, b in zip(band.players, before, strict=True)]
            sent.add(tuple(counts))
            for player in band.players:
                rows = player.executor.rows
                kept = sum(each.count for each in keep if each.instance == player.instance)
                assert rows.here(rows.states[at]) == kept
                assert rows.covered_R[rows.states[at].index] == -(-kept // 16) * 16
    assert len(sent) == 1, "who keeps what makes no difference to what is sent"
    longest = -(-LENGTH // size)
    for model in models:
        blocks = -(-longest // model.pool.page)
        assert model.group.ring_bytes <= blocks * max(kv[:1].nbytes for kv in model.pool.layers)


@pytest.mark.timeout(300)
def test_groups_compute_in_bf16(tmp_path):
    """Within bf16's rounding of one process in float32."""
    folder, size = tiny_folder(tmp_path, "llama"), 3
    rng = random.Random(seed())
    tokens = tuple(rng.randrange(VOCAB) for _ in range(LENGTH))
    keep = [Keep(2, 0, 90), Keep(0, 90, LENGTH - 90)]
    with Band(folder, size, slots=512, page=16, exact=False, dtype="bfloat16") as band:
        band.run(prefill(1, 0, tokens, keep, size), (Opened(0, tokens, LENGTH, GREEDY, ()),))
        master = band.players[(LENGTH - 1) % size]
        ours_V = master.executor.logits[0, LENGTH]
        alone = Model(master.executor.model.config)
        theirs_V = whole(alone, tokens)[-1]
    exact_V = whole(Model(ModelConfig(str(folder), slots=512, page=16, exact=True)), tokens)[-1]
    gap, own = (ours_V - exact_V).abs().max(), (theirs_V - exact_V).abs().max()
    assert CLOSE < gap <= 2 * own + 1e-2 * exact_V.abs().max()
    assert torch.isfinite(ours_V).all()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_groups_keep_keys_of_int8(dtype, tmp_path):
    """Scales pass in the ring with what they scale, and are read where others ask."""
    folder, size = tiny_folder(tmp_path, "llama"), 3
    rng = random.Random(seed())
    tokens = tuple(rng.randrange(VOCAB) for _ in range(LENGTH))
    keep = [Keep(2, 0, 90), Keep(0, 90, LENGTH - 90)]
    kept = {"slots": 512, "page": 16, "exact": False, "dtype": dtype, "kv_dtype": "int8"}
    with Band(folder, size, **kept) as band:
        (draw,) = band.run(prefill(1, 0, tokens, keep, size), (Opened(0, tokens, LENGTH, GREEDY, ()),))
        longer = (*tokens, *draw.tokens)
        spans = tuple(Span(i, 0, (Extent(0, 224 if i == 0 else 96),)) for i in (0, 2))
        row = Row(0, LENGTH, 1, 1, False, True, spans, 0, tuple(keep))
        band.run(Step(2, (0, 1, 2), (row,), opened=(0,)), (Opened(0, longer, LENGTH, GREEDY, ()),))
        logits = [player.executor.logits for player in band.players]
        ours = [logits[(LENGTH - 1) % size][0, LENGTH], logits[0][0, LENGTH + 1]]
        alone = Model(band.players[0].executor.model.config)
        theirs = whole(alone, longer)[-2:]
    exact = whole(Model(ModelConfig(str(folder), slots=512, page=16, exact=True)), longer)[-2:]
    for ours_V, theirs_V, exact_V in zip(ours, theirs, exact, strict=True):
        gap, own = (ours_V - exact_V).norm(), (theirs_V - exact_V).norm()
        assert CLOSE * exact_V.norm() < gap <= 2 * own + 1e-2 * exact_V.norm()
