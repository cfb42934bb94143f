"""Bipartite matching on sampled points (Mask2Former)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rc2l.losses.points import PointSampling, RegionPoints, point_costs, sample_maps
from rc2l.modeling.matcher import HungarianMatcher
from rc2l.structures.regions import Regions


class PointMatcher(HungarianMatcher):
    """Matches at the lowest sum of -p(class), binary cross-entropy and dice on points, the same for all of an image.

    Args:
        class_weight, mask_weight, dice_weight: of the three costs.
        sampling: its number of points, drawn evenly and anew for each decoder layer.
    """

    def __init__(
        self, class_weight: float, mask_weight: float, dice_weight: float, sampling: PointSampling | None = None
    ) -> None:
        super().__init__(class_weight, mask_weight, dice_weight)
        self.sampling = sampling or PointSampling()

    @torch.no_grad()
    def cost_of_layers(
        self, layers: Sequence[tuple[Tensor, Tensor]], regions: Regions, at_regions: bool = False
    ) -> Tensor:
        """(L, B, Q, T) costs; points have no resolution, so ``at_regions`` changes nothing."""
        costs = []
        with torch.autocast(regions.index.device.type, enabled=False):
            points = RegionPoints(regions)
            image = torch.arange(len(regions.index), device=regions.index.device)
            for layer in layers:
                logits, masks = (x if x.dtype == torch.float64 else x.float() for x in layer)
                coords = points.to_valid(self.sampling.draw(len(masks), self.sampling.num_points, masks), image)
                mask, dice = point_costs(sample_maps(masks, coords), points.all_labels(coords))
                probs = logits.softmax(-1)
                slots = regions.labels[:, None].expand(-1, probs.shape[1], -1)
                cost = self.mask_weight * mask + self.dice_weight * dice
                costs.append(cost - self.class_weight * probs.gather(2, slots))
        return torch.stack(costs)
