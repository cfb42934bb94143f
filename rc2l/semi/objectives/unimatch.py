"""FixMatch, UniMatch (CVPR 2023) and UniMatch V2 (arXiv 2410.10777), on pixels; on mask classification too."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.unimatch import confident_cross_entropy
from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import SHARE, config_node, declare, one_of
from rc2l.semi.labeler import CurrentStudent
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.step import Step
from rc2l.semi.teacher import EmaTeacher
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import Needs
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.views import View


@config_node
def add_unimatch_config(cfg: CfgNode) -> None:
    """Add the keys of FixMatch and UniMatch."""
    cfg.UNIMATCH = CfgNode()
    # Pixels of a lower confidence, in [0, 1], add nothing to the loss; 0.95 on VOC, 0 on Cityscapes.
    cfg.UNIMATCH.CONFIDENCE_THRESHOLD = 0.95
    # 1: the student labels for itself, two strong views and one with feature dropout. 2: an EMA teacher labels, two
    # strong views with complementary feature dropout. Read by unimatch; fixmatch is one strong view.
    cfg.UNIMATCH.VERSION = 1
    # Share of the unsupervised loss that falls to the view with feature dropout, in [0, 1]; the rest to the strong
    # views. UniMatch: 1/2, from its weights 1/4, 1/4 and 1/2. Read in version 1.
    cfg.UNIMATCH.FEATURE_SHARE = 0.5


declare(
    "UNIMATCH",
    {
        "CONFIDENCE_THRESHOLD": SHARE,
        "VERSION": one_of(1, 2),
        "FEATURE_SHARE": SHARE,
    },
)


class FixMatch(Objective):
    """``loss_strong``: confident cross-entropy of the strong view, times SEMI.UNSUPERVISED_WEIGHT.

    The papers halve the sum of this and the supervised loss; here the learning rate does, as for any method.
    """

    name = "fixmatch"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.threshold = cfg.UNIMATCH.CONFIDENCE_THRESHOLD
        self.weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        self._metrics: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(unlabeled=True, strong_views=1)

    def losses(self, step: Step) -> dict[str, Tensor]:
        self._metrics = {}
        if not step.views:
            return {}
        strong = [self.of_view(*pair, step) for pair in zip(step.strong, step.views, strict=True)]
        valid = torch.stack([view.targets != IGNORE for view in step.views])
        sure = valid & (torch.stack([view.confidence for view in step.views]) >= self.threshold)
        self._metrics["unimatch/confident_share"] = sure.sum() / valid.sum().clamp(min=1)
        return {"loss_strong": self.weight * torch.stack(strong).mean()}

    def of_view(self, output: SegmentationOutput, view: View, step: Step) -> Tensor:
        """0-d loss of one view, without weight."""
        logits = output.class_logits(view.targets.shape[-2:])
        return confident_cross_entropy(logits, view.targets, view.confidence, self.threshold, step.average)

    def metrics(self) -> dict[str, Tensor]:
        return self._metrics


class UniMatch(FixMatch):
    """``loss_strong`` of two strong views and, in version 1, ``loss_feature`` of the weak view with feature dropout."""

    name = "unimatch"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.feature_share = cfg.UNIMATCH.FEATURE_SHARE if cfg.UNIMATCH.VERSION == 1 else 0.0

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        first = cfg.UNIMATCH.VERSION == 1
        return Needs(unlabeled=True, strong_views=2, perturbed=first, complementary=not first)

    def losses(self, step: Step) -> dict[str, Tensor]:
        losses = super().losses(step)
        if losses and step.perturbed is not None:
            losses["loss_strong"] = (1 - self.feature_share) * losses["loss_strong"]
            loss = self.of_view(step.perturbed, step.weak, step)
            losses["loss_feature"] = self.weight * self.feature_share * loss
        return losses


@METHOD_REGISTRY.register()
def fixmatch(cfg: CfgNode) -> Method:
    """FixMatch for segmentation, UniMatch's own baseline: one strong view, labelled by the student itself."""
    return Method((supervised_objective(cfg), FixMatch), CurrentStudent)


@METHOD_REGISTRY.register()
def unimatch(cfg: CfgNode) -> Method:
    """UniMatch; UNIMATCH.VERSION says which."""
    return Method((supervised_objective(cfg), UniMatch), CurrentStudent if cfg.UNIMATCH.VERSION == 1 else EmaTeacher)
