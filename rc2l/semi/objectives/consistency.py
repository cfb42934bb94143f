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
from rc2l.structures.needs import Needs


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

    The paper sums over the regions of an image, which would let crowded images weigh more.
    """

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.weight = cfg.SEMI.UNSUPERVISED_WEIGHT
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
        for view, output in zip(views, step.strong, strict=True):
            for name, value in self._of_view(view, output.pixel_features, step).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses if len(views) == 1 else {name: value / len(views) for name, value in losses.items()}

    def _of_view(self, view: ViewMatches, pixel_features: Tensor, step: Step) -> dict[str, Tensor]:
        count = step.average(pixel_features.new_tensor(float(view.matches.num_regions)))
        count = torch.where(count > 0, count, 1)
        scale = self.weight / (len(view.layers) * count)
        losses: dict[str, Tensor] = {}
        for matched in view.matched_regions():
            for name, value in self.region_losses(matched, pixel_features).items():
                losses[name] = losses.get(name, 0) + scale * value.sum()
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
