"""Image classification end to end on small made images: data, reference, compression, labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.graph import CutConfig
from plait.compression.quantisers import QuantLayer
from plait.compression.tasks.classification import Classification
from plait.compression.tasks.images import load
from plait.compression.tasks.networks import NetworkConfig, logits
from plait.compression.tasks.train import TrainConfig, changed, evaluate, train
from plait.spec.errors import UserError


def draw(folder, count: int, seed: int) -> None:
    """Images of three classes: how high a bright square lies, with noise."""
    rng = np.random.default_rng(seed)
    for label, corner in enumerate([(0, 4), (8, 4), (4, 4)]):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 160, (16, 16, 3))
            pixels[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Classification:
    root = tmp_path_factory.mktemp("images")
    draw(root / "train", 120, 0)
    draw(root / "test", 40, 1)
    made = Classification(
        train_data=root / "train",
        test_data=root / "test",
        reference=root / "reference.safetensors",
        network=NetworkConfig("vgg-small", classes=3, pixels=16, width=0.0625),
        cut=CutConfig(bits=(2.0, 4.0, 8.0), multiple=4),
        train_images=260,
        validation_images=100,
        test_images=120,
        pretraining=TrainConfig(images=3000, rate=0.05, batch=64, shift=0),
        short=TrainConfig(images=520, rate=0.02, batch=64, shift=0, teach=0.5),
        calibration_images=64,
        cache=root / "cache",
    )
    made.pretrain()
    return made


def test_the_reference_has_learnt_and_stays(task):
    classifier = task.open()
    accuracy, _ = evaluate(classifier.reference, classifier.test)
    assert accuracy > 0.5
    before = task.reference.read_bytes()
    task.pretrain()
    assert task.reference.read_bytes() == before


def test_more_bits_are_better_and_training_helps(task):
    classifier = task.open()
    space = classifier.network.space
    top_D = space.count_D - 1
    low_D = np.array([0 if gene.knob != "prune" else len(gene.levels) - 1 for gene in space.genes])
    high, low = (classifier.measure(space.decode(d), Fidelity.L0, 0) for d in (top_D, low_D))
    trained = classifier.measure(space.decode(low_D), Fidelity.L1, 0)
    assert high["loss"] < low["loss"]
    assert trained["loss"] < low["loss"]


def test_labels_are_the_same_in_another_process(task, tmp_path):
    space = task.traced().space
    policies = [space.decode(index_D) for index_D in space.sample(np.random.default_rng(0), 2)]
    found = []
    for processes in (0, 2):
        labels = Labels(tmp_path / f"{processes}.jsonl")
        evaluator = Evaluator(task, space.digest, labels, EvaluatorConfig(processes))
        found.append([label.metric for label in evaluator.measure(policies, Fidelity.L1, 0)])
    assert found[0] == found[1]
    assert all(0 <= metric["score"] <= 100 for metric in found[0])


def test_what_is_built_is_cut_and_quantised(task):
    classifier = task.open()
    space = classifier.network.space
    policy = space.decode(np.zeros(len(space), dtype=np.int64))
    module = classifier.build(policy, Fidelity.L0, 0)
    layers = {name: part for name, part in module.named_modules() if isinstance(part, QuantLayer)}
    assert layers.keys() == {layer.name for layer in classifier.network.layers}
    for layer in classifier.network.layers:
        built = layers[layer.name]
        if layer.unit:
            assert built.weight_bits == policy.choice(layer.unit).weight_bits == 2
            assert set(built.codes().unique().tolist()) <= {-1, 0, 1}
        kept = layer.channels * (1 - (policy.choice(layer.name).prune or 0))
        assert built.layer.weight.shape[0] == round(kept)
    example = classifier.validation.pixels_NCHW[:2].float()
    assert logits(module, example).shape == (2, 3)


def test_the_protocol_changes_with_what_labels_depend_on(task):
    same = replace(task, cache=None)
    other = replace(task, short=replace(task.short, rate=0.01))
    assert same.protocol == task.protocol != other.protocol


def test_images_are_read_and_kept(task, tmp_path):
    whole = load(task.train_data, 16, 360, tmp_path)
    again = load(task.train_data, 16, 360, tmp_path)
    assert torch.equal(whole.pixels_NCHW, again.pixels_NCHW)
    assert len(list(tmp_path.iterdir())) == 1
    assert whole.classes_N.bincount().tolist() == [120, 120, 120]
    assert load(task.train_data, 16, 30).classes_N.bincount().tolist() == [10, 10, 10]
    small = load(task.train_data, 8, 3)
    expected = whole.pixels_NCHW[:3].float().unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)).round()
    assert (small.pixels_NCHW.float() - expected).abs().max() <= 1
    with pytest.raises(UserError, match="nothing at"):
        load(tmp_path / "absent", 16, 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        load(tmp_path / "empty", 16, 10)


def test_changed_images_are_moved_and_mirrored():
    pixels = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    pixels[:, :, 3, 2] = 255
    moved = changed(pixels, 2, torch.Generator().manual_seed(0))
    assert moved.shape == (64, 3, 8, 8)
    rows, columns = (moved[:, 0] > 1).nonzero()[:, 1:].T.tolist()
    assert set(rows) == {1, 2, 3, 4, 5}
    assert set(columns) == {0, 1, 2, 3, 4} | {7, 6, 5, 4, 3}


def test_a_reference_that_is_damaged_is_refused(task, tmp_path):
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="remove it to train anew"):
        replace(task, reference=tmp_path / "broken").open()
    with pytest.raises(UserError, match="no reference"):
        assert replace(task, reference=tmp_path / "absent").protocol


def test_training_that_diverges_is_told(task):
    classifier = task.open()
    with pytest.raises(UserError, match="smaller rate"):
        train(classifier.reference, classifier.train_images, TrainConfig(images=4000, rate=1e6, batch=64), 0)
