"""`plait compress` takes decoders as it takes classifiers: budgets in, a folder that loads out, resumed."""

import json
import re

import pytest

pytest.importorskip("torch", reason="needs the compress extra")
pytest.importorskip("torch_pruning", reason="needs the compress extra")

import torch
from typer.testing import CliRunner

from plait.cli.main import app
from plait.model.config import ModelConfig, kv_dtype_of
from plait.model.model import Model
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny decoder and two files of text."""
    root = tmp_path_factory.mktemp("compress")
    tiny_folder(root, hidden_size=128, intermediate_size=256, head_dim=32, initializer_range=0.1)
    for name, factor in (("train", 7), ("test", 11)):
        lines = [f"{n * factor % 97} apples and {n * n % 89} pears make a pie {n}." for n in range(300)]
        (root / f"{name}.txt").write_text("\n\n".join(lines))
    return root


def run(root, *more: str, budgets=("size=0.4",), out="out"):
    told = ["--train", str(root / "train.txt"), "--test", str(root / "test.txt"), "--out", str(root / out)]
    told += ["--tokens", "256", "--labels", "14", *more]
    told += [part for budget in budgets for part in ("--budget", budget)]
    return CliRunner().invoke(app, ["compress", str(root / "tiny-llama-0"), *told], catch_exceptions=True)


def test_a_sweep_of_a_decoder_shares_labels(world):
    told = ["--train", str(world / "train.txt"), "--test", str(world / "test.txt"), "--tokens", "256"]
    told += ["--labels", "14", "--out", str(world / "sweep"), "--budget", "size=0.5,0.4", "--bits", "3,4,8"]
    done = CliRunner().invoke(app, ["compress", "sweep", str(world / "tiny-llama-0"), *told])
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report == json.loads((world / "sweep" / "sweep.json").read_text())
    large, small = report["rows"]
    assert small["used"] <= small["limit"] < large["limit"]
    assert small["measured"] <= large["measured"], "what fits the smaller budget fits the larger one"
    assert [point["limit"] for point in report["front"]] == [small["limit"], large["limit"]]
    assert len((world / "sweep" / "labels.jsonl").read_text().splitlines()) == report["labels"]


def test_a_decoder_is_compressed_and_again_from_its_labels(world):
    more = ("--widths", "0.25,0", "--kv-bits", "8,16")
    done = run(world, *more, budgets=("size=0.4", "kv=0.6"))
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report == json.loads((world / "out" / "report.json").read_text())
    folder = world / "out" / "model"
    model = Model(ModelConfig(str(folder), slots=64))
    assert json.loads((folder / "config.json").read_text())["plait_kv_dtype"] == "int8"
    assert kv_dtype_of(folder, "auto") == "int8"
    assert kv_dtype_of(folder, "bfloat16") == "bfloat16"
    assert {layer.dtype for layer in model.pool.layers} == {torch.int8}
    assert len(model.shape.layers) == 2
    assert report["bytes"] == (folder / "model.safetensors").stat().st_size
    assert report["costs"]["size"] == pytest.approx(report["bytes"], rel=0.03, abs=12_000)
    assert report["test"]["kl"] > 0
    for point in report["front"]:
        assert point["interval"][0] < point["predicted_kl"] < point["interval"][1]
    policy = CompressionPolicy.parse((world / "out" / "best.json").read_text())
    assert json.loads(policy.json()) == report["policy"]
    labels = (world / "out" / "labels.jsonl").read_text()
    assert len(labels.splitlines()) == report["labels"]
    again = run(world, *more, budgets=("size=0.4", "kv=0.6"))
    assert json.loads(again.stdout) == report
    assert (world / "out" / "labels.jsonl").read_text() == labels


def test_labels_of_a_search_that_was_killed_are_not_made_again(world):
    whole = run(world, out="whole")
    assert whole.exit_code == 0, whole.exception
    kept = (world / "whole" / "labels.jsonl").read_text().splitlines(keepends=True)
    (world / "torn").mkdir()
    (world / "torn" / "labels.jsonl").write_text("".join(kept[:9]) + kept[9][:40])
    torn = run(world, out="torn")
    assert json.loads(torn.stdout) == json.loads(whole.stdout)
    found = (world / "torn" / "labels.jsonl").read_text().splitlines(keepends=True)
    assert found[:9] == kept[:9]
    assert len(found) == len(kept)


@pytest.mark.parametrize(
    ("more", "budgets", "match"),
    [
        ((), ("size=0.01",), "no policy has size below .* ask for more"),
        ((), ("watts=0.5",), "choose one of size, memory, kv, tpot, step"),
        ((), ("size=1.5",), "no share between 0 and 1"),
        (("--target", "vllm"), ("tpot=5",), "leave tpot out, or choose target plait"),
        (("--target", "simulated"), ("size=0.5",), "choose one of plait, transformers"),
        (("--group", "48"), ("size=0.5",), "choose 32 or 64 or 128"),
        (("--bits", "4;8"), ("size=0.5",), "write numbers with commas"),
        (("--tokens", "100000"), ("size=0.5",), "ask for fewer tokens"),
        (("--test", "nowhere.txt"), ("size=0.5",), "there is no text at nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_told(world, more, budgets, match):
    found = run(world, *more, budgets=budgets, out="refused")
    assert isinstance(found.exception, UserError), found.output
    assert re.search(match, str(found.exception))


@pytest.mark.slow
def test_a_time_budget_is_held_by_policies_timed_on_the_engine(world):
    done = run(world, budgets=("tpot=1000",), out="timed")
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report["costs"]["tpot"] < 1e9
    assert report["steps"]["constant_ns"] > 0
    assert not (world / "timed" / "steps").exists()
