"""Mask losses and matching costs on sampled points instead of all pixels (PointRend, Mask2Former)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.regions import Regions

#: Masks whose candidate points are in memory together.
_MASKS_AT_ONCE = 64


def draw_uniform(count: int, num_points: int, like: Tensor) -> Tensor:
    """(count, num_points, 2) coordinates from [0, 1), from torch's generator of the device."""
    return torch.rand(count, num_points, 2, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class PointSampling:
    """How many points of a mask are looked at, and which.

    Raises:
        ValueError: a value outside its range.
    """

    #: P, 1 or more.
    num_points: int = 12544
    #: Candidates per point, 1 or more.
    oversample_ratio: float = 3.0
    #: Share of the points that are the most uncertain candidates, in [0, 1]; the others are drawn evenly.
    importance_ratio: float = 0.75
    #: Gives ``(count, num_points, 2)`` coordinates.
    draw: Callable[[int, int, Tensor], Tensor] = draw_uniform

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise ValueError(f"{self}: num_points and oversample_ratio are 1 or more, importance_ratio is in [0, 1]")


def sample_maps(maps: Tensor, coords: Tensor) -> Tensor:
    """Bilinear values at points; zero outside.

    Shape:
        maps (N, C, h, w); coords (N, P, 2) as x, y, where 0..1 spans the whole map. Result (N, C, P).
    """
    return F.grid_sample(maps, 2 * coords[:, :, None] - 1, mode="bilinear", align_corners=False)[..., 0]


def _corners(coords: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(pixel, weight), each (*, 4), of the bilinear neighbours of points (*, 2); outside of the map the weight is 0."""
    x, y = (coords * coords.new_tensor([width, height]) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()
    pixels, weights = [], []
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weights.append((1 - (x - column).abs()) * (1 - (y - row).abs()) * inside)
        pixels.append((row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long())
    return torch.stack(pixels, -1), torch.stack(weights, -1)


class RegionPoints:
    """Labels of points in the regions of a batch. Ignored pixels have no influence, and no point lies in one.

    Args:
        regions: of B images of H x W pixels.
    """

    def __init__(self, regions: Regions) -> None:
        B, self.height, self.width = regions.index.shape
        self.num_slots = regions.labels.shape[1]
        valid = regions.valid.flatten(1)
        self._slots = torch.where(valid, regions.index.flatten(1), -2)  # -1: no region, -2: ignored
        self._counts = valid.sum(1)
        # Row by row: the valid pixels of an image, in order; one place more for what need not be kept.
        rank = torch.where(valid, valid.cumsum(1) - 1, valid.shape[1])
        pixels = torch.arange(valid.shape[1], device=valid.device).expand(B, -1)
        self._valid_pixels = torch.zeros(B, valid.shape[1] + 1, dtype=torch.int64, device=valid.device)
        self._valid_pixels.scatter_(1, rank, pixels)

    def to_valid(self, coords: Tensor, image: Tensor) -> Tensor:
        """Points that are spread evenly over an image, spread evenly over its valid pixels; where all are, unchanged.

        Shape:
            coords (N, P, 2) in [0, 1]; image (N,). Result (N, P, 2).
        """
        size = coords.new_tensor([self.width, self.height])
        scaled = coords * size
        column = scaled[..., 0].long().clamp(max=self.width - 1)
        row = scaled[..., 1].long().clamp(max=self.height - 1)
        count, total = self._counts[image][:, None], self.height * self.width
        inside = scaled - torch.stack((column, row), -1)
        # The place in reading order, as a share of the pixels, in float64: half of its bits say where in the pixel.
        place = ((row * self.width + column) + inside[..., 0].double()) * count / total
        rank = place.long().clamp(max=total - 1)
        pixel = self._valid_pixels[image[:, None], rank]
        x = pixel % self.width + (place - rank).to(coords.dtype)
        moved = torch.stack((x, pixel // self.width + inside[..., 1]), -1) / size
        return torch.where((count == total)[..., None], coords, moved)

    def labels(self, coords: Tensor, image: Tensor, slot: Tensor) -> Tensor:
        """(N, P) share of region ``slot`` (N,) of ``image`` (N,) in the valid neighbours of points (N, P, 2)."""
        pixels, weights = _corners(coords, self.height, self.width)
        found = self._slots[image[:, None, None], pixels]
        share = ((found == slot[:, None, None]) * weights).sum(-1)
        return share / (1 - ((found == -2) * weights).sum(-1)).clamp(min=1e-6)

    def all_labels(self, coords: Tensor) -> Tensor:
        """(B, T, P) :meth:`labels` of all T slots at points (B, P, 2) of each image."""
        B, P, _ = coords.shape
        pixels, weights = _corners(coords, self.height, self.width)
        found = self._slots[:, :, None].gather(1, pixels.flatten(1)[..., None]).view(B, P, 4)
        shares = weights.new_zeros(B, self.num_slots + 2, P)
        shares.scatter_add_(1, found.transpose(1, 2) + 2, weights.transpose(1, 2))
        return shares[:, 2:] / (1 - shares[:, :1]).clamp(min=1e-6)


def select_points(logits: Tensor, candidates: Tensor, random: Tensor, num_uncertain: int) -> Tensor:
    """The candidates whose logits are nearest to 0, most uncertain first, and the random points.

    Shape:
        logits (N, R), candidates (N, R, 2), random (N, P - num_uncertain, 2). Result (N, P, 2).
    """
    nearest = logits.abs().topk(num_uncertain, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), random], dim=1)


@torch.no_grad()
def _points_of_masks(logits: Tensor, points: RegionPoints, image: Tensor, sampling: PointSampling) -> Tensor:
    """(N, P, 2) points to train masks (N, h, w) on."""
    num_uncertain = int(sampling.importance_ratio * sampling.num_points)
    num_candidates = int(sampling.oversample_ratio * sampling.num_points)
    chosen = []
    for maps, images in zip(logits.split(_MASKS_AT_ONCE), image.split(_MASKS_AT_ONCE), strict=True):
        candidates = points.to_valid(sampling.draw(len(maps), num_candidates, maps), images)
        random = candidates[:, :0]
        if sampling.num_points > num_uncertain:
            random = points.to_valid(sampling.draw(len(maps), sampling.num_points - num_uncertain, maps), images)
        sampled = sample_maps(maps[:, None], candidates)[:, 0]
        chosen.append(select_points(sampled, candidates, random, num_uncertain))
    return torch.cat(chosen)


def sampled_mask_losses(
    logits: Tensor, regions: Regions, image: Tensor, slot: Tensor, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of each mask on points, most of them where the mask is uncertain.

    Shape:
        logits (N, h, w); regions at any resolution; image and slot (N,), each mask's region. Results (N,).
    """
    if len(logits) == 0:
        empty = logits.flatten(1).sum(1)
        return empty, empty
    points = RegionPoints(regions)
    coords = _points_of_masks(logits, points, image, sampling)
    return point_losses(sample_maps(logits[:, None], coords)[:, 0], points.labels(coords, image, slot))


def point_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy, and 1 - (2 sum(p y) + 1) / (sum p + sum y + 1), over the points of each mask.

    Shape:
        logits (N, P); labels (N, P) in [0, 1]. Results (N,).
    """
    p = logits.sigmoid()
    dice = 1 - (2 * (p * labels).sum(1) + 1) / (p.sum(1) + labels.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1), dice


def point_costs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`point_losses` of every pair of a query and a region.

    Shape:
        logits (*, Q, P); labels (*, T, P) in [0, 1]. Results (*, Q, T).
    """
    target = labels.transpose(-1, -2)
    # Cross-entropy is softplus(x) - x y.
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ target) / logits.shape[-1]
    p = logits.sigmoid()
    dice = 1 - (2 * (p @ target) + 1) / (p.sum(-1, keepdim=True) + labels.sum(-1)[..., None, :] + 1)
    return cross_entropy, dice
