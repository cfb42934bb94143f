"""Dropout of whole channels of the encoder's features (UniMatch, UniMatch V2)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureDropout:
    """Which images of a batch lose half of the channels of every encoder feature; the others are doubled.

    The batch is ``kept`` images that stay as they are, then ``dropped`` ones that each lose channels drawn with
    probability 1/2, then two views of ``paired`` images, of which the second loses just the channels that the first
    keeps, but for a random half of these images, which stay as they are.
    """

    kept: int
    dropped: int = 0
    paired: int = 0

    def __call__(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shape: name -> (B, C_i, h_i, w_i), results alike."""
        any_feature = next(iter(features.values()))
        whole = torch.randperm(self.paired, device=any_feature.device) < self.paired // 2
        return {name: self._drop(feature, whole) for name, feature in features.items()}

    def _drop(self, feature: Tensor, whole: Tensor) -> Tensor:
        C = feature.shape[1]
        drawn = 2.0 * (torch.rand(self.dropped + self.paired, C, device=feature.device) < 0.5)
        independent, first = drawn.split([self.dropped, self.paired])
        second = torch.where(whole[:, None], 1, 2 - first)
        first = torch.where(whole[:, None], 1, first)
        scale = torch.cat([independent, first, second]).to(feature.dtype)
        return torch.cat([feature[: self.kept], feature[self.kept :] * scale[:, :, None, None]])
