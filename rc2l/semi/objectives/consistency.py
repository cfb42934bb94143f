"""Matched-mask consistency, the baseline of RC²L table 3 (row 1)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.rc2l import matched_mask_consistency
from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import config_node, declare, number
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.region_matching import MatchedRegions, ViewMatches
from rc2l.semi.step import Step
from rc2l.semi.teacher import EmaTeacher
from rc2l.structures.label_map import with_ignored_as
from rc2l.structures.needs import Needs
from rc2l.structures.views import View


@config_node
def add_consistency_config(cfg: CfgNode) -> None:
    """Add the keys of matched-mask consistency."""
    cfg.CONSISTENCY = CfgNode()
    # Matched-mask consistency: weights of focal and dice between matched student masks and pseudo masks.
    cfg.CONSISTENCY.FOCAL_WEIGHT = 20.0
    cfg.CONSISTENCY.DICE_WEIGHT = 1.0


declare("CONSISTENCY", {"FOCAL_WEIGHT": number(at_least=0), "DICE_WEIGHT": number(at_least=0)})


class RegionObjective(Objective):
    """A loss of the matched regions of every strong view, averaged over regions, images, layers and views.

    The paper sums over the regions of an image, which would let crowded images weigh more. With
    SEMI.REGION_CONFIDENCE_POWER above 0, a region weighs its teacher's confidence to that power; the divisor stays the
    number of regions, so that unsure pseudo labels make a small loss.
    """

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        self.confidence_power = cfg.SEMI.REGION_CONFIDENCE_POWER
        self._metrics: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(unlabeled=True, strong_views=1, masks=True, matches=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        self._metrics, losses = {}, {}
        if not step.views:
            return losses
        views = step.matches.views
        images = sum(len(view.matches.counts) for view in views)
        regions = sum(view.matches.num_regions for view in views)
        self._metrics["pseudo/regions_per_image"] = step.labeled.pixel_features.new_tensor(regions / images)
        for view, output, seen in zip(views, step.strong, step.views, strict=True):
            confidence = region_confidence(seen, self.num_classes) if self.confidence_power else None
            for name, value in self._of_view(view, output.pixel_features, confidence, step).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses if len(views) == 1 else {name: value / len(views) for name, value in losses.items()}

    def _of_view(
        self, view: ViewMatches, pixel_features: Tensor, confidence: Tensor | None, step: Step
    ) -> dict[str, Tensor]:
        count = step.average(pixel_features.new_tensor(float(view.matches.num_regions)))
        count = torch.where(count > 0, count, 1)
        scale = self.weight / (len(view.layers) * count)
        losses: dict[str, Tensor] = {}
        for matched in view.matched_regions():
            weights = 1 if confidence is None else confidence.gather(1, matched.labels) ** self.confidence_power
            for name, value in self.region_losses(matched, pixel_features).items():
                losses[name] = losses.get(name, 0) + scale * (weights * value).sum()
        return losses

    def region_losses(self, matched: MatchedRegions, pixel_features: Tensor) -> dict[str, Tensor]:
        """Named losses of one decoder layer, one value for each region, (B, T), 0 where it does not apply.

        Args:
            matched: regions and queries.
            pixel_features: (B, C, h, w), F^s of the same view.
        """
        raise TypeError(f"{type(self).__name__} has no losses of regions")

    def metrics(self) -> dict[str, Tensor]:
        return self._metrics


def region_confidence(view: View, num_classes: int) -> Tensor:
    """(B, K) in [0, 1]: mean confidence of the pixels of each class in the pseudo labels of a view; 0 where none is."""
    slots = with_ignored_as(view.targets, num_classes).flatten(1)
    sums = view.confidence.new_zeros(2, len(slots), num_classes + 1)
    for total, values in zip(
        sums, (view.confidence.flatten(1), torch.ones_like(view.confidence).flatten(1)), strict=True
    ):
        total.scatter_add_(1, slots, values)
    return (sums[0] / sums[1].clamp(min=1))[:, :num_classes]


class MaskConsistency(RegionObjective):
    """``loss_consistency``: focal and dice between matched student masks and pseudo masks, no class term."""

    name = "consistency"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.options = cfg.CONSISTENCY

    def region_losses(self, matched: MatchedRegions, pixel_features: Tensor) -> dict[str, Tensor]:
        return {"loss_consistency": consistency_loss(self.options, matched)}


def consistency_loss(options: CfgNode, matched: MatchedRegions) -> Tensor:
    """(B, T) weighted by CONSISTENCY.FOCAL_WEIGHT and DICE_WEIGHT."""
    focal, dice = matched_mask_consistency(matched.student_logits, matched.pseudo_masks, matched.matched, matched.valid)
    return options.FOCAL_WEIGHT * focal + options.DICE_WEIGHT * dice


@METHOD_REGISTRY.register()
def consistency(cfg: CfgNode) -> Method:
    """Mask consistency only: RC²L table 3, row 1."""
    return Method((supervised_objective(cfg), MaskConsistency), EmaTeacher)
