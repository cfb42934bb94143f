"""The losses of pixels: cross-entropy on labels, self-training on pseudo labels (ReCo eq. 5)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.reading import IGNORE
from rc2l.losses.self_training import confident_share, pixel_cross_entropy
from rc2l.modeling.outputs import SegmentationOutput
from rc2l.semi.pseudo_label import most_certain
from rc2l.semi.strong_views import StrongViews


class PixelLosses:
    """Cross-entropy at crop resolution. On mask classification its classes are the normalized semantic inference.

    Raises:
        ValueError: a threshold or share outside [0, 1].
    """

    def __init__(self, cfg: CfgNode) -> None:
        threshold = cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD
        if not 0 <= threshold <= 1:
            raise ValueError(f"SELF_TRAINING.CONFIDENCE_THRESHOLD is {threshold}: it must be in [0, 1]")
        self.threshold = threshold
        self.kept_share = shares_over_training("SELF_TRAINING.KEPT_SHARE", cfg.SELF_TRAINING.KEPT_SHARE)
        self.unsupervised_weight = cfg.SEMI.UNSUPERVISED_WEIGHT

    @property
    def needs_entropy(self) -> bool:
        """Whether self-training leaves out uncertain pixels."""
        return min(self.kept_share) < 1

    def supervised(self, output: SegmentationOutput, targets: Tensor, average) -> dict[str, Tensor]:
        """``loss_ce``. Arguments as :meth:`Method.losses`."""
        logits = output.class_logits(targets.shape[-2:])
        return {"loss_ce": pixel_cross_entropy(logits, targets, None, average=average)}

    def self_training(
        self, output: SegmentationOutput, views: StrongViews, average, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_self_training`` with its weight, and what is worth watching: the share of confident pixels."""
        targets = views.targets
        if self.needs_entropy:
            kept = most_certain(views.entropy, targets != IGNORE, share_at(self.kept_share, progress))
            targets = torch.where(kept, targets, IGNORE)
        share = confident_share(views.confidence, targets, self.threshold)
        logits = output.class_logits(targets.shape[-2:])
        loss = pixel_cross_entropy(logits, targets, share, average=average)
        watched = {"self_training/confident_share": share.mean()}
        return {"loss_self_training": self.unsupervised_weight * loss}, watched


def shares_over_training(key: str, shares: Sequence[float]) -> tuple[float, float]:
    """The value of a config key that holds a share at the first and one at the last iteration.

    Raises:
        ValueError: it is not two numbers in [0, 1].
    """
    if len(shares) != 2 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{key} is {list(shares)}: it must be two numbers in [0, 1], at the first and last iteration")
    return float(shares[0]), float(shares[1])


def share_at(shares: tuple[float, float], progress: float) -> float:
    """Linear between the two shares; progress in [0, 1] is the iteration over SOLVER.MAX_ITER."""
    return shares[0] + (shares[1] - shares[0]) * progress
