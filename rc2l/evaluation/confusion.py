"""Confusion matrix of label maps, and the scores that follow from it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rc2l.structures.label_map import IGNORE


def confusion_matrix(pred: Tensor, target: Tensor, num_classes: int, ignore_label: int = IGNORE) -> Tensor:
    """Count pixels by true and predicted class, on the device of the inputs and without waiting for it.

    Args:
        pred: (H, W) integers in [0, K).
        target: (H, W) integers in [0, K), or ``ignore_label`` where a pixel is not counted. Other values are the
            caller's to refuse: a check here would stall the device.
        num_classes: K.
        ignore_label: label that is not counted.

    Returns:
        (K, K) int64, element [truth, prediction].
    """
    if target.device.type == "cpu":
        # numpy counts four times as fast as torch's scatter, and small integers are quick to make.
        cells = np.empty(target.shape, np.int16 if num_classes < 128 else np.int32)
        cells[...] = target.numpy()
        cells[cells == ignore_label] = num_classes
        cells *= num_classes
        cells += pred.numpy().astype(np.uint8)
        counts = np.bincount(cells.ravel(), minlength=num_classes**2)[: num_classes**2]
        return torch.from_numpy(counts).view(num_classes, num_classes)
    target = target.long().flatten()
    cells = target * num_classes + pred.long().flatten()
    # Ignored pixels go to one more cell: masking them out would make a result of a size that the host has to wait for,
    # and so would bincount.
    cells = cells.masked_fill_(target == ignore_label, num_classes**2)
    counts = cells.new_zeros(num_classes**2 + 1).scatter_add_(0, cells, torch.ones_like(cells))
    return counts[:-1].view(num_classes, num_classes)


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class: uint8 of any shape -> (K,) int64, on the same device, which is not waited for."""
    if labels.device.type == "cpu":
        return torch.from_numpy(np.bincount(labels.numpy().ravel(), minlength=256)[:num_classes])
    flat = labels.long().flatten()
    return flat.new_zeros(256).scatter_add_(0, flat, torch.ones_like(flat))[:num_classes]


def scores_from_confusion(matrix: Tensor, class_names: Sequence[str], boundary: Tensor | None = None) -> dict:
    """Scores in percent.

    A class that is neither in the truth nor predicted is not applicable (NaN) and left out of the means. A class that
    is predicted but not in the truth has an IoU of 0, which counts in ``mIoU``, and no accuracy. Without any counted
    pixel everything is NaN.

    Args:
        matrix: (K, K) counts [truth, prediction].
        class_names: K names.
        boundary: what :func:`~rc2l.evaluation.boundary.boundary_counts` gave, summed over all images.

    Returns:
        ``mIoU``; ``mDice``, the mean over classes of twice the hits over true and predicted pixels; ``mean_accuracy``,
        the mean over classes in the truth; ``pixel_accuracy``; ``fwIoU``, the IoU weighted by each class's share of the
        true pixels; by class name ``IoU``, ``Dice``, ``accuracy`` and ``pixels`` (true pixels); and, with ``boundary``,
        ``boundary_mIoU`` and by class name ``boundary_IoU``.

    Raises:
        ValueError: the number of names is not K.
    """
    if matrix.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"confusion matrix has shape {tuple(matrix.shape)}, but there are {len(class_names)} class names"
        )
    pixels = matrix.sum(1).cpu()
    counts = matrix.cpu().double()
    truth, hits = counts.sum(1), counts.diagonal()
    # 0 / 0 is NaN, which is what "not applicable" is to be.
    iou = 100 * hits / (truth + counts.sum(0) - hits)
    accuracy = 100 * hits / truth
    dice = 200 * hits / (truth + counts.sum(0))
    by_class = {"IoU": iou, "Dice": dice, "accuracy": accuracy}
    scores = {
        "mIoU": iou.nanmean().item(),
        "mDice": dice.nanmean().item(),
        "mean_accuracy": accuracy.nanmean().item(),
        "pixel_accuracy": (100 * hits.sum() / truth.sum()).item(),
        "fwIoU": (iou * truth).nansum().div(truth.sum()).item(),
    }
    if boundary is not None:
        both, near_truth, near_prediction = boundary.cpu().double()
        by_class["boundary_IoU"] = 100 * both / (near_truth + near_prediction - both)
        scores["boundary_mIoU"] = by_class["boundary_IoU"].nanmean().item()
    scores |= {key: dict(zip(class_names, values.tolist(), strict=True)) for key, values in by_class.items()}
    return scores | {"pixels": dict(zip(class_names, pixels.tolist(), strict=True))}


def image_scores(matrix: Tensor) -> tuple[float, float]:
    """(mIoU, pixel accuracy) in percent of one image, by one copy to the host; see :func:`scores_from_confusion`.

    Args:
        matrix: (K, K) counts [truth, prediction].
    """
    truth, predicted, hits = torch.stack([matrix.sum(1), matrix.sum(0), matrix.diagonal()]).cpu().double()
    iou = 100 * hits / (truth + predicted - hits)
    return iou.nanmean().item(), (100 * hits.sum() / truth.sum()).item()


def format_score(score: float) -> str:
    """A percentage with two digits after the point, "n/a" for NaN."""
    return "n/a" if math.isnan(score) else f"{score:.2f}"
