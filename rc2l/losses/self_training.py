"""Cross-entropy on labels and pseudo labels of pixels (ReCo eq. 5, the family of CutOut, CutMix and ClassMix)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.label_map import IGNORE


def pixel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    image_weights: Tensor | None = None,
    average: Callable[[Tensor], Tensor] = lambda totals: totals,
) -> Tensor:
    """Mean over the valid pixels of the batch of image weight times cross-entropy; 0, with a graph, where none is.

    The official ReCo code leaves pixels of a cross-entropy of exactly 0 out of the mean, and gives NaN where everything
    is ignored; here every valid pixel counts.

    Args:
        logits: (B, K, H, W).
        targets: (B, H, W) integers in 0..K-1 or 255.
        image_weights: (B,) at least 0; ones by default.
        average: mean of a tensor over processes, so that N processes give the gradient of one with the joined batch.
    """
    loss = F.cross_entropy(logits, targets.long(), ignore_index=IGNORE, reduction="none").flatten(1).sum(1)
    if image_weights is not None:
        loss = loss * image_weights
    valid = (targets != IGNORE).sum().to(loss.dtype)
    return loss.sum() / average(valid).clamp(min=torch.finfo(valid.dtype).tiny)


def confident_share(confidence: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """eta of ReCo eq. 5 for each image: share of its valid pixels whose confidence is at least delta_s.

    The official code counts ignored pixels among the confident ones, so that the share can exceed 1; here it cannot.

    Shape:
        confidence (B, H, W) in [0, 1]; targets (B, H, W) integers. Result (B,) in [0, 1], 0 without any valid pixel.
    """
    valid = targets != IGNORE
    confident = valid & (confidence >= threshold)
    return confident.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
