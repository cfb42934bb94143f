"""Self-training on pixels (ReCo eq. 5): the family of CutOut, CutMix and ClassMix."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.self_training import confident_share, pixel_cross_entropy
from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import SHARE, config_node, declare, exactly
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.pseudo_label import most_certain
from rc2l.semi.step import Step
from rc2l.semi.teacher import EmaTeacher
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import Needs
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.views import View


@config_node
def add_self_training_config(cfg: CfgNode) -> None:
    """Add the keys of self-training."""
    cfg.SELF_TRAINING = CfgNode()
    # delta_s of ReCo eq. 5, in [0, 1]: the loss of an image is weighted by the share of its pixels at least so
    # confident.
    cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD = 0.97
    # Share of the pseudo-labeled pixels of a process and step, in [0, 1], that are trained on, those of the lowest
    # entropy of the teacher: at the first and at the last iteration, linear between. DGCL: [0.8, 1.0].
    cfg.SELF_TRAINING.KEPT_SHARE = [1.0, 1.0]


declare("SELF_TRAINING", {"CONFIDENCE_THRESHOLD": SHARE, "KEPT_SHARE": exactly(SHARE, SHARE)})


class SelfTraining(Objective):
    """``loss_self_training``: cross-entropy on the pseudo labels of each strong view, at crop resolution.

    On mask classification its classes are the normalised semantic inference.
    """

    name = "self_training"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.threshold = cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD
        self.kept_share = tuple(cfg.SELF_TRAINING.KEPT_SHARE)
        self.weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        self._metrics: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(unlabeled=True, strong_views=1, entropy=min(cfg.SELF_TRAINING.KEPT_SHARE) < 1)

    def losses(self, step: Step) -> dict[str, Tensor]:
        self._metrics = {}
        if not step.views:
            return {}
        pairs = [self._of_view(*pair, step) for pair in zip(step.strong, step.views, strict=True)]
        losses, shares = zip(*pairs, strict=True)
        self._metrics["self_training/confident_share"] = torch.cat(shares).mean()
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        return {"loss_self_training": self.weight * loss}

    def _of_view(self, output: SegmentationOutput, view: View, step: Step) -> tuple[Tensor, Tensor]:
        targets = view.targets
        if min(self.kept_share) < 1:
            kept = most_certain(view.entropy, targets != IGNORE, share_at(self.kept_share, step.progress))
            targets = torch.where(kept, targets, IGNORE)
        share = confident_share(view.confidence, targets, self.threshold)
        logits = output.class_logits(targets.shape[-2:])
        return pixel_cross_entropy(logits, targets, share, average=step.average), share

    def metrics(self) -> dict[str, Tensor]:
        return self._metrics


def share_at(shares: Sequence[float], progress: float) -> float:
    """Linear between the shares at the first and the last iteration; progress in [0, 1] is iteration / MAX_ITER."""
    return shares[0] + (shares[1] - shares[0]) * progress


@METHOD_REGISTRY.register()
def self_training(cfg: CfgNode) -> Method:
    """Mean teacher with CutOut, CutMix or ClassMix (SEMI.MIXING.NAME)."""
    return Method((supervised_objective(cfg), SelfTraining), EmaTeacher)
