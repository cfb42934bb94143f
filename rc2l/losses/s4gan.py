"""Losses of S4GAN (Mittal et al. 2019): discriminator, feature matching, choice of pseudo labels by score."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.label_map import IGNORE


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Binary cross-entropy: real label maps towards 1, predicted ones towards 0. Shape: (B,) each."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def feature_matching_loss(real_features: Tensor, fake_features: Tensor) -> Tensor:
    """Mean absolute difference of the mean discriminator features; no gradient to the real side.

    Shape:
        (B_l, F) of labels, (B_u, F) of predictions.
    """
    return (real_features.detach().mean(0) - fake_features.mean(0)).abs().mean()


def one_hot_targets(targets: Tensor, probabilities: Tensor) -> Tensor:
    """Labels as the discriminator sees them: one-hot, and the prediction where a pixel is ignored; no gradient.

    Otherwise ignored pixels alone would tell real from predicted.

    Shape:
        targets (B, H, W) integers; probabilities (B, K, H, W). Result (B, K, H, W).
    """
    ignored = targets == IGNORE
    hot = F.one_hot(torch.where(ignored, 0, targets.long()), probabilities.shape[1]).movedim(-1, 1)
    return torch.where(ignored[:, None], probabilities.detach(), hot.to(probabilities.dtype))
