"""Boundary IoU (Cheng et al. 2021): how well masks agree near their contours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.evaluation.confusion import count_labels
from rc2l.structures.label_map import IGNORE

#: Beyond the image; no class has this id (K is at most 254).
_OUTSIDE = 254


def boundary_counts(pred: Tensor, target: Tensor, num_classes: int, width: float) -> Tensor:
    """Pixels of each class near its contours, for Boundary IoU over a data set.

    Of the mask of a class, those pixels count that are no farther than d from a pixel of another label, an ignored one
    or the outside of the image, in the larger of the two distances along rows and columns (the authors erode by a
    square). d is the share ``width`` of the image's diagonal, at least one pixel. Ignored pixels count in neither map.
    Boundary IoU of a class is ``both / (truth + prediction - both)`` of the sums over all images.

    Shape:
        pred (H, W) integers in [0, K); target (H, W) uint8 in [0, K) or 255; both on one device, which is not waited
        for. Result (3, K) int64: pixels near both contours in both masks, near the true one, near the predicted one.
    """
    d = max(round(width * math.hypot(*target.shape)), 1)
    labels = torch.stack([target, torch.where(target == IGNORE, IGNORE, pred).to(torch.uint8)])
    truth, predicted = torch.where(_near_another(labels, d), labels, IGNORE)
    both = torch.where(truth == predicted, truth, IGNORE)
    return torch.stack([count_labels(each, num_classes) for each in (both, truth, predicted)])


def _near_another(labels: Tensor, d: int) -> Tensor:
    """(N, H, W) uint8 -> bool: is there another label among the (2d+1)² pixels around?"""
    padded = F.pad(labels, (d, d, d, d), value=_OUTSIDE)
    least, most = (_extreme(_extreme(padded, d, 1, which), d, 2, which) for which in (torch.minimum, torch.maximum))
    return least != most


def _extreme(values: Tensor, d: int, dim: int, which) -> Tensor:
    """Minimum or maximum of each 2d+1 neighbours along a dimension, which is shortened by 2d."""
    width = 1
    while width < 2 * d + 1:
        step = min(width, 2 * d + 1 - width)  # twice as many pixels each time
        length = values.shape[dim] - step
        values = which(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        width += step
    return values
