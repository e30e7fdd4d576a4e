"""`plait compress` cuts a network for real, goes on where it was, and tells what would work."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the compress extra")
pytest.importorskip("torch_pruning", reason="needs the compress extra")

from PIL import Image
from typer.testing import CliRunner

from plait.cli.main import app
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes, dark and bright."""
    root = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    for label, light in enumerate((60, 160)):
        (root / "images" / str(label)).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(light - 50, light + 50, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / str(label) / f"{number}.png")
    return root


def run(root, *more: str, budgets=("bops=0.02",)):
    told = ["--train", str(root / "images"), "--test", str(root / "images"), "--out", str(root / "out")]
    told += ["--pixels", "8", "--classes", "2", "--width", "0.0625", "--epochs", "4", "--labels", "14"]
    told += ["--train-images", "80", "--validation-images", "40", "--test-images", "60", *more]
    told += [part for budget in budgets for part in ("--budget", budget)]
    return CliRunner().invoke(app, ["compress", "vgg-small", *told], catch_exceptions=True)


def test_a_network_is_compressed_and_again_from_its_labels(images):
    done = run(images, budgets=("bops=0.02", "size=0.2"))
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report == json.loads((images / "out" / "report.json").read_text())
    assert report["shares"]["bops"] <= 0.02
    assert report["shares"]["size"] <= 0.2
    assert report["bytes"] == (images / "out" / "network.safetensors").stat().st_size
    shares = [point["share"] for point in report["front"]]
    assert shares == sorted(shares)
    for point in report["front"]:
        assert point["interval"][0] < point["predicted"] < point["interval"][1]
    policy = CompressionPolicy.parse((images / "out" / "best.json").read_text())
    assert json.loads(policy.json()) == report["policy"]
    labels = (images / "out" / "labels.jsonl").read_text()
    assert len(labels.splitlines()) == report["labels"] <= 14
    again = run(images, budgets=("bops=0.02", "size=0.2"))
    assert json.loads(again.stdout) == report
    assert (images / "out" / "labels.jsonl").read_text() == labels


def test_a_network_for_an_engine_is_written_as_onnx(images):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the engine is not installed")
    done = run(images, "--target", "onnx", budgets=("size=0.2",))
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report["onnx_bytes"] == (images / "out" / "network.onnx").stat().st_size
    bits = {unit["act_bits"] for unit in report["policy"]["units"].values() if "act_bits" in unit}
    assert bits == {8.0}
    session = onnxruntime.InferenceSession(images / "out" / "network.onnx")
    (answers,) = session.run(None, {"images": np.zeros((3, 3, 8, 8), np.float32)})
    assert answers.shape == (3, 2)
    assert np.isfinite(answers).all()


def test_a_sweep_shares_labels(images):
    shared = ["--train", str(images / "images"), "--test", str(images / "images"), "--pixels", "8"]
    shared += ["--classes", "2", "--width", "0.0625", "--epochs", "4", "--train-images", "80"]
    shared += ["--validation-images", "40", "--test-images", "60", "--out", str(images / "sweep")]
    ask = ["compress", "sweep", "vgg-small", *shared, "--labels", "20"]
    done = CliRunner().invoke(app, [*ask, "--budget", "bops=0.06,0.02,0.01", "--plot"])
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report == json.loads((images / "sweep" / "sweep.json").read_text())
    assert [row["asked"] for row in report["rows"]] == [0.06, 0.02, 0.01]
    for row in report["rows"]:
        assert row["used"] <= row["limit"]
    # A smaller budget's policy is a larger one's, too.
    scores = [row["measured"] for row in report["rows"]]
    assert scores == sorted(scores, reverse=True)
    labels = (images / "sweep" / "labels.jsonl").read_text().splitlines()
    assert len(labels) == report["labels"] <= 20
    assert (images / "sweep" / "front.svg").read_text().startswith("<?xml")
    again = CliRunner().invoke(app, [*ask, "--budget", "bops=0.06,0.02,0.01"])
    assert json.loads(again.stdout) == report
    assert (images / "sweep" / "labels.jsonl").read_text().splitlines() == labels
    few = CliRunner().invoke(app, [*ask[:-1], "14", "--budget", "bops=0.06,0.02,0.01"])
    assert isinstance(few.exception, UserError)
    assert "too few for 3 budgets" in str(few.exception)
    unread = CliRunner().invoke(app, [*ask, "--budget", "bops=much"])
    assert "write numbers with commas" in str(unread.exception)


@pytest.mark.slow
def test_a_time_is_a_budget(images):
    """Layers are timed once; what is written is fast enough as far as the table goes."""
    told = ("--target", "int8", "--labels", "14")
    with pytest.raises(UserError, match=r"no policy has latency below .* ask for more"):
        raise run(images, *told, budgets=("latency=0.00001",)).exception
    table = (images / "out" / "latency.json").read_text()
    done = run(images, *told, budgets=("latency=1000", "size=0.2"))
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert 0 < report["latency_ms"]["predicted"] <= 1000
    assert report["latency_ms"]["measured"] > 0
    assert report["shares"].keys() == {"size"}
    assert (images / "out" / "latency.json").read_text() == table


@pytest.mark.parametrize(
    ("more", "budgets", "match"),
    [
        ((), ("bops=0.00001",), "no policy has bops below .* ask for more"),
        ((), ("watts=0.5",), "choose one of bops, macs, size, latency"),
        ((), ("latency=5",), "leave latency out, or choose target int8"),
        (("--target", "int8"), ("latency=-5",), "no time in milliseconds"),
        ((), ("bops=1.5",), "no share between 0 and 1"),
        ((), ("bops",), "write it like bops=0.03"),
        (("--target", "abacus"), ("bops=0.1",), "choose one of simulated"),
        (("--target", "int8"), ("bops=0.001",), "no policy has bops below"),
    ],
)
def test_what_cannot_be_done_is_told(images, more, budgets, match):
    found = run(images, *more, budgets=budgets)
    assert isinstance(found.exception, UserError), found.output
    assert re.search(match, str(found.exception))
