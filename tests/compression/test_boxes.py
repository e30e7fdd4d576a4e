"""Boxes, and mean average precision against pycocotools."""

import contextlib
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.compression.tasks.average_precision import COCO_THRESHOLDS, Found, mean_average_precision
from plait.compression.tasks.boxes import matched, offsets, overlap, placed, suppress
from tests.scale import scaled


def boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 0.7
    return torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(count, 2, generator=generator)], 1)


def scene(seed: int, images: int, classes: int) -> tuple[list[Found], list[Found]]:
    """True boxes, and detections of which some are near them."""
    generator = torch.Generator().manual_seed(seed)
    found, truth = [], []
    for _ in range(images):
        count = int(torch.randint(0, 6, (1,), generator=generator))
        true = boxes(count, generator)
        kinds = torch.randint(0, classes, (count,), generator=generator)
        near = true + 0.03 * torch.randn(count, 4, generator=generator)
        near = torch.cat([near[:, :2], torch.maximum(near[:, 2:], near[:, :2] + 0.01)], 1)
        other = boxes(4, generator)
        seen = torch.cat([near, near * 1.01, other])
        of = torch.cat([kinds, kinds, torch.randint(0, classes, (4,), generator=generator)])
        score = (torch.rand(len(seen), generator=generator) * 20).round() / 20  # ties on purpose
        found.append(Found(seen, of, score))
        truth.append(Found(true, kinds, torch.zeros(count)))
    return found, truth


def by_pycocotools(found: list[Found], truth: list[Found], classes: int) -> tuple[float, float]:
    """mAP@[.5:.95] and mAP@.5."""
    coco = pytest.importorskip("pycocotools.coco", reason="the oracle is not installed")
    from pycocotools.cocoeval import COCOeval

    def rows(image: int, one: Found) -> list[dict]:
        made = []
        for box, kind, score in zip(one.box_N4.double(), one.class_N, one.score_N.double(), strict=True):
            left, top, right, bottom = (box * 1000).tolist()
            size = [left, top, right - left, bottom - top]
            made.append({"image_id": image, "category_id": int(kind), "bbox": size, "score": float(score)})
        return made

    true = [row for image, one in enumerate(truth, 1) for row in rows(image, one)]
    for number, row in enumerate(true, 1):
        row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        gold = coco.COCO()
        gold.dataset = {
            "images": [{"id": number} for number in range(1, len(truth) + 1)],
            "categories": [{"id": number} for number in range(classes)],
            "annotations": true,
        }
        gold.createIndex()
        seen = gold.loadRes([row for image, one in enumerate(found, 1) for row in rows(image, one)])
        judge = COCOeval(gold, seen, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]] * 4, ["all", "small", "medium", "large"]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_precision_is_that_of_pycocotools(seed: int):
    found, truth = scene(seed, images=12, classes=3)
    whole, half = by_pycocotools(found, truth, 3)
    assert mean_average_precision(found, truth, 3) == pytest.approx(half, abs=1e-6)
    assert mean_average_precision(found, truth, 3, COCO_THRESHOLDS) == pytest.approx(whole, abs=1e-6)


def test_precision_of_perfect_and_of_no_detections():
    _, truth = scene(0, images=6, classes=3)
    perfect = [Found(one.box_N4, one.class_N, torch.ones(len(one.class_N))) for one in truth]
    nothing = [Found(one.box_N4[:0], one.class_N[:0], one.score_N[:0]) for one in truth]
    assert mean_average_precision(perfect, truth, 3, COCO_THRESHOLDS) == pytest.approx(1)
    assert mean_average_precision(nothing, truth, 3) == 0


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_offsets_and_their_inverse(seed: int):
    generator = torch.Generator().manual_seed(seed)
    box, anchor = boxes(20, generator), boxes(20, generator)
    torch.testing.assert_close(placed(offsets(box, anchor), anchor), box, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_suppressed_boxes_overlap_a_better_one(seed: int, count: int):
    generator = torch.Generator().manual_seed(seed)
    box, score = boxes(count, generator), torch.rand(count, generator=generator)
    kept = suppress(box, score, 0.4, 100)
    assert (score[kept].diff() <= 0).all()
    assert (overlap(box[kept], box[kept]).fill_diagonal_(0) <= 0.4).all()
    for number in set(range(count)) - set(kept.tolist()):
        better = kept[score[kept] >= score[number]]
        assert (overlap(box[number : number + 1], box[better]) > 0.4).any()


def test_every_true_box_has_an_anchor():
    generator = torch.Generator().manual_seed(0)
    anchor, truth = boxes(50, generator), boxes(5, generator)
    number = matched(anchor, truth, 0.5)
    assert set(range(5)) <= set(number.tolist())
    assert (matched(anchor, truth[:0], 0.5) == -1).all()
