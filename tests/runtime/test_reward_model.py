"""A reward model learns what is chosen, and alignments can use it."""

import asyncio
import json
from pathlib import Path

import pytest

from plait.runtime.reward_model import PairsRecipe, open_reward_training, read_pairs
from plait.spec.errors import UserError
from plait.text.tokenizer import Tokenizer
from plait.training.orders import OptimiserConfig
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    tiny_folder(root, "llama", initializer_range=0.05).rename(root / "model")
    rows = [
        {"prompt": f"say {number}", "chosen": f"yes {number}", "rejected": f"no {number}"}
        for number in range(40)
    ]
    for name, part in (("train", rows[:30]), ("test", rows[30:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def test_held_out_pairs_are_told_apart(workplace, tmp_path):
    optimiser = OptimiserConfig(lr=3e-3)
    recipe = PairsRecipe("model", "train.jsonl", "test.jsonl", 12, 8, micro_batch=2, optimiser=optimiser)

    async def run() -> dict[str, float]:
        async with open_reward_training(recipe, workplace, tmp_path / "out") as training:
            return await training.run()

    assert asyncio.run(run()) == {"accuracy": 1.0, "pairs": 10}
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["reward/loss"] for line in lines]
    assert losses[-1] < 0.5 * losses[0]
    assert json.loads((tmp_path / "out" / "reward" / "config.json").read_text())["num_labels"] == 1


def test_pairs_that_are_too_long_are_left_out(workplace):
    tokenizer = Tokenizer.load(workplace / "model")
    assert len(read_pairs(workplace / "train.jsonl", tokenizer, 512)) == 30
    with pytest.raises(UserError, match="raise max_tokens"):
        read_pairs(workplace / "train.jsonl", tokenizer, 3)
