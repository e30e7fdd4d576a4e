"""Boxes in images: overlap, suppression, anchors and offsets from them.

A box is (left, top, right, bottom) in shares of the image. Legend: N, M boxes, A anchors.
"""

import torch
from torch import Tensor

CENTRE, SIZE = 0.1, 0.2
"""Scales of offsets, as in SSD (Liu et al., ECCV 2016)."""


def overlap(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """Intersection over union (N, M)."""
    low = torch.maximum(one_N4[:, None, :2], other_M4[:, :2])
    high = torch.minimum(one_N4[:, None, 2:], other_M4[:, 2:])
    shared_NM = (high - low).clamp_min(0).prod(-1)
    area_N, area_M = ((box[:, 2:] - box[:, :2]).prod(-1) for box in (one_N4, other_M4))
    return shared_NM / (area_N[:, None] + area_M - shared_NM).clamp_min(1e-12)


def suppress(box_N4: Tensor, score_N: Tensor, most: float, count: int) -> Tensor:
    """Numbers of at most `count` boxes, best first; none overlaps a better one by more than `most`."""
    order_N = score_N.argsort(descending=True, stable=True)
    overlap_NN = overlap(box_N4[order_N], box_N4[order_N])
    kept: list[int] = []
    alive_N = torch.ones(len(order_N), dtype=torch.bool)
    for place in range(len(order_N)):
        if alive_N[place]:
            kept.append(place)
            if len(kept) == count:
                break
            alive_N &= overlap_NN[place] <= most
    return order_N[torch.tensor(kept, dtype=torch.int64)]


def offsets(box_A4: Tensor, anchor_A4: Tensor) -> Tensor:
    """How far boxes are from anchors, in the anchors' sizes."""
    (centre_A2, size_A2), (at_A2, wide_A2) = _split(box_A4), _split(anchor_A4)
    return torch.cat([(centre_A2 - at_A2) / wide_A2 / CENTRE, (size_A2 / wide_A2).log() / SIZE], -1)


def placed(offset_A4: Tensor, anchor_A4: Tensor) -> Tensor:
    """Boxes from offsets (..., A, 4); inverse of `offsets`."""
    at_A2, wide_A2 = _split(anchor_A4)
    centre = at_A2 + offset_A4[..., :2] * CENTRE * wide_A2
    # No box is a hundred times as large as its anchor; larger powers would overflow.
    half = wide_A2 * (offset_A4[..., 2:] * SIZE).clamp(-5, 5).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def matched(anchor_A4: Tensor, truth_M4: Tensor, least: float) -> Tensor:
    """For each anchor the number of its true box, or -1; each true box has at least one of its own."""
    if not len(truth_M4):
        return torch.full((len(anchor_A4),), -1)
    overlap_AM = overlap(anchor_A4, truth_M4)
    best_A, number_A = overlap_AM.max(1)
    number_A = torch.where(best_A >= least, number_A, -1)
    free_AM = overlap_AM.clone()
    for number in range(len(truth_M4)):
        best = int(free_AM[:, number].argmax())
        number_A[best] = number
        free_AM[best] = -1
    return number_A


def _split(box: Tensor) -> tuple[Tensor, Tensor]:
    return (box[..., :2] + box[..., 2:]) / 2, (box[..., 2:] - box[..., :2]).clamp_min(1e-6)
