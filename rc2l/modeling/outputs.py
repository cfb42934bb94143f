"""What a segmentation model returns: one dataclass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SegmentationOutput:
    """Raw outputs of mask classification on a batch of images.

    Letters: ``B`` images, ``Q`` queries, ``K`` classes, ``C`` channels, ``h w`` the stride-4 feature size.
    """

    #: (B, Q, K+1) class logits of the last decoder layer; index K is "no object".
    pred_logits: Tensor
    #: (B, Q, h, w) mask logits of the last decoder layer.
    pred_masks: Tensor
    #: (B, C, h, w) per-pixel features F^s, the output of the pixel decoder.
    pixel_features: Tensor
    #: (logits, masks) of the decoder layers before the last, first layer first.
    aux_outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __getitem__(self, images: slice) -> "SegmentationOutput":
        """The outputs of a range of images (views, no copies)."""
        return SegmentationOutput(
            pred_logits=self.pred_logits[images],
            pred_masks=self.pred_masks[images],
            pixel_features=self.pixel_features[images],
            aux_outputs=[(logits[images], masks[images]) for logits, masks in self.aux_outputs],
        )

    def __len__(self) -> int:
        return self.pred_logits.shape[0]

    def float(self) -> "SegmentationOutput":
        """The same in float32: losses and matching run in it under AMP."""
        return SegmentationOutput(
            pred_logits=self.pred_logits.float(),
            pred_masks=self.pred_masks.float(),
            pixel_features=self.pixel_features.float(),
            aux_outputs=[(logits.float(), masks.float()) for logits, masks in self.aux_outputs],
        )

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(logits, masks) of every decoder layer, the last one first."""
        return [(self.pred_logits, self.pred_masks), *self.aux_outputs]


def semantic_scores(pred_logits: Tensor, mask_probs: Tensor) -> Tensor:
    """Semantic inference of MaskFormer: sum over queries of class probability times mask probability.

    Shape:
        pred_logits (B, Q, K+1), "no object" last; mask_probs (B, Q, H, W) in [0, 1]. Result (B, K, H, W), at least 0,
        not normalised over classes.
    """
    class_probs = pred_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", class_probs, mask_probs)
