"""The loss of UniMatch and FixMatch: cross-entropy on confident pseudo labels, averaged over all valid pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.label_map import IGNORE


def confident_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    confidence: Tensor,
    threshold: float,
    average: Callable[[Tensor], Tensor] = lambda totals: totals,
) -> Tensor:
    """Sum of the cross-entropy of the pixels of at least a confidence, divided by the number of all valid pixels.

    Few confident pixels so make a small loss; 0, with a graph, where no pixel is valid.

    Args:
        logits: (B, K, H, W).
        targets: (B, H, W) integers in 0..K-1, or 255 where not valid.
        confidence: (B, H, W) in [0, 1].
        threshold: in [0, 1]; pixels below it add nothing, but are counted.
        average: mean of a tensor over processes, so that N processes give the gradient of one with the joined batch.
    """
    loss = F.cross_entropy(logits, targets.long(), ignore_index=IGNORE, reduction="none")
    valid = (targets != IGNORE).sum().to(loss.dtype)
    return (loss * (confidence >= threshold)).sum() / average(valid).clamp(min=torch.finfo(valid.dtype).tiny)
