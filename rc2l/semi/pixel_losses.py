"""The losses of pixels: cross-entropy on labels, self-training on pseudo labels (ReCo eq. 5)."""

from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.self_training import confident_share, pixel_cross_entropy
from rc2l.modeling.outputs import SegmentationOutput


class PixelLosses:
    """Cross-entropy at crop resolution. On mask classification its classes are the normalized semantic inference.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    def __init__(self, cfg: CfgNode) -> None:
        threshold = cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD
        if not 0 <= threshold <= 1:
            raise ValueError(f"SELF_TRAINING.CONFIDENCE_THRESHOLD is {threshold}: it must be in [0, 1]")
        self.threshold = threshold
        self.unsupervised_weight = cfg.SEMI.UNSUPERVISED_WEIGHT

    def supervised(self, output: SegmentationOutput, targets: Tensor, average) -> dict[str, Tensor]:
        """``loss_ce``. Arguments as :meth:`Method.losses`."""
        logits = output.class_logits(targets.shape[-2:])
        return {"loss_ce": pixel_cross_entropy(logits, targets, None, average=average)}

    def self_training(
        self, output: SegmentationOutput, pseudo_targets: Tensor, confidence: Tensor, average
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_self_training`` with its weight, and what is worth watching: the share of confident pixels."""
        share = confident_share(confidence, pseudo_targets, self.threshold)
        logits = output.class_logits(pseudo_targets.shape[-2:])
        loss = pixel_cross_entropy(logits, pseudo_targets, share, average=average)
        watched = {"self_training/confident_share": share.mean()}
        return {"loss_self_training": self.unsupervised_weight * loss}, watched
