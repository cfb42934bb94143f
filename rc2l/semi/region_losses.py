"""The losses of mask classification: RC²L eq. 1 on labelled images, and the region losses on unlabelled ones."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses import region
from rc2l.losses.points import PointSampling
from rc2l.losses.regions import Regions
from rc2l.losses.set_criterion import set_criterion
from rc2l.modeling.mask_former import losses_on_points
from rc2l.modeling.matcher import HungarianMatcher, Matches
from rc2l.modeling.outputs import SegmentationOutput
from rc2l.modeling.point_matcher import PointMatcher


class RegionLosses:
    """Supervised, ``consistency`` (RC²L table 3, row 1) and ``rc2l`` (eq. 2 and 3) losses of a :class:`MaskFormer`.

    Raises:
        ValueError: unknown union or loss resolution, or a temperature that is not above 0.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.RC2L.UNION not in region.UNIONS:
            raise ValueError(f"unknown union '{cfg.RC2L.UNION}': RC2L.UNION must be one of {', '.join(region.UNIONS)}")
        if cfg.SEMI.LOSS_RESOLUTION not in ("mask", "crop"):
            raise ValueError(f"unknown SEMI.LOSS_RESOLUTION '{cfg.SEMI.LOSS_RESOLUTION}': it must be 'mask' or 'crop'")
        for key in ("RMC_TEMPERATURE", "RFC_TEMPERATURE"):
            if cfg.RC2L[key] <= 0:
                raise ValueError(f"RC2L.{key} is {cfg.RC2L[key]}: it must be above 0")
        self.name = cfg.SEMI.METHOD
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.mask_former = cfg.MODEL.MASK_FORMER
        self.unsupervised_weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        self.deep_supervision = cfg.SEMI.DEEP_SUPERVISION
        self.loss_resolution = cfg.SEMI.LOSS_RESOLUTION
        self.rc2l = cfg.RC2L
        self.consistency = cfg.CONSISTENCY
        #: Numbers of the last step worth watching, 0-d.
        self.watched: dict[str, Tensor] = {}
        options = self.mask_former
        weights = options.CLASS_WEIGHT, options.MASK_WEIGHT, options.DICE_WEIGHT
        self.sampling = None
        self.matcher = HungarianMatcher(*weights)
        if losses_on_points(cfg):
            self.sampling = PointSampling(
                options.TRAIN_NUM_POINTS, options.OVERSAMPLE_RATIO, options.IMPORTANCE_SAMPLE_RATIO
            )
            self.matcher = PointMatcher(*weights, self.sampling)

    def losses(
        self,
        labeled: SegmentationOutput,
        targets: Tensor,
        strong: SegmentationOutput | None,
        pseudo_targets: Tensor | None,
        average,
    ) -> dict[str, Tensor]:
        """Named, weighted losses; without ``strong`` the supervised ones only. Arguments as :meth:`Method.losses`."""
        layers, regions = labeled.layers(), self._regions(targets)
        groups = [(layers, regions)]
        if strong is not None:
            strong_layers = strong.layers() if self.deep_supervision else strong.layers()[:1]
            pseudo_regions = self._regions(pseudo_targets)
            if self.loss_resolution == "mask":
                pseudo_regions = pseudo_regions.resized(*strong.pred_masks.shape[-2:])
            groups.append((strong_layers, pseudo_regions))
        # Ground truth is matched at the masks' resolution and compared at its own, as in MaskFormer; pseudo regions
        # live at one resolution, that of SEMI.LOSS_RESOLUTION: one that vanishes there takes part in nothing.
        matches = self.matcher(groups, at_regions=(False, True))
        losses = self._supervised(layers, regions, matches[0], average)
        self.watched = {}
        if strong is not None:
            per_image = matches[1].num_regions / len(strong)
            self.watched["pseudo/regions_per_image"] = strong.pixel_features.new_tensor(per_image)
            losses |= self._unsupervised(strong_layers, strong.pixel_features, pseudo_regions, matches[1], average)
        return losses

    def _regions(self, label_map: Tensor) -> Regions:
        return Regions.from_label_map(label_map, self.num_classes)

    def _supervised(self, layers, regions: Regions, matches: Matches, average) -> dict[str, Tensor]:
        options = self.mask_former
        losses = set_criterion(
            layers, regions, matches.pairs, matches.num_regions, options.NO_OBJECT_WEIGHT, average, self.sampling
        )
        weights = {"ce": options.CLASS_WEIGHT, "mask": options.MASK_WEIGHT, "dice": options.DICE_WEIGHT}
        return {name: value * weights[name.split("_")[1]] for name, value in losses.items()}

    def _unsupervised(
        self, layers, pixel_features: Tensor, regions: Regions, matches: Matches, average
    ) -> dict[str, Tensor]:
        count = average(pixel_features.new_tensor(float(matches.num_regions)))
        count = torch.where(count > 0, count, 1)
        scale = self.unsupervised_weight / (len(layers) * count)
        losses: dict[str, Tensor] = {}
        for (logits, masks), pairs in zip(layers, matches.pairs, strict=True):
            slots = _pad_pairs(pairs, matches.counts, regions)
            for name, value in self._region_losses(logits, masks, pixel_features, regions, *slots).items():
                losses[name] = losses.get(name, 0) + scale * value.sum()
        return losses

    def _region_losses(
        self, logits, masks, pixel_features, regions: Regions, query: Tensor, slot: Tensor, matched: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses of one decoder layer, one value per region: (B, T) each."""
        image = torch.arange(len(masks), device=masks.device)[:, None]
        present = slot >= 0
        slot = slot.clamp(min=0)
        pseudo_masks = regions.select(image.expand_as(slot), slot)
        labels = regions.labels.gather(1, slot)
        student_logits = self._resize(masks[image, query], regions.valid)
        weights, valid = self.rc2l, regions.valid

        losses = {}
        consistency_weight = 1.0 if self.name == "consistency" else weights.CONSISTENCY_WEIGHT
        if consistency_weight > 0:
            focal, dice = region.matched_mask_consistency(student_logits, pseudo_masks, matched, valid)
            loss = self.consistency.FOCAL_WEIGHT * focal + self.consistency.DICE_WEIGHT * dice
            losses["loss_consistency"] = consistency_weight * loss
        if self.name == "consistency":
            return losses
        if weights.RCC_WEIGHT > 0:
            loss = region.region_class_consistency(logits[image, query], labels, matched)
            losses["loss_rcc"] = weights.RCC_WEIGHT * loss
        if weights.SMC_FOCAL_WEIGHT > 0 or weights.SMC_DICE_WEIGHT > 0:
            union = self._resize(region.semantic_union(logits, masks.sigmoid(), labels, weights.UNION), valid)
            focal, dice = region.semantic_mask_consistency(union, pseudo_masks, present, valid)
            losses["loss_smc"] = weights.SMC_FOCAL_WEIGHT * focal + weights.SMC_DICE_WEIGHT * dice
        if weights.RMC_WEIGHT > 0:
            loss = region.region_mask_contrast(
                student_logits.sigmoid(),
                pseudo_masks,
                matched,
                valid,
                weights.RMC_TEMPERATURE,
                weights.POSITIVE_IN_DENOMINATOR,
            )
            losses["loss_rmc"] = weights.RMC_WEIGHT * loss
        if weights.RFC_WEIGHT > 0:  # at the resolution of the features, where a region of the crop may have no pixel
            low = regions.resized(*masks.shape[-2:])
            loss = region.region_feature_contrast(
                masks[image, query].sigmoid(),
                low.select(image.expand_as(slot), slot),
                pixel_features,
                matched & low.present().gather(1, slot),
                low.valid,
                weights.RFC_TEMPERATURE,
                weights.POSITIVE_IN_DENOMINATOR,
                weights.DETACH_TARGET,
            )
            losses["loss_rfc"] = weights.RFC_WEIGHT * loss
        return losses

    @staticmethod
    def _resize(maps: Tensor, like: Tensor) -> Tensor:
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
