"""The supervised loss of mask classification: RC²L eq. 1, MaskFormer, Mask2Former."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.mask_former import set_criterion
from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.objective import Objective
from rc2l.semi.region_matching import point_sampling
from rc2l.semi.step import Step
from rc2l.structures.needs import Needs


class MaskClassification(Objective):
    """``loss_ce``, ``loss_mask``, ``loss_dice`` of the last decoder layer, and ``..._<i>`` of the others.

    Reads MODEL.MASK_FORMER: the weights of the three, that of "no object", and how points are sampled.
    """

    name = "mask_classification"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        options = cfg.MODEL.MASK_FORMER
        self.no_object_weight = options.NO_OBJECT_WEIGHT
        self.weights = {"ce": options.CLASS_WEIGHT, "mask": options.MASK_WEIGHT, "dice": options.DICE_WEIGHT}
        self.sampling = point_sampling(cfg)

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(masks=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        matches = step.matches
        losses = set_criterion(
            matches.layers,
            matches.regions,
            matches.labeled.pairs,
            matches.labeled.num_regions,
            self.no_object_weight,
            step.average,
            self.sampling,
        )
        return {name: value * self.weights[name.split("_")[1]] for name, value in losses.items()}
