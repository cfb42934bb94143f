"""Binary mask losses: focal, dice, and the L_mask that they make up (RC²L eq. 1 and 10, MaskFormer)."""

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
#: Smallest probability whose logarithm is taken where a loss gets probabilities instead of logits.
MIN_PROBABILITY = 1e-6


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of each mask; 0, with a graph, where there is none."""
    return (values * valid).flatten(-2).sum(-1) / valid.flatten(-2).sum(-1).clamp(min=1)


def focal_loss(
    logits: Tensor, masks: Tensor, valid: Tensor, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA
) -> Tensor:
    """Sigmoid focal loss of each mask, averaged over its valid pixels.

    Shape:
        logits (*, H, W); masks (*, H, W) bool; valid (*, H, W) bool or broadcastable. Result (*).
    """
    wrong = torch.where(masks, -logits, logits)  # logit of the wrong answer: cross-entropy is its softplus
    weight = torch.where(masks, alpha, 1 - alpha)
    return _masked_mean(weight * wrong.sigmoid().pow(gamma) * F.softplus(wrong), valid)


def focal_loss_of_probabilities(
    probs: Tensor, masks: Tensor, valid: Tensor, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA
) -> Tensor:
    """:func:`focal_loss` where only probabilities in [0, 1] are at hand; logarithms are cut at 1e-6."""
    wrong = torch.where(masks, 1 - probs, probs)
    weight = torch.where(masks, alpha, 1 - alpha)
    return _masked_mean(-weight * wrong.pow(gamma) * (1 - wrong).clamp(min=MIN_PROBABILITY).log(), valid)


def dice_loss(probs: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 sum(p y) + 1) / (sum p + sum y + 1) of each mask, over its valid pixels.

    Shape:
        probs (*, H, W) in [0, 1]; masks (*, H, W) bool; valid (*, H, W) bool or broadcastable. Result (*).
    """
    masks = masks & valid
    overlap = (probs * masks).flatten(-2).sum(-1)
    total = (probs * valid).flatten(-2).sum(-1) + masks.flatten(-2).sum(-1)
    return 1 - (2 * overlap + 1) / (total + 1)
