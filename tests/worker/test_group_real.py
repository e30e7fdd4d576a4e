"""The default model's long prompts on four instances are those of one process."""

import random
from dataclasses import replace

import pytest
import torch

from plait.model.check import cut
from plait.model.hub import resolve
from plait.model.model import Model, ModelConfig
from plait.spec.errors import UserError
from tests.scale import seed
from tests.worker.band import Band
from tests.worker.elastic_script import ElasticScript
from tests.worker.script import Task
from tests.worker.test_group_steps import CLOSE

LENGTH, OUTPUTS, SLOTS = 6000, 8, 6144


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_prompt_of_6000_tokens_on_four_instances():
    try:
        folder = resolve("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    rng = random.Random(seed())
    prompt = tuple(rng.randrange(1000, 40_000) for _ in range(LENGTH))
    with Band(folder, 4, patience_s=300, slots=SLOTS, page=16) as band:
        script = ElasticScript(band, [Task(prompt, OUTPUTS)], rng)
        (drawn,) = script.run()
        logits = {at: row_V for player in band.players for (_, at), row_V in player.executor.logits.items()}
    alone = Model(ModelConfig(str(folder), slots=SLOTS, page=16, exact=True))
    tokens = prompt + tuple(drawn)
    inputs = cut(torch.tensor(tokens), [(0, 0, len(tokens))], 16)
    theirs_LV = alone.forward(replace(inputs, wanted_L=torch.arange(LENGTH - 1, len(tokens) - 1)))
    gaps = []
    for at, theirs_V in enumerate(theirs_LV, LENGTH):
        gaps.append(float((logits[at] - theirs_V).abs().max() / theirs_V.abs().max()))
        best, second = theirs_V.topk(2).values.tolist()
        assert tokens[at] == int(theirs_V.argmax()) or best - second <= 1e-4 * abs(best)
    print(f"logits within {max(gaps):.1e}; groups of {sorted(script.degrees)}; {script.counts}")
    assert max(gaps) <= CLOSE
