"""Steps of groups give the logits and tokens of one process, whatever members, masters and retention."""

import random

import pytest
import torch

from plait.model.model import Model, ModelConfig
from plait.worker.config import LinkConfig
from tests.scale import scaled, seed
from tests.tiny import VOCAB, tiny_folder
from tests.worker.band import Band
from tests.worker.elastic_script import ElasticScript
from tests.worker.script import Task

DEGREES = {1, 2, 3, 4}
CLOSE = 1e-5
"""Largest difference of logits, as a share of the largest one."""


def whole(model: Model, tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits [T, V] of one process that computes a sequence at once."""
    from plait.model.check import cut

    return model.forward(cut(torch.tensor(tokens), [(0, 0, len(tokens))], model.pool.page)).clone()


def tasks(rng: random.Random, count: int) -> list[Task]:
    lengths = [rng.choice((rng.randint(1, 8), rng.randint(1, 90))) for _ in range(count)]
    return [Task(tuple(rng.randrange(VOCAB) for _ in range(n)), rng.randint(1, 12)) for n in lengths]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "page", "links", "exact"),
    [
        ("llama", 1, LinkConfig(room_bytes=4096), True),
        ("qwen3", 16, LinkConfig(), True),
        ("gpt_neox", 16, LinkConfig(room_bytes=1024), True),
        ("llama", 16, LinkConfig(ways=()), True),
        ("llama", 16, LinkConfig(), False),
        ("gpt_neox", 16, LinkConfig(room_bytes=512), False),
        ("qwen3", 1, LinkConfig(ways=()), False),
    ],
)
def test_any_group_draws_what_one_process_draws(family, page, links, exact, tmp_path):
    folder = tiny_folder(tmp_path, family)
    alone = Model(ModelConfig(str(folder), slots=1024, page=page, exact=True))
    rng, worst, compared, ties = random.Random(seed()), 0.0, 0, 0
    degrees: set[int] = set()
    counts: dict[str, int] = {}
    with Band(folder, 4, links, exact=exact, slots=1024, page=page) as band:
        step = done = 0
        # A few scripts may miss a degree: so many more are played until none is missing.
        while done <= scaled(500) // 4 or (degrees != DEGREES and done < 100):
            done += 1
            script = ElasticScript(band, tasks(rng, rng.randint(1, 4)), rng, step)
            drawn = script.run()
            step, degrees = script.step, degrees | script.degrees
            counts = {name: counts.get(name, 0) + count for name, count in script.counts.items()}
            logits = {}
            for player in band.players:
                logits |= player.executor.logits
                player.executor.logits.clear()
            for i, live in script.live.items():
                theirs_TV = whole(alone, live.tokens)
                for at, token in enumerate(live.drawn, len(live.task.prompt)):
                    ours_V, theirs_V = logits[i, at], theirs_TV[at - 1]
                    worst = max(worst, float((ours_V - theirs_V).abs().max() / theirs_V.abs().max()))
                    compared += 1
                    if token != int(theirs_V.argmax()):
                        best, second = theirs_V.topk(2).values.tolist()
                        assert best - second <= 1e-4 * abs(best)
                        ties += 1
            assert len(drawn) == len(script.live)
        onward = sum(player.executor.planner.onward for player in band.players)
        sizes = [player.executor.model.tapes_of_groups for player in band.players]
        tapes = [any(size.asked or size.queries for size in each) for each in sizes]
    print(f"{compared} tokens, {ties} near ties, logits within {worst:.1e}; {counts}; {onward} plans onward")
    assert onward
    assert worst <= CLOSE
    assert ties <= 1 + compared // 10_000
    assert degrees == DEGREES
    assert all(counts.values())
    assert all(tapes) == (not exact and bool(links.ways))


def test_plans_go_on_where_the_tables_of_rows_grow(tmp_path):
    """A drawn token gives the arrays of rows more room than they began with."""
    rng = random.Random(0)
    with Band(tiny_folder(tmp_path, "llama"), 2, slots=1024, page=16) as band:
        prompt = tuple(rng.randrange(VOCAB) for _ in range(245))
        script = ElasticScript(band, [Task(prompt, 24)], rng)
        assert [len(drawn) for drawn in script.run()] == [24]
        assert all(player.executor.rows.tokens_RL.shape[1] > 256 for player in band.players)
        assert sum(player.executor.planner.onward for player in band.players) > 12
