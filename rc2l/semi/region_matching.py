"""Pairs of student queries and regions: of labels, and of pseudo labels at the resolution of the region losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.points import PointSampling
from rc2l.modeling.mask_former import losses_on_points
from rc2l.modeling.matcher import HungarianMatcher, Matches
from rc2l.modeling.point_matcher import PointMatcher
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.regions import Regions


@dataclass
class MatchedRegions:
    """Pseudo regions of a strong view, and the queries that one decoder layer matched with them.

    Letters: ``B`` images, ``T`` the largest number of regions of an image, at least 1, ``(h, w)`` the masks' size,
    ``(H, W)`` that of the region losses (SEMI.LOSS_RESOLUTION).
    """

    #: (B, Q, K+1) and (B, Q, h, w), all queries of the layer.
    logits: Tensor
    masks: Tensor
    #: The regions at (H, W).
    regions: Regions
    #: (B, 1), to index with; (B, T) query sigma(i), 0 where there is none; (B, T) slot of region i, 0 where none.
    image: Tensor
    query: Tensor
    slot: Tensor
    #: (B, T) bool: there is a region; it has a query.
    present: Tensor
    matched: Tensor
    #: (B, T) class c_i^t, and (B, T, H, W) bool mask m_i^t.
    labels: Tensor
    pseudo_masks: Tensor
    #: (B, T, H, W) mask logits of the matched queries.
    student_logits: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, H, W) bool, False where ignored."""
        return self.regions.valid

    def resized(self, maps: Tensor) -> Tensor:
        """(B, T, h, w) raised to (H, W)."""
        return _resized(maps, self.valid)


@dataclass
class ViewMatches:
    """The matches of one strong view: per decoder layer that the region losses look at, the last one first."""

    layers: list[tuple[Tensor, Tensor]]
    regions: Regions
    matches: Matches
    _matched: list[MatchedRegions] = field(default_factory=list)

    def matched_regions(self) -> Iterator[MatchedRegions]:
        """Of each layer; made once, whoever asks first."""
        if not self._matched:
            for (logits, masks), pairs in zip(self.layers, self.matches.pairs, strict=True):
                self._matched.append(_matched_regions(logits, masks, self.regions, pairs, self.matches.counts))
        return iter(self._matched)


@dataclass
class StepMatches:
    """Matches of the labelled images, on all decoder layers, and of each strong view."""

    layers: list[tuple[Tensor, Tensor]]
    regions: Regions
    labeled: Matches
    views: list[ViewMatches]


class RegionMatching:
    """Matches all images of a step together.

    Ground truth is matched at the masks' resolution and compared at its own, as in MaskFormer; pseudo regions live at
    one resolution, that of SEMI.LOSS_RESOLUTION: one that vanishes there takes part in nothing.

    Args:
        cfg: the full config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.all_layers = cfg.SEMI.DEEP_SUPERVISION
        self.at_masks = cfg.SEMI.LOSS_RESOLUTION == "mask"
        options = cfg.MODEL.MASK_FORMER
        weights = options.CLASS_WEIGHT, options.MASK_WEIGHT, options.DICE_WEIGHT
        sampling = point_sampling(cfg)
        self.matcher = PointMatcher(*weights, sampling) if sampling else HungarianMatcher(*weights)

    def __call__(
        self, labeled: SegmentationOutput, targets: Tensor, strong: Sequence[tuple[SegmentationOutput, Tensor]]
    ) -> StepMatches:
        """Match labelled images with ``targets`` (B_l, H, W), strong views with pseudo labels (B_u, H, W)."""
        layers, regions = labeled.layers(), Regions.from_label_map(targets, self.num_classes)
        groups = [(layers, regions)]
        for output, pseudo_targets in strong:
            pseudo_regions = Regions.from_label_map(pseudo_targets, self.num_classes)
            if self.at_masks:
                pseudo_regions = pseudo_regions.resized(*output.pred_masks.shape[-2:])
            groups.append((output.layers() if self.all_layers else output.layers()[:1], pseudo_regions))
        matches = self.matcher(groups, at_regions=(False, *[True] * len(strong)))
        views = [ViewMatches(*group, of_group) for group, of_group in zip(groups[1:], matches[1:], strict=True)]
        return StepMatches(layers, regions, matches[0], views)


def point_sampling(cfg: CfgNode) -> PointSampling | None:
    """How points are drawn where mask losses and matching look at points only (Mask2Former); None: at all pixels."""
    options = cfg.MODEL.MASK_FORMER
    if not losses_on_points(cfg):
        return None
    return PointSampling(options.TRAIN_NUM_POINTS, options.OVERSAMPLE_RATIO, options.IMPORTANCE_SAMPLE_RATIO)


def _matched_regions(logits, masks, regions: Regions, pairs, counts: list[int]) -> MatchedRegions:
    query, slot, matched = _pad_pairs(pairs, counts, regions)
    image = torch.arange(len(masks), device=masks.device)[:, None]
    present = slot >= 0
    slot = slot.clamp(min=0)
    return MatchedRegions(
        logits=logits,
        masks=masks,
        regions=regions,
        image=image,
        query=query,
        slot=slot,
        present=present,
        matched=matched,
        labels=regions.labels.gather(1, slot),
        pseudo_masks=regions.select(image.expand_as(slot), slot),
        student_logits=_resized(masks[image, query], regions.valid),
    )


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _pad_pairs(pairs, counts: list[int], regions: Regions) -> tuple[Tensor, Tensor, Tensor]:
    """Matched pairs as one row per image, every region present in it included.

    Returns:
        query (B, T), 0 where there is none; slot (B, T), -1 where there is none; matched (B, T) bool. T is the largest
        number of regions of an image, at least 1.
    """
    image, query, slot = pairs
    B, T = len(counts), max(1, *counts)
    device = image.device
    # Slots that hold a region first, in order: the position of a slot is the number of present slots before it.
    present = regions.present()
    position = present.cumsum(1) - 1
    order = present.int().argsort(dim=1, descending=True, stable=True)[:, :T]
    padded_slot = torch.where(present.gather(1, order), order, -1)
    padded_query = torch.zeros(B, T, dtype=torch.int64, device=device)
    matched = torch.zeros(B, T, dtype=torch.bool, device=device)
    column = position[image, slot]
    padded_query[image, column] = query
    matched[image, column] = True
    return padded_query, padded_slot, matched
