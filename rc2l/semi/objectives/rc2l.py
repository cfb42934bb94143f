"""RC²L: region contrast (RMC, RFC) and region consistency (RCC, SMC) on unlabelled images (eq. 2 and 3)."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses import rc2l as region
from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import config_node, declare, flag, number, one_of
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objective import OBJECTIVE_REGISTRY
from rc2l.semi.objectives.consistency import RegionObjective, consistency_loss
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.region_matching import MatchedRegions
from rc2l.semi.teacher import EmaTeacher


@config_node
def add_rc2l_losses_config(cfg: CfgNode) -> None:
    """Add the keys of region contrast and consistency."""
    cfg.RC2L = CfgNode()
    # Add these losses to any other method on a network that predicts masks, such as self_training or unimatch: on its
    # strong views and pseudo labels. SEMI.METHOD rc2l has them anyway.
    cfg.RC2L.ENABLED = False
    # beta_1 (RCC, eq. 9), beta_2 (SMC, eq. 10: on its focal part, its dice part has a key of its own), beta_3 (RMC,
    # eq. 5) and beta_4 (RFC, eq. 8) of RC2L eq. 2; 0 leaves a term out, which gives the rows of table 3.
    cfg.RC2L.RCC_WEIGHT = 1.0
    cfg.RC2L.SMC_FOCAL_WEIGHT = 20.0
    cfg.RC2L.SMC_DICE_WEIGHT = 1.0
    cfg.RC2L.RMC_WEIGHT = 4.0
    cfg.RC2L.RFC_WEIGHT = 4.0
    # Weight of the `consistency` method's loss inside rc2l; eq. 2 has no such term, so 0.
    cfg.RC2L.CONSISTENCY_WEIGHT = 0.0
    # tau_m of eq. 5 and tau_f of eq. 8, above 0; the paper does not give them.
    cfg.RC2L.RMC_TEMPERATURE = 0.1
    cfg.RC2L.RFC_TEMPERATURE = 0.1
    # Count the positive pair in the denominators of eq. 5 and 8 (InfoNCE), which keeps both losses above 0. As printed
    # it is left out.
    cfg.RC2L.POSITIVE_IN_DENOMINATOR = False
    # Stop the gradient at the target region features r^t of eq. 7.
    cfg.RC2L.DETACH_TARGET = True
    # Union of eq. 10: sum (sum_q p_q(c) m_q, at most 1) | max (max_q p_q(c) m_q) | noisy_or (1 - prod_q (1 - p_q(c)
    # m_q)) | hard (sum, at most 1, of the masks whose most probable class, "no object" left out, is c). Where a sum
    # exceeds 1, only a gradient that lowers it passes.
    cfg.RC2L.UNION = "sum"


declare(
    "RC2L",
    {
        "ENABLED": flag(),
        "RCC_WEIGHT": number(at_least=0),
        "SMC_FOCAL_WEIGHT": number(at_least=0),
        "SMC_DICE_WEIGHT": number(at_least=0),
        "RMC_WEIGHT": number(at_least=0),
        "RFC_WEIGHT": number(at_least=0),
        "CONSISTENCY_WEIGHT": number(at_least=0),
        "RMC_TEMPERATURE": number(above=0),
        "RFC_TEMPERATURE": number(above=0),
        "POSITIVE_IN_DENOMINATOR": flag(),
        "DETACH_TARGET": flag(),
        "UNION": one_of(*region.UNIONS),
    },
)


@OBJECTIVE_REGISTRY.register()
class RegionContrastAndConsistency(RegionObjective):
    """``loss_rcc`` (eq. 9), ``loss_smc`` (eq. 10), ``loss_rmc`` (eq. 5), ``loss_rfc`` (eq. 8); a weight of 0: not."""

    name = "rc2l"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.options = cfg.RC2L
        self.consistency = cfg.CONSISTENCY

    @classmethod
    def enabled(cls, cfg: CfgNode) -> bool:
        return cfg.RC2L.ENABLED

    def region_losses(self, matched: MatchedRegions, pixel_features: Tensor) -> dict[str, Tensor]:
        options, losses = self.options, {}
        if options.CONSISTENCY_WEIGHT > 0:
            losses["loss_consistency"] = options.CONSISTENCY_WEIGHT * consistency_loss(self.consistency, matched)
        if options.RCC_WEIGHT > 0:
            logits = matched.logits[matched.image, matched.query]
            loss = region.region_class_consistency(logits, matched.labels, matched.matched)
            losses["loss_rcc"] = options.RCC_WEIGHT * loss
        if options.SMC_FOCAL_WEIGHT > 0 or options.SMC_DICE_WEIGHT > 0:
            union = region.semantic_union(matched.logits, matched.masks.sigmoid(), matched.labels, options.UNION)
            focal, dice = region.semantic_mask_consistency(
                matched.resized(union), matched.pseudo_masks, matched.present, matched.valid
            )
            losses["loss_smc"] = options.SMC_FOCAL_WEIGHT * focal + options.SMC_DICE_WEIGHT * dice
        if options.RMC_WEIGHT > 0:
            loss = region.region_mask_contrast(
                matched.student_logits.sigmoid(),
                matched.pseudo_masks,
                matched.matched,
                matched.valid,
                options.RMC_TEMPERATURE,
                options.POSITIVE_IN_DENOMINATOR,
            )
            losses["loss_rmc"] = options.RMC_WEIGHT * loss
        if options.RFC_WEIGHT > 0:
            losses["loss_rfc"] = options.RFC_WEIGHT * self._feature_contrast(matched, pixel_features)
        return losses

    def _feature_contrast(self, matched: MatchedRegions, pixel_features: Tensor) -> Tensor:
        # At the resolution of the features, where a region of the crop may have no pixel.
        low = matched.regions.resized(*matched.masks.shape[-2:])
        image, slot = matched.image, matched.slot
        return region.region_feature_contrast(
            matched.masks[image, matched.query].sigmoid(),
            low.select(image.expand_as(slot), slot),
            pixel_features,
            matched.matched & low.present().gather(1, slot),
            low.valid,
            self.options.RFC_TEMPERATURE,
            self.options.POSITIVE_IN_DENOMINATOR,
            self.options.DETACH_TARGET,
        )


@METHOD_REGISTRY.register()
def rc2l(cfg: CfgNode) -> Method:
    """RC²L (IJCAI 2022)."""
    return Method((supervised_objective(cfg), RegionContrastAndConsistency), EmaTeacher)
