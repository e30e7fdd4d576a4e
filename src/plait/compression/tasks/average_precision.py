"""Mean average precision as COCO defines it, equal to pycocotools'.

Legend: N detections, M true boxes, T thresholds of overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.compression.tasks.boxes import overlap

MOST = 100
"""Detections of a class and image that count."""
RECALLS = np.linspace(0, 1, 101)
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))


@dataclass(frozen=True)
class Found:
    """Detections or true boxes of one image."""

    box_N4: Tensor
    class_N: Tensor
    score_N: Tensor
    """Of true boxes it is not read."""


def mean_average_precision(
    found: Sequence[Found], truth: Sequence[Found], classes: int, thresholds: Sequence[float] = (0.5,)
) -> float:
    """Mean over thresholds and those classes that occur, between 0 and 1."""
    values = [
        average_precision(
            [_of_class(image, number) for image in found], [_of_class(image, number) for image in truth], at
        )
        for number in range(classes)
        for at in thresholds
        if any((image.class_N == number).any() for image in truth)
    ]
    return float(np.mean(values)) if values else 0.0


def average_precision(found: Sequence[Found], truth: Sequence[Found], threshold: float) -> float:
    """Of one class: precision at 101 recalls, each the best at that recall or a higher one."""
    scores, hits = [], []
    for seen, true in zip(found, truth, strict=True):
        order = np.argsort(-seen.score_N.double().numpy(), kind="mergesort")[:MOST]
        scores.append(seen.score_N.double().numpy()[order])
        hits.append(_hits(seen.box_N4.double()[torch.from_numpy(order)], true.box_N4.double(), threshold))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit_N = np.concatenate(hits)[order]
    count = sum(len(true.box_N4) for true in truth)
    right_N = hit_N.cumsum()
    precision_N = right_N / np.arange(1, len(hit_N) + 1)
    envelope_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    place = np.searchsorted(right_N / count, RECALLS, side="left")
    return float(np.append(envelope_N, 0.0)[np.minimum(place, len(envelope_N))].mean())


def _hits(box_N4: Tensor, truth_M4: Tensor, threshold: float) -> NDArray[np.bool_]:
    """Which boxes, best first, meet a true box that no better one has: the one they overlap most."""
    overlap_NM = overlap(box_N4, truth_M4).numpy()
    free_M = np.ones(len(truth_M4), dtype=bool)
    hit_N = np.zeros(len(box_N4), dtype=bool)
    for number, row_M in enumerate(overlap_NM):
        open_M = np.where(free_M, row_M, -1.0)
        if len(open_M) and open_M.max() >= min(threshold, 1 - 1e-10):
            # Of several equal ones pycocotools takes the last.
            free_M[len(open_M) - 1 - open_M[::-1].argmax()] = False
            hit_N[number] = True
    return hit_N


def _of_class(image: Found, number: int) -> Found:
    of_N = image.class_N == number
    return Found(image.box_N4[of_N], image.class_N[of_N], image.score_N[of_N])
