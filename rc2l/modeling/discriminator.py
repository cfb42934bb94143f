"""The discriminator of S4GAN: does a label map belong to an image because a person drew it?"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Discriminator(nn.Module):
    """Four strided convolutions on an image with its class probabilities, global pooling, one score (S4GAN).

    Args:
        num_classes: K.
        width: channels of the first convolution; doubled in each of the next three.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        widths = [3 + num_classes, width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.dropout = nn.Dropout2d(0.5)
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits and pooled features.

        Shape:
            images (B, 3, H, W) normalised; probabilities (B, K, H, W); H and W at least 16. Results (B,), above 0 for
            drawn by a person, and (B, 8 width).
        """
        x = torch.cat([images, probabilities], dim=1)
        for conv in self.convs:
            x = self.dropout(F.leaky_relu(conv(x), 0.2))
        features = x.mean((2, 3))
        return self.score(features)[:, 0], features
