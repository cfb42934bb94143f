"""What a segmentation model returns: one dataclass, for mask classification and for per-pixel classification."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class SegmentationOutput:
    """Raw outputs of a model on a batch of images; either ``pred_logits`` and ``pred_masks`` or ``pixel_logits``.

    Letters: ``B`` images, ``Q`` queries, ``K`` classes, ``C`` channels, ``h w`` the size of the model's finest feature.
    """

    #: (B, Q, K+1) class logits of the last decoder layer; index K is "no object". Mask classification only.
    pred_logits: Tensor | None
    #: (B, Q, h, w) mask logits of the last decoder layer. Mask classification only.
    pred_masks: Tensor | None
    #: (B, C, h, w) per-pixel features F^s, the output of the pixel decoder.
    pixel_features: Tensor
    #: (logits, masks) of the decoder layers before the last, first layer first.
    aux_outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    #: (B, K, h, w) class logits of each pixel. Per-pixel classification only.
    pixel_logits: Tensor | None = None
    #: (B, D, h, w) output of each projection head that training has, by the name of its loss.
    representations: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, images: slice) -> "SegmentationOutput":
        """The outputs of a range of images (views, no copies)."""
        return self._map(lambda tensor: tensor[images])

    def __len__(self) -> int:
        return len(self.pixel_features)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.pixel_logits.shape[1] if self.pixel_logits is not None else self.pred_logits.shape[2] - 1

    def float(self) -> "SegmentationOutput":
        """The same in float32: losses and matching run in it under AMP."""
        return self._map(lambda tensor: tensor.float())

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(logits, masks) of every decoder layer, the last one first."""
        return [(self.pred_logits, self.pred_masks), *self.aux_outputs]

    def class_scores(self, size: tuple[int, int]) -> Tensor:
        """How much each class claims each pixel, at a size in pixels.

        Per-pixel logits are raised to the size, then softmax; the semantic inference of masks is made at their own
        size, then raised.

        Shape:
            (B, K, *size), at least 0; divided by their sum over classes they are probabilities.
        """
        if self.pixel_logits is not None:
            return _resize(self.pixel_logits, size).softmax(1)
        return _resize(semantic_scores(self.pred_logits, self.pred_masks.sigmoid()), size)

    def class_probabilities(self, size: tuple[int, int]) -> Tensor:
        """:meth:`class_scores` normalised over classes: (B, K, *size), summing to 1."""
        scores = self.class_scores(size)
        return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)

    def class_logits(self, size: tuple[int, int]) -> Tensor:
        """Logits of :meth:`class_probabilities`, (B, K, *size), for cross-entropy; those of scores are cut at 1e-6."""
        if self.pixel_logits is not None:
            return _resize(self.pixel_logits, size)
        return self.class_scores(size).clamp(min=1e-6).log()

    def _map(self, function: Callable[[Tensor], Tensor]) -> "SegmentationOutput":
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        aux_outputs = [(function(logits), function(masks)) for logits, masks in self.aux_outputs]
        representations = {name: function(value) for name, value in self.representations.items()}
        return replace(self, aux_outputs=aux_outputs, representations=representations, **tensors)


def semantic_scores(pred_logits: Tensor, mask_probs: Tensor) -> Tensor:
    """Semantic inference of MaskFormer: sum over queries of class probability times mask probability.

    Shape:
        pred_logits (B, Q, K+1), "no object" last; mask_probs (B, Q, H, W) in [0, 1]. Result (B, K, H, W), at least 0,
        not normalised over classes.
    """
    class_probs = pred_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", class_probs, mask_probs)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
