"""Detection end to end on small made images in Pascal VOC's and COCO's forms."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.compression.complexity import at_levels, macs
from plait.compression.evaluator import Fidelity
from plait.compression.graph import CutConfig, prune, trace
from plait.compression.quantisers import in_floats
from plait.compression.tasks.annotated import read_coco, read_voc
from plait.compression.tasks.average_precision import Found
from plait.compression.tasks.detection import HEADS, Detection, called, mirrored, precision
from plait.compression.tasks.detector import Detector, DetectorConfig, anchors, detections
from plait.compression.tasks.train import TrainConfig
from plait.spec.errors import UserError

CLASSES = ("dark", "bright")


def draw(folder, split: str, count: int, seed: int) -> None:
    """Grey images with one or two squares, dark or bright, as VOC annotates them."""
    rng = np.random.default_rng(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        name = f"{split}{number}"
        pixels = rng.integers(110, 140, (96, 128, 3))
        things = []
        for _ in range(rng.integers(1, 3)):
            size, kind = int(rng.integers(24, 40)), int(rng.integers(2))
            left, top = int(rng.integers(0, 128 - size)), int(rng.integers(0, 96 - size))
            pixels[top : top + size, left : left + size] = 240 if kind else 20
            ends = {"xmin": left, "ymin": top, "xmax": left + size, "ymax": top + size}
            box = "".join(f"<{end}>{value}</{end}>" for end, value in ends.items())
            things.append(f"<object><name>{CLASSES[kind]}</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        xml = f"<annotation>{''.join(things)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
        names.append(name)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Detection:
    root = tmp_path_factory.mktemp("voc")
    for seed, (split, count) in enumerate((("train", 48), ("val", 16), ("test", 16))):
        draw(root / "data", split, count, seed)
    made = Detection(
        data=root / "data",
        classes=CLASSES,
        reference=root / "reference.safetensors",
        detector=DetectorConfig(classes=2, pixels=64, width=8, blocks=(1, 1, 1)),
        cut=CutConfig(bits=(2.0, 4.0, 8.0), multiple=4, answers=HEADS),
        pretraining=TrainConfig(images=1600, rate=0.02, batch=16, clip=5.0),
        short=TrainConfig(images=96, rate=0.005, batch=16, clip=5.0),
    )
    made.pretrain()
    return made


def test_the_reference_finds_squares(task):
    finder = task.open()
    assert precision(finder.reference, finder.test) > 0.4


def test_eight_bits_hardly_matter_and_two_do(task):
    finder = task.open()
    space = finder.network.space
    top_D = space.count_D - 1
    whole, low = (finder.measure(space.decode(d), Fidelity.L0, 0) for d in (top_D, np.zeros_like(top_D)))
    trained = finder.measure(space.decode(np.zeros_like(top_D)), Fidelity.L1, 0)
    assert whole["score"] > low["score"]
    assert trained["score"] > low["score"]
    assert whole["map"] > 100 * precision(finder.reference, finder.validation) - 15


def test_heads_are_left_whole_and_work_is_as_computed(task):
    finder = task.open()
    space = finder.network.space
    heads = [layer for layer in finder.network.layers if layer.name in HEADS]
    assert [(layer.unit, layer.cut_by, layer.fixed_bits) for layer in heads] == [(None, None, 8.0)] * 2
    index_D = space.count_D // 2
    module = in_floats(finder.build(space.decode(index_D), Fidelity.L0, 0))
    counted = trace(module, torch.zeros(1, 3, 64, 64), called, CutConfig(answers=HEADS))
    (expected,) = at_levels(macs(space, finder.network.layers), space, index_D)
    assert sum(layer.macs for layer in counted.layers) / 1e6 == pytest.approx(expected)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_answers_and_anchors_are_as_many(backbone):
    detector = Detector(DetectorConfig(pixels=96, width=8, backbone=backbone)).eval()
    answers = detector(torch.zeros(2, 3, 96, 96))
    assert answers.shape == (2, len(anchors(96)), 8)
    assert len(detections(answers, detector.anchor_A4)) == 2


def test_a_detector_on_mobilenetv2_is_cut_with_its_depthwise_layers():
    config = DetectorConfig(classes=2, pixels=64, width=16, backbone="mobilenetv2")
    cut = CutConfig(bits=(2.0, 4.0, 8.0), multiple=4, answers=HEADS)
    detector, example = Detector(config).eval(), torch.zeros(1, 3, 64, 64)
    network = trace(detector, example, called, cut)
    depthwise = [layer for layer in network.layers if layer.depthwise]
    assert len(depthwise) == 13
    for layer in depthwise:
        assert any(layer.name in group and layer.fed_by in group for group in network.groups)
    for seed in range(3):
        small = Detector(config).eval()
        index_D = network.space.sample(np.random.default_rng(seed), 1)[0]
        prune(small, example, called, network, network.space.decode(index_D))
        counted = trace(small, example, called, cut)
        (expected,) = at_levels(macs(network.space, network.layers), network.space, index_D)
        assert sum(layer.macs for layer in counted.layers) / 1e6 == pytest.approx(expected)
    with pytest.raises(UserError, match="choose one of resnet18, mobilenetv2"):
        Detector(DetectorConfig(backbone="vgg"))


def test_boxes_are_mirrored_with_their_images():
    image = torch.zeros(3, 10, 20)
    image[:, 2:4, 3:7] = 1
    boxes = Found(torch.tensor([[0.15, 0.2, 0.35, 0.4]]), torch.tensor([0]), torch.ones(1))
    for across in (False, True):
        for upside in (False, True):
            turned, moved = mirrored(image, boxes, across, upside)
            left, top, right, bottom = (
                (moved.box_N4[0] * torch.tensor([20, 10, 20, 10])).round().int().tolist()
            )
            assert turned[:, top:bottom, left:right].min() == 1
            assert turned.sum() == image.sum()


def test_both_forms_of_annotation_say_the_same(task, tmp_path):
    voc = read_voc(task.data, "val", 64, CLASSES)
    told = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "dark"}, {"id": 9, "name": "bright"}],
    }
    for number, (one, name) in enumerate(
        zip(voc.truth, (task.data / "ImageSets/Main/val.txt").read_text().split(), strict=True)
    ):
        told["images"].append({"id": number, "file_name": f"{name}.jpg"})
        for box, kind in zip(one.box_N4 * torch.tensor([128, 96, 128, 96]), one.class_N, strict=True):
            left, top, right, bottom = box.tolist()
            size = [left, top, right - left, bottom - top]
            told["annotations"].append({"image_id": number, "category_id": (7, 9)[int(kind)], "bbox": size})
    told["annotations"].append({"image_id": 0, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    (tmp_path / "coco.json").write_text(json.dumps(told))
    coco = read_coco(tmp_path / "coco.json", task.data / "JPEGImages", 64)
    assert coco.classes == CLASSES
    assert torch.equal(coco.pixels_NCHW, voc.pixels_NCHW)
    for one, other in zip(coco.truth, voc.truth, strict=True):
        torch.testing.assert_close(one.box_N4, other.box_N4)
        assert torch.equal(one.class_N, other.class_N)


def test_what_cannot_be_read_is_told(task, tmp_path):
    with pytest.raises(UserError, match="has an object bright: choose classes dark"):
        read_voc(task.data, "val", 64, ("dark",))
    with pytest.raises(UserError, match=r"there is no .*nowhere\.txt"):
        read_voc(task.data, "nowhere", 64, CLASSES)
    with pytest.raises(UserError, match="there is no"):
        read_coco(tmp_path / "absent.json", tmp_path, 64)
