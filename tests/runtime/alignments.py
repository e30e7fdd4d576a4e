"""A workplace for tiny alignments: a model, prompts and reward functions, and recipes that use them."""

import asyncio
import json
from pathlib import Path

import yaml

from plait.runtime.align_setup import open_alignment
from plait.runtime.recipe import Recipe, read_recipe
from tests.tiny import tiny_folder

REWARD = """
def vowels(prompts, completions, **_):
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]

def picky(prompts, completions, **_):
    return [float("p" in prompt) * (1 + len(text)) for prompt, text in zip(prompts, completions)]

def broken(prompts, completions, **_):
    return [float("nan") for _ in completions]

def fails(prompts, completions, **_):
    return [1 / 0 for _ in completions]
"""


def furnish(root: Path) -> Path:
    """A tiny model, prompts and a reward function in a folder; returns it."""
    tiny_folder(root, "llama", initializer_range=0.05).rename(root / "model")
    rows = [json.dumps({"prompt": f"say {word}"}) for word in ("apple", "pear", "plum", "fig", "date")]
    (root / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (root / "reward.py").write_text(REWARD)
    return root


def recipe(root: Path, **changes) -> Recipe:
    """PPO on the tiny model, with changes of whole sections; also in `recipe.yaml`."""
    raw = {
        "models": {"actor": "model", "reward_function": "reward.py:vowels"},
        "data": {"path": "prompts.jsonl"},
        "iterations": 2,
        "seed": 1,  # its samples earn something, so there is something to learn from
        "rollout": {"prompts": 4, "samples": 2, "max_tokens": 8},
        "train": {"micro_batch": 2, "mini_batches": 2, "actor": {"lr": 1e-3}, "critic": {"lr": 1e-3}},
        "kl": {"coefficient": 0.05},
    }
    for section, values in changes.items():
        raw[section] = raw[section] | values if isinstance(values, dict) and section in raw else values
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return read_recipe(path)


def align(root: Path, out: Path, told: Recipe, **options) -> list[dict]:
    """Run it; the metrics without times."""

    async def run() -> None:
        async with open_alignment(told, root, out, **options) as alignment:
            await alignment.run()

    asyncio.run(run())
    return metrics(out)


def metrics(out: Path) -> list[dict]:
    """Of a run, without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds/")} for row in rows]
