"""Alignments of tiny models from end to end: fused and serial learn the same, resumed runs go on exactly."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from plait.model import check
from plait.model.config import ModelConfig
from plait.model.inputs import Adapted
from plait.model.model import Model
from plait.model.weights_file import read
from plait.runtime import align_setup
from plait.runtime.align_setup import check_memory, check_tokenizers, model_folders, open_alignment
from plait.runtime.prompts import Prompts
from plait.runtime.recipe import read_recipe
from plait.runtime.reward_model import read_pairs_recipe
from plait.runtime.trainer import Trainer
from plait.sim.recorded import Recorded
from plait.sim.scenario import core_from
from plait.sim.world import World
from plait.spec.errors import EngineFailure, UserError
from plait.spec.event import Rollout, Scored
from plait.text.tokenizer import Tokenizer
from plait.training.cut import Head, load
from plait.workload.journal import Entry, History, read_journal, replay
from tests.adapters import adapter
from tests.runtime.alignments import align, furnish, metrics, recipe
from tests.scale import some

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A tiny model, prompts and a reward function."""
    return furnish(tmp_path_factory.mktemp("align"))


def simulated(history: History) -> list[Entry]:
    """The same iterations in virtual time, with the durations and answers of the live ones."""
    recorded, entries = Recorded(history.entries), []

    def note(now_ns, event, commands):
        entries.append(Entry(now_ns, event, tuple(commands)))

    World(core_from(history.config), recorded, [note]).run(recorded.inputs)
    return entries


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_fused_and_serial_curves_are_the_same(workplace, tmp_path):
    serial = align(workplace, tmp_path / "serial", recipe(workplace, train={"fusion": "off"}))
    fused = align(
        workplace, tmp_path / "fused", recipe(workplace, train={"fusion": "search", "split_backward": True})
    )
    assert serial == fused
    assert len(serial) == 2
    assert abs(serial[0]["actor/first_ratio"] - 1) < 1e-5
    assert serial[1]["rollout_gap"] < 1e-4  # the generator has the trainer's new weights
    assert (tmp_path / "fused" / "actor" / "config.json").is_file()
    weights = [sorted((tmp_path / name / "actor").glob("*.safetensors")) for name in ("serial", "fused")]
    assert [a.read_bytes() for a in weights[0]] == [b.read_bytes() for b in weights[1]]
    assert json.loads((tmp_path / "fused" / "timeline.json").read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_weights_handed_over_while_the_critic_trains_are_the_same(workplace, tmp_path, monkeypatch):
    apart = []
    for first in (False, True):
        monkeypatch.setattr(Trainer, "is_shorter_apart", lambda *_, first=first: first)
        apart.append(align(workplace, tmp_path / f"{first}", recipe(workplace)))
    assert apart[0] == apart[1]
    for first in (False, True):
        trace = json.loads((tmp_path / f"{first}" / "timeline.json").read_text())["traceEvents"]
        assert all("critic" in each["name"] for each in trace[-8:]) == first  # a mini-batch of one model


@pytest.mark.usefixtures("quick_workers")
def test_a_resumed_run_is_the_run_that_was_not_stopped(workplace, tmp_path):
    whole = align(workplace, tmp_path / "whole", recipe(workplace))
    first = recipe(workplace, iterations=1)
    align(workplace, tmp_path / "parts", first)
    resumed = align(workplace, tmp_path / "parts", recipe(workplace), resume=True)
    assert resumed == whole


@pytest.mark.usefixtures("quick_workers")
def test_a_killed_rank_ends_the_run_with_a_sentence(workplace, tmp_path):
    async def run() -> None:
        async with open_alignment(recipe(workplace), workplace, tmp_path / "killed") as alignment:
            alignment.trainer.crew.processes[1].kill()
            await alignment.run()

    with pytest.raises(EngineFailure, match="rank 1 ended"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "said", "step"),
    [
        ({"rolout": {}}, "unknown field rolout", "did you mean rollout"),
        ({"train": {"mikro_batch": 2}}, "unknown field train.mikro_batch", "did you mean train.micro_batch"),
        ({"data": {"xyz": 2}}, "unknown field data.xyz", "known are path, prompt"),
        ({"iterations": "many"}, "iterations", "should be a valid integer"),
        ({"train": {"ranks": 0}}, "train.ranks", "at least 1"),
        ({"train": {"ranks": 3}}, "cannot be cut into 3 stages", "use fewer stages"),
        ({"rollout": {"tail": {"tune": True}}}, "two instances", "raise rollout.instances"),
        ({"models": {"reward": "model"}}, "exactly one", "name the one that is to score"),
        ({"train": {"mini_batches": 3}}, "3 mini-batches", "change rollout.prompts"),
        ({"experience": {"estimator": "grpo"}, "rollout": {"samples": 1}}, "compares", "samples to 2"),
        ({"models": {"reward_function": "reward.py:broken"}}, "returned nan", "return a finite number"),
        ({"models": {"reward_function": "reward.py:fails"}}, "ZeroDivisionError", "mend it"),
        ({"models": {"reward_function": "reward.py:absent"}}, "no function", "name after the colon"),
        ({"models": {"actor": "nowhere"}}, "nowhere", "folder|alias|hub"),
        ({"data": {"path": "absent.jsonl"}}, "no data set", "set data.path"),
        ({"data": {"path": "empty.jsonl"}}, "no prompt", "give other data"),
        ({"data": {"prompt": "question"}}, "column question", "set data.prompt"),
        ({"rollout": {"max_tokens": 600}}, "context of 512", "lower data.max_prompt_tokens"),
        ({"rollout": {"refills": 1}}, "left out", "drop_uninformative to true"),
        ({"train": {"tp": 3}}, "shared evenly", "set train.tp to what divides both"),
        ({"train": {"tp": 2, "lora": {}}}, "adapter", "set train.tp to 1"),
        ({"train": {"lora": {"rank": 0}}}, "lora", "rank of 1 or more"),
        ({"train": {"backend": "nccl"}}, "there are 0", "train.backend to gloo"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(workplace, tmp_path, changes, said, step):
    """With a sentence that says what is wrong and what to do."""
    (workplace / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=f"(?s)(?=.*{said})(?=.*({step}))"):
        align(workplace, tmp_path / "never", recipe(workplace, **changes))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("text", "step"), [(None, "name a YAML file"), ("a: [", "expected"), ("- 1", "such as `iterations: 10`")]
)
def test_what_is_no_recipe_is_refused(tmp_path, text, step):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=step):
        read_recipe(path)


def test_a_model_with_another_tokenizer_is_refused(workplace, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workplace / "model", other)
    raw = json.loads((other / "tokenizer.json").read_text())
    raw["added_tokens"].pop()
    (other / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"another tokenizer.*choose one with the Actor's"):
        check_tokenizers({"actor": workplace / "model", "reward": other})


def test_too_little_memory_is_foretold(workplace, monkeypatch):
    monkeypatch.setattr(align_setup, "_free_bytes", lambda: 1_000_000)
    told = recipe(workplace)
    with pytest.raises(UserError, match=r"0.0 GB are free: use smaller models"):
        check_memory(told, model_folders(told, workplace))


def test_prompts_of_an_iteration_follow_from_the_seed(workplace):
    prompts = Prompts(
        workplace / "prompts.jsonl", recipe(workplace).data, Tokenizer.load(workplace / "model")
    )
    drawn = [prompt.given for at in range(5) for prompt in prompts.of(at, 3, seed=1)]
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == sorted(drawn[10:])
    assert drawn[3:6] == [prompt.given for prompt in prompts.of(1, 3, seed=1)]


@pytest.mark.usefixtures("quick_workers")
def test_fused_stages_change_nothing_that_is_learned(workplace, tmp_path):
    rollout = {"instances": 2, "max_tokens": 24}
    serial = align(workplace, tmp_path / "serial", recipe(workplace, rollout=rollout | {"repeat": 1}))
    tail = {"tail": {"tail_share": 0.5, "kept": 1}}
    fused = align(workplace, tmp_path / "fused", recipe(workplace, rollout=rollout | tail))
    assert serial == fused
    history = read_journal(tmp_path / "fused" / "journal-000000.jsonl")
    assert any(isinstance(entry.event, Scored) for entry in history.entries)
    assert replay(core_from(history.config), history.entries) is None
    assert simulated(history) == list(history.entries)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_a_tail_that_tunes_itself_changes_nothing_either(workplace, tmp_path):
    rollout = {"instances": 2, "max_tokens": 24}
    serial = align(workplace, tmp_path / "serial", recipe(workplace, rollout=rollout, iterations=3))
    tail = {"tail": {"tail_share": 0.5, "kept": 1, "tune": True}}
    tuned = align(workplace, tmp_path / "tuned", recipe(workplace, rollout=rollout | tail, iterations=3))
    assert serial == tuned
    history = read_journal(tmp_path / "tuned" / "journal-000000.jsonl")
    begun = [entry.event for entry in history.entries if isinstance(entry.event, Rollout)]
    assert begun[0].why == "as the recipe says"
    assert "foreseen from 8 lengths" in begun[1].why
    assert "foreseen from 16 lengths" in begun[2].why
    assert replay(core_from(history.config), history.entries) is None


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("estimator", some(["grpo", "rloo", "reinforce++", "reinforce++-baseline"], 1))
def test_estimators_without_a_critic_train_the_actor_alone(workplace, tmp_path, estimator):
    told = recipe(
        workplace,
        iterations=1,
        experience={"estimator": estimator},
        policy={"kl_coefficient": 0.01, "temperature": 0.9},
        train={"recompute": True},
    )
    (row,) = align(workplace, tmp_path / "run", told)
    assert row["actor/norm"] > 0
    assert not any(key.startswith("critic/") for key in row)
    assert abs(row["actor/first_ratio"] - 1) < 1e-5


@pytest.mark.usefixtures("quick_workers")
def test_one_process_learns_what_two_learn_to_the_bit(workplace, tmp_path):
    """Stages cut at no layer give the same gradients, summed in the same order."""
    rows, weights = [], []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        (row,) = align(workplace, out, recipe(workplace, iterations=1, train={"ranks": ranks}))
        rows.append(row)
        weights.append(load(out / "actor", Head.WORDS, 0).state_dict())
    close = {key: pytest.approx(value, rel=1e-12) for key, value in rows[1].items() if value is not None}
    assert rows[0] == rows[1] | close
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize(
    "changes", some([{"blocks": 2}, {"tp": 2}, {"blocks": 2, "tp": 2}, {"ranks": 1, "blocks": 2}], 1)
)
def test_other_processes_learn_what_two_learn(workplace, tmp_path, changes):
    """2 x 1 x 2, 1 x 2 x 2, 2 x 2 x 2 and 2 x 1 x 1 (data x tensor x pipeline) against 1 x 1 x 2."""
    train = {"mini_batches": 1, "split_backward": True}
    (one,), (more,) = (
        align(workplace, tmp_path / name, recipe(workplace, iterations=1, train=train | given))
        for name, given in (("one", {}), ("more", changes))
    )
    numbers = {key: value for key, value in one.items() if value is not None}
    assert more == one | {key: pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in numbers.items()}
    weights = [load(tmp_path / name / "actor", Head.WORDS, 0).state_dict() for name in ("one", "more")]
    start = load(workplace / "model", Head.WORDS, 0).state_dict()
    moved = sum((weights[0][name] - start[name]).abs().sum() for name in start)
    apart = sum((weights[0][name] - weights[1][name]).abs().sum() for name in start)
    assert apart < 0.01 * moved


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("train", [{"tp": 2}, {"ranks": 1, "blocks": 2}])
def test_other_processes_resume_as_if_nothing_had_happened(workplace, tmp_path, train):
    told = {"train": train}
    whole = align(workplace, tmp_path / "whole", recipe(workplace, **told))
    align(workplace, tmp_path / "parts", recipe(workplace, iterations=1, **told))
    assert align(workplace, tmp_path / "parts", recipe(workplace, **told), resume=True) == whole


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_groups_that_teach_nothing_are_made_up_for(workplace, tmp_path):
    """Two of five prompts have groups whose scores are all the same, so one round of two may be too few."""
    told = {
        "models": {"reward_function": "reward.py:picky"},
        "experience": {"estimator": "grpo", "drop_uninformative": True},
        "rollout": {"prompts": 2, "samples": 4, "refills": 6},
        "kl": {"coefficient": 0.0},
        "train": {"mini_batches": 1},
    }
    rows = align(workplace, tmp_path / "whole", recipe(workplace, iterations=4, **told))
    for row in rows:
        drawn = 2 * 4 * row["rounds"]
        assert row["kept"] * drawn >= 8 or row["rounds"] == 7
    assert any(1 < row["rounds"] < 7 for row in rows)
    align(workplace, tmp_path / "parts", recipe(workplace, iterations=2, **told))
    assert align(workplace, tmp_path / "parts", recipe(workplace, iterations=4, **told), resume=True) == rows


@pytest.mark.usefixtures("quick_workers")
def test_a_checkpoint_of_another_run_or_layout_is_refused(workplace, tmp_path):
    align(workplace, tmp_path / "run", recipe(workplace, iterations=1))
    with pytest.raises(UserError, match="go on from them with --resume"):
        align(workplace, tmp_path / "run", recipe(workplace))
    with pytest.raises(UserError, match="give them their old values"):
        align(workplace, tmp_path / "run", recipe(workplace, train={"tp": 2}), resume=True)
    with pytest.raises(UserError, match="start without --resume"):
        align(workplace, tmp_path / "absent", recipe(workplace), resume=True)


def served(base: Path, folder: Path, merged: Path) -> None:
    """Beside its base model the adapter gives what the merged model gives."""
    tokens_T, counts_R = torch.arange(20) * 7 % 250, np.array([20])
    models = [Model(ModelConfig(str(each), slots=64, page=16, dtype="float32")) for each in (base, merged)]
    models[0].adapters.load(adapter(folder, 1))
    inputs = check.cut(tokens_T, [(0, 0, 20)], 16)
    plain_TV = models[0].forward(inputs)
    ours_TV = models[0].forward(inputs, Adapted.of_rows(np.array([1]), counts_R))
    check.compare(ours_TV, models[1].forward(inputs), torch.float32)
    assert float((ours_TV - plain_TV).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers
def test_an_adapter_is_trained_merged_and_resumed(workplace, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters are peft's")
    told = {"train": {"lora": {"rank": 4}, "actor": {"lr": 1e-2}, "split_backward": True}}
    whole = align(workplace, tmp_path / "whole", recipe(workplace, **told))
    assert whole[1]["rollout_gap"] < 1e-4  # the generator has the merged weights
    assert whole[0]["kl"] < 1e-6 < whole[1]["kl"]  # the reference is the Actor as it was
    align(workplace, tmp_path / "parts", recipe(workplace, iterations=1, **told))
    saved = read(tmp_path / "parts/checkpoints/iteration-000001/actor-00000-weights.safetensors")
    assert all(".lora_" in name for name in saved)
    assert align(workplace, tmp_path / "parts", recipe(workplace, **told), resume=True) == whole
    merged = load(tmp_path / "whole" / "actor", Head.WORDS, 0).state_dict()
    start = load(workplace / "model", Head.WORDS, 0)
    assert any(not torch.equal(merged[name], value) for name, value in start.state_dict().items())
    served(workplace / "model", tmp_path / "whole" / "adapter", tmp_path / "whole" / "actor")
    loaded = peft.PeftModel.from_pretrained(start, tmp_path / "whole" / "adapter").merge_and_unload()
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, merged[name], atol=1e-6), name


@pytest.mark.usefixtures("quick_workers")
def test_a_reward_model_scores_and_starts_the_critic(workplace, tmp_path):
    models = {"actor": "model", "reward": "model"}
    told = recipe(workplace, models=models | {"reward_function": None}, iterations=1)
    (row,) = align(workplace, tmp_path / "run", told)
    assert row["critic/norm"] > 0
    assert row["score"] != 0


@pytest.mark.usefixtures("quick_workers")
def test_a_killed_generator_changes_nothing(workplace, tmp_path):
    """Its samples are drawn again elsewhere, or by the worker that takes its place with the same weights."""
    told = recipe(workplace, rollout={"instances": 2, "max_tokens": 24})
    wanted = align(workplace, tmp_path / "whole", told)

    async def run() -> None:
        async with open_alignment(told, workplace, tmp_path / "hurt") as alignment:
            victim = alignment.engine.fleet.members[0]
            steps = iter(range(1_000_000))
            loop = asyncio.get_running_loop()
            kills = []

            def look(*_: object) -> None:
                if next(steps) == 40:
                    kills.append(loop.create_task(victim.kill()))

            alignment.engine.watch(look)
            await alignment.run()
            assert kills

    asyncio.run(run())
    assert metrics(tmp_path / "hurt") == wanted


def test_the_recipes_that_ship_can_be_read():
    for path in sorted(RECIPES.glob("*.yaml")):
        if "align" in yaml.safe_load(path.read_text()):
            continue  # of several stages; tests/cli/test_cli_run.py reads these
        assert read_pairs_recipe(path) if path.name.startswith("reward") else read_recipe(path)
