"""The supervised loss of per-pixel classification, and the method that has nothing else."""

from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.self_training import pixel_cross_entropy
from rc2l.semi.method import METHOD_REGISTRY, Method, kind_of_network
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.mask_former import MaskClassification
from rc2l.semi.step import Step
from rc2l.semi.teacher import EmaTeacher


class PixelClassification(Objective):
    """``loss_ce``: mean cross-entropy of the labelled pixels, at crop resolution."""

    name = "pixel_classification"

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits = step.labeled.class_logits(step.targets.shape[-2:])
        return {"loss_ce": pixel_cross_entropy(logits, step.targets, average=step.average)}


def supervised_objective(cfg: CfgNode) -> type[Objective]:
    """The loss on labelled images that goes with the kind of network."""
    return MaskClassification if kind_of_network(cfg) == "masks" else PixelClassification


@METHOD_REGISTRY.register()
def supervised(cfg: CfgNode) -> Method:
    """Labelled images only; the teacher, which nothing learns from, is averaged and evaluated all the same."""
    return Method((supervised_objective(cfg),), EmaTeacher)
